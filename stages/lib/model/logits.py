"""Logits: hidden states through the model's own head, whatever its family does there, and the proof that they are its.

Families scale, cap or bias what the head's matrix gives (Granite, Cohere, Gemma 2, Phi, …). Nothing of that is written
down here: the model's own forward runs, with given hidden states in the place of its decoder's.

Shapes: T positions, D features, N tokens, V entries of the vocabulary.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.lib.model.patches import replaced
from stages.lib.params import Mistake

PROBE_TOKENS = 24
LEAST_DIFFERENCE = 1e-3  # nats, between two ways to the same number


class _DecoderOutput(SimpleNamespace):
    """What a decoder returns, as far as a head asks: hidden states, and nothing else."""

    last_hidden_state: Tensor

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor | None:
        return self.last_hidden_state if index == 0 else None


def hidden_states(model: PreTrainedModel, input_ids: Tensor, **packing: Tensor) -> Tensor:
    """Return the last hidden states [B, T, D] of a causal language model, for token ids [B, T].

    Args:
        packing: Where rows that are packed into one begin, and the position of each token in its row.
    """
    return model.get_decoder()(input_ids=input_ids, use_cache=False, **packing).last_hidden_state


def logits_of(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """Return the logits [N, V] that a causal language model itself makes of hidden states [N, D]."""
    ids_1N = torch.zeros(1, len(hidden_ND), dtype=torch.long, device=hidden_ND.device)
    with _decoder_that_returns(model, hidden_ND[None]):
        logits_1NV = type(model).forward(model, input_ids=ids_1N, use_cache=False).logits
    return logits_1NV.flatten(0, 1)  # unlike an index it copies nothing, in the backward pass either


def _decoder_that_returns(model: PreTrainedModel, hidden_1ND: Tensor) -> ExitStack:
    """Put hidden states in the place of what a model's decoder works out, whichever of its parents the model calls."""
    decoder, patches = model.get_decoder(), ExitStack()
    for part in model.modules():
        if part is not model and any(inner is decoder for inner in part.modules()):
            output = _DecoderOutput(last_hidden_state=hidden_1ND)
            patches.enter_context(replaced(part, forward=lambda *args, output=output, **kwargs: output))
    return patches


def num_entries(model: PreTrainedModel) -> int:
    """Return the entries of a model's vocabulary, which is the number of its logits."""
    return model.config.get_text_config().vocab_size


def outside_decoder(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Return the names of parts and parameters that lie outside a model's decoder: its head, or what sees and hears."""
    inside = next(name for name, part in model.named_modules() if part is model.get_decoder())
    return [name for name in names if name != inside and not name.startswith(f"{inside}.")]


def most_rounding(model: PreTrainedModel, logits: Tensor) -> float:
    """Return by how many nats two ways to the same logits may differ: 1e-3, and in 16 bit as much as is rounded."""
    return max(LEAST_DIFFERENCE, 4 * torch.finfo(model.dtype).eps * logits.abs().max().item())


@torch.inference_mode()
def vouch(model: PreTrainedModel) -> None:
    """Score some tokens as this project does and by the model's own logits, and refuse a model where these differ.

    Also refuse one whose predictions depend on what follows, of which no loss means anything. Both ways run the same
    arithmetic, so they differ by rounding at most: 1e-3 nats in fp32, and in 16 bit as much as logits are rounded by.

    Args:
        model: A causal language model in evaluation mode; its layers may be quantised and adapted.

    Raises:
        Mistake: They differ, or the model cannot be asked.
    """
    name, vocabulary = type(model).__name__, num_entries(model)
    ids_1T = torch.arange(PROBE_TOKENS, device=model.device)[None] * 7919 % vocabulary  # spread over the vocabulary
    other_1T = ids_1T.clone()
    other_1T[:, PROBE_TOKENS // 2 :] = (ids_1T[:, PROBE_TOKENS // 2 :] + 1) % vocabulary
    try:
        theirs_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
        changed_TV = model(input_ids=other_1T, use_cache=False).logits[0].float()
        ours_TV = logits_of(model, hidden_states(model, ids_1T)[0]).float()
    except (AttributeError, IndexError, KeyError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Mistake(f"{name}: not a causal language model that can be scored here: {reason}") from error
    allowed = most_rounding(model, theirs_TV)
    theirs, changed, ours = (logits_TV.log_softmax(-1) for logits_TV in (theirs_TV, changed_TV, ours_TV))
    if not (difference := (ours - theirs).abs().max().item()) <= allowed:
        raise Mistake(
            f"{name}: scored here, a token has {difference:.3g} nats more or less than by the model's own logits "
            f"(at most {allowed:.3g} are rounding): no number of it would be right, so this model cannot be used"
        )
    half = PROBE_TOKENS // 2
    if not (difference := (changed - theirs)[:half].abs().max().item()) <= allowed:
        raise Mistake(
            f"{name}: not a decoder: what it predicts changes by {difference:.3g} nats with the tokens that follow "
            "(an encoder, perhaps); take a causal language model"
        )
