"""The training loss, without the logits of more than a chunk of tokens.

Shapes: B sequences, T positions, D features, N targets, C targets of a chunk, V entries of the vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.lib.data.documents import IGNORED
from stages.lib.model.logits import hidden_states, logits_of, num_entries, outside_decoder
from stages.lib.model.patches import compiled_when_called, replaced
from stages.lib.params import Mistake

CHUNK_LOGITS = 2**25  # that exist at once: 64 MiB in 16 bit, and as much for their gradient,
CHUNK_FRACTION = 8  # or as many as an eighth of the tokens have: large matrix products are fast ones,
CHUNK_TARGETS = 2048  # up to so many


@contextmanager
def chunked_loss(model: PreTrainedModel, sparse: bool = False, compiled: bool = False) -> Iterator[None]:
    """Make a causal language model's `forward` return nothing but its loss, chunk by chunk, for a while.

    Nothing else of the model changes. The loss goes through `forward`, so that whatever wraps it still sees it:
    an adapter, automatic mixed precision.

    Args:
        sparse: Let the head work on targets alone, whose number differs from batch to batch.
        compiled: Compile what comes after the head.

    Raises:
        Mistake: Something outside the decoder is to be trained, such as the head.
    """
    named = model.named_parameters(remove_duplicate=False)  # a head that is tied to the embeddings stands there twice
    trained = [name for name, weight in named if weight.requires_grad]
    if wrong := outside_decoder(model, trained):
        raise Mistake(
            f"{type(model).__name__}: {wrong[0]} would be trained, but what is not in the decoder stays frozen here; "
            "leave it out of lora.target_modules"
        )
    with replaced(model, forward=MethodType(partial(forward_loss, sparse=sparse, compiled=compiled), model)):
        yield


def forward_loss(
    model: PreTrainedModel,
    input_ids: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | None = None,
    sparse: bool = False,
    compiled: bool = False,
    places: Tensor | None = None,
    **packing: Tensor,
) -> dict[str, Tensor]:
    """Return `loss`, in nats per target.

    Args:
        input_ids: [B, T].
        labels: [B, T]; the label of a position is the target of the one before, or `IGNORED`. With `places` [1 + N].
        num_items_in_batch: Targets in all the micro-batches of an optimizer step; by default those in `labels`.
        sparse: Leave out what is no target before the head.
        compiled: Score with compiled code.
        places: [N]; of packed rows, the positions whose targets `labels` has.
        packing: Of packed rows, what `hidden_states` needs.
    """
    hidden_ND = hidden_states(model, input_ids, **packing).flatten(0, 1)
    if places is not None:
        hidden_ND, targets_N = hidden_ND[places], labels[1:]
    else:
        targets_N = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    if sparse and places is None:
        counted_N = targets_N.ne(IGNORED)
        hidden_ND, targets_N = hidden_ND[counted_N], targets_N[counted_N]
    num_chunk = chunk_targets(len(hidden_ND), num_entries(model))
    score = _compiled_chunk if compiled else score_chunk
    nll = SummedCrossEntropy.apply(hidden_ND, targets_N, partial(logits_of, model), num_chunk, score)
    return {"loss": nll / (targets_N.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)}


class SummedCrossEntropy(torch.autograd.Function):
    """The summed negative log-likelihood of targets under a frozen head; its gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        targets_N: Tensor,
        head: Callable[[Tensor], Tensor],
        num_chunk: int,
        score: "Score",
    ) -> Tensor:
        """Return the sum, in nats and fp32; `head` makes logits [C, V] of hidden states [C, D]."""
        nll, grad_ND = hidden_ND.new_zeros((), dtype=torch.float32), torch.empty_like(hidden_ND)
        for hidden_CD, targets_C, grad_CD in zip(
            hidden_ND.split(num_chunk), targets_N.split(num_chunk), grad_ND.split(num_chunk)
        ):
            nll += learn_chunk(hidden_CD, targets_C, head, grad_CD, score)
        ctx.save_for_backward(grad_ND)
        return nll

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return (grad_ND * grad_output).to(grad_ND.dtype), None, None, None, None


def chunk_targets(num_targets: int, vocabulary: int) -> int:
    """Return how many targets have logits at once: a power of two, which matrix units like."""
    large = min(num_targets // CHUNK_FRACTION, CHUNK_TARGETS)
    return 2 ** (max(1, CHUNK_LOGITS // vocabulary, large).bit_length() - 1)


def learn_chunk(
    hidden_CD: Tensor, targets_C: Tensor, head: Callable[[Tensor], Tensor], grad_CD: Tensor, score: "Score"
) -> Tensor:
    """Return the summed nll of a chunk, in fp32, and put its gradient into `grad_CD`; the logits are gone on return."""
    with torch.enable_grad():
        hidden_CD = hidden_CD.detach().requires_grad_()
        logits_CV = head(hidden_CD)
    nll, slope_CV = score(logits_CV.detach(), targets_C)
    grad_CD.copy_(torch.autograd.grad(logits_CV, hidden_CD, slope_CV)[0])
    return nll


def score_chunk(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed nll of a chunk, in fp32, and its gradient with respect to the logits, in their precision."""
    counted_C1 = targets_C.ne(IGNORED)[:, None]
    target_C1 = targets_C.clamp(min=0)[:, None]
    logp_CV = logits_CV.log_softmax(1, dtype=torch.float32)
    nll = -(logp_CV.gather(1, target_C1) * counted_C1).sum()
    slope_CV = logp_CV.exp_()
    slope_CV.scatter_add_(1, target_C1, torch.full_like(target_C1, -1.0, dtype=torch.float32))
    return nll, slope_CV.mul_(counted_C1).to(logits_CV.dtype)


def score_chunk_in_one(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `score_chunk` does, written so that it compiles to few passes, with nothing in fp32 between them."""
    exact_CV = logits_CV.float()
    counted_C1 = targets_C.ne(IGNORED)[:, None]
    target_C1 = targets_C.clamp(min=0)[:, None]
    top_C1 = exact_CV.amax(1, keepdim=True)
    lse_C1 = top_C1 + (exact_CV - top_C1).exp().sum(1, keepdim=True).log()
    nll = ((lse_C1 - exact_CV.gather(1, target_C1)) * counted_C1).sum()
    vocabulary_V = torch.arange(exact_CV.shape[1], device=target_C1.device)
    slope_CV = ((exact_CV - lse_C1).exp() - (vocabulary_V == target_C1).float()) * counted_C1
    return nll, slope_CV.to(logits_CV.dtype)


Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_compiled_chunk = compiled_when_called(score_chunk_in_one)
