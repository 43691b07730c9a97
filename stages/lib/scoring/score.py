"""Scoring: how likely a model finds given tokens, without the logits of more than a chunk of them.

Shapes: B sequences, T positions, D features, N targets, V entries of the vocabulary.
"""

from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.lib.data.documents import IGNORED
from stages.lib.model.loading import Model, base_of
from stages.lib.model.logits import hidden_states, logits_of, num_entries
from stages.lib.model.patches import compiled_when_called

CHUNK_LOGITS = 2**26  # that exist at once, in fp32: 256 MiB
COMPILED_LOGITS = 2**36  # of all that is scored: from so many on, a GPU wins back the seconds that compiling takes


class TokenScores(NamedTuple):
    """Of N targets, each [N] in float64."""

    nll: torch.Tensor  # nats
    top1: torch.Tensor  # whether no logit is above the target's own
    top5: torch.Tensor  # whether fewer than five are
    confidence: torch.Tensor  # the probability of the likeliest token


class Divergence(NamedTuple):
    """Of N targets, how the predictions differ from those of the base model, each [N] in float64."""

    kl: torch.Tensor  # KL(base‖model) in nats
    agreed: torch.Tensor  # whether both find the same token likeliest


@torch.inference_mode()
def score_tokens(
    model: Model,
    inputs: list[np.ndarray],
    labels: list[np.ndarray],
    against_base: bool = False,
    compiled: bool = False,
) -> tuple[TokenScores, Divergence | None]:
    """Score the targets of each input; a GPU may still be at it on return.

    Args:
        model: A causal language model.
        inputs: B arrays of token ids, of any lengths.
        labels: B arrays of the same lengths: for each token the target that follows it, or `IGNORED`.
        against_base: Compare with the same model without its adapter too.
        compiled: Score logits with compiled code.

    Returns:
        The scores, on the model's device, in the order of the targets; with `against_base` the divergence too.
    """
    inputs_BT = np.zeros((len(inputs), max(map(len, inputs))), np.int64)
    labels_BT = np.full(inputs_BT.shape, IGNORED, np.int64)
    for row, (ids, after) in enumerate(zip(inputs, labels)):
        inputs_BT[row, : len(ids)] = ids
        labels_BT[row, : len(ids)] = after
    base = base_of(model)
    arrays = inputs_BT, np.flatnonzero(labels_BT != IGNORED), labels_BT[labels_BT != IGNORED]
    ids_BT, place_N, targets_N = (torch.from_numpy(array).to(model.device) for array in arrays)

    num_chunk = max(1, CHUNK_LOGITS // num_entries(base))
    states = scored_states(base, ids_BT, place_N).split(num_chunk)
    score, compare = (_compiled_score, _compiled_compare) if compiled else (score_logits, compare_logits)
    if not against_base:
        scored = [score(logits_of(base, state), target) for state, target in zip(states, targets_N.split(num_chunk))]
        return TokenScores(*map(torch.cat, zip(*scored))), None
    assert not isinstance(model, PreTrainedModel)  # which has no adapter
    with model.disable_adapter():
        references = scored_states(base, ids_BT, place_N).split(num_chunk)
    scored, compared = [], []
    for state, target, reference in zip(states, targets_N.split(num_chunk), references, strict=True):
        logits_NV = logits_of(base, state)
        scored.append(score(logits_NV, target))
        compared.append(compare(logits_of(base, reference), logits_NV))
    return TokenScores(*map(torch.cat, zip(*scored))), Divergence(*map(torch.cat, zip(*compared)))


def gains_by_compiling(model: Model, num_targets: int) -> bool:
    """Return whether so many targets are sooner scored with compiled code, the time to compile it included."""
    return model.device.type == "cuda" and num_targets * num_entries(base_of(model)) >= COMPILED_LOGITS


def scored_states(model: PreTrainedModel, ids_BT: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
    """Return the hidden states [N, D] at some places of a batch, counted row after row."""
    return hidden_states(model, ids_BT).flatten(0, 1)[place_N]


def score_logits(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> TokenScores:
    """Score targets by their logits.

    Args:
        logits_NV: Logits, in any precision; sums are made in fp32.
        targets_N: Token ids.
    """
    logits_NV = logits_NV.float()
    target_N1 = logits_NV.gather(1, targets_N[:, None])
    lse_N = logits_NV.logsumexp(1).double()
    nll_N = lse_N - target_N1[:, 0].double()
    rank_N = (logits_NV > target_N1).sum(1)
    confidence_N = (logits_NV.amax(1).double() - lse_N).exp()
    return TokenScores(nll_N, (rank_N < 1).double(), (rank_N < 5).double(), confidence_N)


def compare_logits(base_NV: torch.Tensor, other_NV: torch.Tensor) -> Divergence:
    """Compare predictions by their logits."""
    base_NV, other_NV = base_NV.float().log_softmax(1), other_NV.float().log_softmax(1)
    divergence_N = (base_NV.exp() * (base_NV - other_NV)).sum(1).double()
    return Divergence(divergence_N, (base_NV.argmax(1) == other_NV.argmax(1)).double())


_compiled_score = compiled_when_called(score_logits, dynamic=True)
_compiled_compare = compiled_when_called(compare_logits, dynamic=True)
