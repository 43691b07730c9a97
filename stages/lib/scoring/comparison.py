"""Comparison: what one set of weights makes of documents beside another, and whether chance could do that."""

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.stats import permutation_test

from stages.lib.params import Section
from stages.lib.scoring.intervals import interval, named
from stages.lib.scoring.scores import bins_of, calibration_error


class CompareParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the draws
    resamples: Annotated[int, Field(ge=100)]


def compare(before: pd.DataFrame, after: pd.DataFrame, params: CompareParams) -> dict[str, float]:
    """Compare two arms on the same documents.

    The intervals come from drawing documents, not tokens, which depend on one another; both arms are drawn together.

    Args:
        before: Scores of one arm: a row a document.
        after: Scores of the other, rows alike.

    An interval from a handful of documents is too narrow: drawn from 5 it misses the truth one time in
    five. So there is a second witness, which holds for any number of documents: the share of random
    flips of each document's sign that shift nll at least as far as it was shifted.

    Returns:
        Differences in nll (nats per token), accuracy (share of tokens) and expected calibration error, after minus
        before, the ratio of perplexities, their bounds, the p-value of the nll by sign flips (two-sided), and the
        documents on which `after` has the lower nll.
    """
    assert (before["id"] == after["id"]).all() and (before["tokens"] == after["tokens"]).all()
    tokens = before["tokens"].to_numpy()
    bins_before, bins_after = bins_of(before), bins_of(after)

    def calibration(drawn: np.ndarray) -> np.ndarray:
        return calibration_error(bins_after[drawn].sum(-3)) - calibration_error(bins_before[drawn].sum(-3))

    return {
        **compare_losses(tokens, (after["nll"] - before["nll"]).to_numpy(), params),
        **named(
            "accuracy_difference", draw(per_token(tokens, (after["top1"] - before["top1"]).to_numpy()), tokens, params)
        ),
        **named("ece_difference", draw(calibration, tokens, params)),
    }


def compare_losses(tokens: np.ndarray, gain: np.ndarray, params: CompareParams) -> dict[str, float]:
    """Return what `compare` does of the nll, from the summed difference of each document and its tokens."""
    nll = draw(per_token(tokens, gain), tokens, params)
    return {
        **named("perplexity_ratio", map(math.exp, nll)),
        **named("nll_difference", nll),
        "p_value": sign_flip(gain, params),
        "documents": len(tokens),
        "documents_better": int((gain < 0).sum()),
    }


def per_token(tokens: np.ndarray, sums: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the statistic of drawn documents that is their sums over their tokens."""
    return lambda drawn: sums[drawn].sum(-1) / tokens[drawn].sum(-1)


def draw(
    statistic: Callable[[np.ndarray], np.ndarray], tokens: np.ndarray, params: CompareParams
) -> tuple[float, float, float]:
    """Return a statistic of all documents, and its interval."""
    return interval(statistic, len(tokens), params.resamples, params.seed)


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


def verdict(comparison: dict[str, float]) -> str:
    """Say in words what the interval of the perplexity ratio and the p-value both allow to be said."""
    if comparison["p_value"] >= 0.05:
        return "cannot tell"
    if comparison["perplexity_ratio_high"] < 1:
        return "better"
    return "worse" if comparison["perplexity_ratio_low"] > 1 else "cannot tell"


def describe(name: str, comparison: dict[str, float]) -> str:
    """Put a comparison in one line."""
    ratio, low, high = (comparison[f"perplexity_ratio{bound}"] for bound in ("", "_low", "_high"))
    return (
        f"{name}: perplexity times {ratio:.4f} (95 % interval {low:.4f} to {high:.4f}): {verdict(comparison)}; "
        f"lower on {comparison['documents_better']} of {comparison['documents']} documents"
    )
