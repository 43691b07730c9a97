"""Comparison: what one set of weights makes of documents beside another, and whether chance could do that."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

from stages.lib.records import Interval
from stages.lib.scoring.document_scores import Bins, calibration_error, units
from stages.lib.scoring.intervals import interval
from stages.lib.scoring.protocol import CompareParams


@dataclass(frozen=True)
class LossComparison:
    """How the losses of two arms differ on the same documents: after minus before, or after over before."""

    perplexity_ratio: Interval
    nll_difference: Interval  # nats per token
    p_value: float  # of the nll, by sign flips, two-sided
    documents: int  # or groups of them
    documents_better: int  # on which `after` has the lower nll


@dataclass(frozen=True)
class Comparison(LossComparison):
    """How the predictions of two arms differ on the same documents."""

    accuracy_difference: Interval  # share of tokens
    ece_difference: Interval  # expected calibration error


def compare(before: pd.DataFrame, after: pd.DataFrame, params: CompareParams) -> Comparison:
    """Compare two arms on the same documents.

    The intervals come from drawing documents, not tokens, which depend on one another; both arms are drawn together.
    An interval from a handful of documents is too narrow: drawn from 5 it misses the truth one time in
    five. So there is a second witness, which holds for any number of documents: the share of random
    flips of each document's sign that shift nll at least as far as it was shifted.

    Args:
        before: Scores of one arm: a row a document. Documents of one group are drawn together, as one unit.
        after: Scores of the other, rows alike.
    """
    assert (before["id"] == after["id"]).all() and (before["tokens"] == after["tokens"]).all()
    before, after = units(before), units(after)
    tokens = before["tokens"].to_numpy()
    bins_before, bins_after = Bins.of(before), Bins.of(after)

    def calibration(drawn: np.ndarray) -> np.ndarray:
        return calibration_error(bins_after.total(drawn)) - calibration_error(bins_before.total(drawn))

    hits = per_token(tokens, (after["top1"] - before["top1"]).to_numpy())
    losses = compare_losses(tokens, (after["nll"] - before["nll"]).to_numpy(), params)
    return Comparison(
        **vars(losses),
        accuracy_difference=interval(hits, len(tokens), params.resamples, params.seed),
        ece_difference=interval(calibration, len(tokens), params.resamples, params.seed),
    )


def compare_losses(tokens: np.ndarray, gain: np.ndarray, params: CompareParams) -> LossComparison:
    """Compare two arms by the difference of their summed nll on each document, and the documents' tokens."""
    nll = interval(per_token(tokens, gain), len(tokens), params.resamples, params.seed)
    return LossComparison(
        perplexity_ratio=Interval(*map(math.exp, nll)),
        nll_difference=nll,
        p_value=sign_flip(gain, params),
        documents=len(tokens),
        documents_better=int((gain < 0).sum()),
    )


def per_token(tokens: np.ndarray, sums: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the statistic of drawn documents that is their sums over their tokens."""
    return lambda drawn: sums[drawn].sum(-1) / tokens[drawn].sum(-1)


def sign_flip(gain: np.ndarray, params: CompareParams) -> float:
    """Return the two-sided p-value of a sum over documents, exact where the flips can be counted through."""
    flipped = permutation_test(
        (gain,),
        lambda gain, axis: gain.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=params.resamples,
        rng=np.random.default_rng(params.seed),
    )
    return float(flipped.pvalue)


def verdict(found: LossComparison) -> str:
    """Say in words what the interval of the perplexity ratio and the p-value both allow to be said."""
    if found.p_value >= 0.05:
        return "cannot tell"
    if found.perplexity_ratio.high < 1:
        return "better"
    return "worse" if found.perplexity_ratio.low > 1 else "cannot tell"


def describe(name: str, found: LossComparison) -> str:
    """Put a comparison in one line."""
    ratio = found.perplexity_ratio
    return (
        f"{name}: perplexity times {ratio.value:.4f} (95 % interval {ratio.low:.4f} to {ratio.high:.4f}): "
        f"{verdict(found)}; lower on {found.documents_better} of {found.documents} documents"
    )
