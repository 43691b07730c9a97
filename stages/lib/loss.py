"""The training loss, without the logits of more than a chunk of tokens.

Shapes: B sequences, T positions, D features, N targets, C targets of a chunk, V entries of the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.lib.params import Mistake

CHUNK_LOGITS = 2**25  # that exist at once: 64 MiB in 16 bit, and as much for their gradient,
CHUNK_FRACTION = 8  # or as many as an eighth of the tokens have: large matrix products are fast ones
IGNORED = -100  # as a label: no target


@contextmanager
def chunked_loss(model: PreTrainedModel) -> Iterator[None]:
    """Make a causal language model's `forward` return nothing but its loss, chunk by chunk, for a while.

    Nothing else of the model changes. The loss goes through `forward`, so that whatever wraps it still sees it:
    an adapter, automatic mixed precision, data parallelism.

    Raises:
        Mistake: The model's head is not a frozen matrix alone.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or head.weight.requires_grad:
        found = " ".join(str(head).split())
        raise Mistake(
            f"{type(model).__name__}: expected an output layer that is a frozen matrix, found {found}; "
            "leave it out of lora.target_modules, or take a model whose output layer has no bias"
        )
    model.forward = MethodType(forward_loss, model)
    try:
        yield
    finally:
        del model.forward


def forward_loss(
    model: PreTrainedModel, input_ids: Tensor, labels: Tensor, num_items_in_batch: Tensor | None = None, **_: Any
) -> dict[str, Tensor]:
    """Return `loss`, in nats per target.

    Args:
        input_ids: [B, T].
        labels: [B, T]; the label of a position is the target of the one before, or `IGNORED`.
        num_items_in_batch: Targets in all the micro-batches of an optimizer step; by default those in `labels`.
    """
    hidden_BTD = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    targets_N = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
    nll = SummedCrossEntropy.apply(hidden_BTD.flatten(0, 1), targets_N, model.get_output_embeddings().weight, cap)
    return {"loss": nll / (targets_N.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)}


class SummedCrossEntropy(torch.autograd.Function):
    """The summed negative log-likelihood of targets under a frozen head; its gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor, cap: float | None) -> Tensor:
        num_chunk = chunk_targets(len(hidden_ND), len(weight_VD))
        run = _compiled_chunk if hidden_ND.is_cuda else score_chunk
        nll, grad_ND = hidden_ND.new_zeros((), dtype=torch.float32), torch.empty_like(hidden_ND)
        for hidden_CD, targets_C, grad_CD in zip(
            hidden_ND.split(num_chunk), targets_N.split(num_chunk), grad_ND.split(num_chunk)
        ):
            chunk_nll, chunk_grad = run(hidden_CD, targets_C, weight_VD, cap)
            nll += chunk_nll
            grad_CD.copy_(chunk_grad)
        ctx.save_for_backward(grad_ND)
        return nll

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return (grad_ND * grad_output).to(grad_ND.dtype), None, None, None


def chunk_targets(num_targets: int, vocabulary: int) -> int:
    """Return how many targets have logits at once: a power of two, which matrix units like."""
    return 2 ** (max(1, CHUNK_LOGITS // vocabulary, num_targets // CHUNK_FRACTION).bit_length() - 1)


def score_chunk(hidden_CD: Tensor, targets_C: Tensor, weight_VD: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Return the summed nll of a chunk, in fp32, and its gradient with respect to the hidden states."""
    logits_CV = (hidden_CD.to(weight_VD.dtype) @ weight_VD.T).float()
    if cap is not None:
        logits_CV = cap * torch.tanh(logits_CV / cap)
    counted_C1 = targets_C.ne(IGNORED)[:, None]
    target_C1 = targets_C.clamp(min=0)[:, None]
    top_C1 = logits_CV.amax(1, keepdim=True)
    lse_C1 = top_C1 + (logits_CV - top_C1).exp().sum(1, keepdim=True).log()  # so written, one pass when compiled
    nll = ((lse_C1 - logits_CV.gather(1, target_C1)) * counted_C1).sum()
    vocabulary_V = torch.arange(len(weight_VD), device=target_C1.device)
    grad_CV = ((logits_CV - lse_C1).exp() - (vocabulary_V == target_C1).float()) * counted_C1
    if cap is not None:
        grad_CV = grad_CV * (1 - (logits_CV / cap).square())
    return nll, grad_CV.to(weight_VD.dtype) @ weight_VD


_compiled_chunk = torch.compile(score_chunk, dynamic=False)
