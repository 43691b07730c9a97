"""Comparison: what one set of weights makes of documents beside another, and whether chance could do that."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.lib.records import Interval
from stages.lib.scoring.document_scores import Bins, calibration_error, units
from stages.lib.scoring.intervals import FEWEST_UNITS, bootstrapped, change, smallest_visible, spread
from stages.lib.scoring.protocol import CompareParams


@dataclass(frozen=True)
class LossComparison:
    """How the losses of two arms differ on the same documents: after minus before, or after over before."""

    perplexity_ratio: Interval
    nll_difference: Interval  # nats per token
    p_value: float  # of both, by sign flips, two-sided
    documents: int  # or groups of them
    documents_better: int  # on which `after` has the lower nll
    visible_ratio: float  # four of five studies of such documents would find a fall to this, or a larger one
    margin: float  # a rise by this share counts as no loss

    @property
    def verdict(self) -> str:
        """Say in words what the interval allows to be said."""
        ratio, most = self.perplexity_ratio, f"{self.margin:.1%}".replace(".0%", "%").replace("%", " %")
        if ratio.high < 1:
            return "better"
        if ratio.low == ratio.high == 1:
            return "the same"
        if ratio.low > 1:
            return f"worse, by less than {most}" if ratio.high < 1 + self.margin else "worse"
        return f"not worse by {most} or more" if ratio.high < 1 + self.margin else "cannot tell"

    @property
    def limits(self) -> str:
        """Say why nothing can be told, and how much more would be needed."""
        if self.documents < FEWEST_UNITS:
            return f"{FEWEST_UNITS} documents at least are needed"
        found, visible = abs(self.nll_difference.value), abs(math.log(self.visible_ratio))
        needed = max(self.documents * (visible / found) ** 2, self.documents + 1) if found else math.inf
        more = f"; a change as large as this one would take about {math.ceil(needed):,}" if needed < 1e6 else ""
        return f"{self.documents} documents that differ so show a fall to {self.visible_ratio:.4f} or lower{more}"


@dataclass(frozen=True)
class Comparison(LossComparison):
    """How the predictions of two arms differ on the same documents."""

    accuracy_difference: Interval  # share of tokens
    ece_difference: Interval  # expected calibration error


def compare(before: pd.DataFrame, after: pd.DataFrame, params: CompareParams) -> Comparison:
    """Compare two arms on the same documents.

    Documents are the units, not tokens, which depend on one another; both arms are drawn together.

    Args:
        before: Scores of one arm: a row a document. Documents of one group are one unit.
        after: Scores of the other, rows alike.
    """
    assert (before["id"] == after["id"]).all() and (before["tokens"] == after["tokens"]).all()
    before, after = units(before), units(after)
    tokens = before["tokens"].to_numpy()
    bins_before, bins_after = Bins.of(before), Bins.of(after)

    def calibration(drawn: np.ndarray) -> np.ndarray:
        return calibration_error(bins_after.total(drawn)) - calibration_error(bins_before.total(drawn))

    hits = (after["top1"] - before["top1"]).to_numpy(float)
    losses = compare_losses(tokens, (after["nll"] - before["nll"]).to_numpy(), params)
    return Comparison(
        **vars(losses),
        accuracy_difference=change(hits, tokens, params.resamples, params.seed).interval,
        ece_difference=bootstrapped(calibration, len(tokens), params.resamples, params.seed),
    )


def compare_losses(tokens: np.ndarray, gain: np.ndarray, params: CompareParams) -> LossComparison:
    """Compare two arms by the difference of their summed nll on each document, and the documents' tokens."""
    nll, p_value = change(gain, tokens, params.resamples, params.seed)
    return LossComparison(
        perplexity_ratio=Interval(*map(math.exp, nll)),
        nll_difference=nll,
        p_value=p_value,
        documents=len(tokens),
        documents_better=int((gain < 0).sum()),
        visible_ratio=math.exp(-smallest_visible(spread(gain, tokens), tokens)),
        margin=params.margin,
    )


def describe(name: str, found: LossComparison) -> str:
    """Put a comparison in one line."""
    ratio = found.perplexity_ratio
    why = f" ({found.limits})" if found.verdict == "cannot tell" else ""
    return (
        f"{name}: perplexity times {ratio.value:.4f} (95 % interval: {ratio.bounds()}): {found.verdict}{why}; "
        f"lower on {found.documents_better} of {found.documents} documents"
    )
