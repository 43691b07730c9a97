"""Comparison of tasks: how two arms differ on the same samples, and what of it remains when many tests were made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from stages.lib.records import Interval, to_metrics
from stages.lib.scoring.intervals import FEWEST_UNITS, change
from stages.lib.scoring.protocol import CompareParams
from stages.lib.scoring.task_scores import Score

LEVEL = 0.05
COLUMNS = ("change (95 % interval)", "better", "worse", "of", "p", "adjusted", "verdict")
LEGEND = "Verdicts rest on `adjusted`: p after Holm's correction for all tests of a table. Counts are of pairs."


@dataclass(frozen=True)
class TaskChange:
    """How a metric of a task differs between two arms: after minus before; of a perplexity, after over before."""

    change: Interval
    ratio: bool
    more_is_better: bool | None  # None where the task does not say
    p_value: float  # two-sided: McNemar's exact test of single yes or no, else sign flips
    p_adjusted: float  # by Holm, for all tests of the same two arms
    tests: int  # of the same two arms
    units: int  # pairs: samples, of which equal ones are one
    better: int  # units with a better value; where the task does not say which is better, a higher one
    worse: int

    @property
    def verdict(self) -> str:
        """Say in words what interval and both p-values allow to be said."""
        found = self.change.verdict(none=float(self.ratio), more_is_better=self.more_is_better is not False)
        if self.units < FEWEST_UNITS:
            return f"{found} ({FEWEST_UNITS} samples at least are needed)"
        if found not in ("better", "worse"):
            return found
        if self.more_is_better is None:
            found = {"better": "higher", "worse": "lower"}[found]
        return (
            found if self.p_adjusted <= LEVEL else f"cannot tell: {found} by itself, but not among {self.tests} tests"
        )


def compare_tasks(scores: Sequence[Score], before: str, after: str, params: CompareParams) -> list[TaskChange | None]:
    """Compare two arms by each score, in pairs; None where a score has no units."""
    alone = [_compare(score, before, after, params) for score in scores]
    adjusted = holm([found.p_value for found in alone if found])
    rest = iter(adjusted)
    return [found and replace(found, p_adjusted=next(rest), tests=len(adjusted)) for found in alone]


def _compare(score: Score, before: str, after: str, params: CompareParams) -> TaskChange | None:
    if score.units is None:
        return None
    gains = (score.units[after] - score.units[before]).to_numpy()
    found, p_value = change(gains, score.units["size"].to_numpy(float), params.resamples, params.seed)
    if score.ratio:
        found = Interval(*np.exp(found).tolist())
    rose, fell = int((gains > 0).sum()), int((gains < 0).sum())
    better, worse = (fell, rose) if score.more_is_better is False else (rose, fell)
    return TaskChange(found, score.ratio, score.more_is_better, p_value, p_value, 1, len(gains), better, worse)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests, so that at most 5 % of such sets have any at or below 0.05 by chance.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def lay_out(scores: Sequence[Score], params: CompareParams, **measured: Any) -> dict[str, Any]:
    """Lay out scores as metrics/tasks.json holds them, with what they say.

    base -> tuned is what tuning bought. tuned -> released asks whether what is shipped still does it: besides that
    step, base -> released would hold the step from quantised to other weights, which is none of the adapter's.

    Args:
        measured: Under which adapter, and how.
    """
    tasks: dict[str, dict[str, Any]] = {score.task: {} for score in scores}
    for score in scores:
        values = {arm: value if math.isfinite(value) else None for arm, value in score.values.items()}
        tasks[score.task][score.metric] = dict[str, Any](values)
    lines = []
    for before, after in pairwise(scores[0].values):
        changes = compare_tasks(scores, before, after, params)
        lines += ["", *tabulate(scores, changes, (before, after), (before, after))]
        for score, found in zip(scores, changes, strict=True):
            if found:
                tasks[score.task][score.metric][f"{before}_to_{after}"] = to_metrics(found)
    lines += ["", LEGEND]
    asked = {f"{score.task} {score.metric}": score.asked for score in scores}
    # DVC takes every value for a metric but those in lists.
    return {"tasks": tasks, "measured": [measured | {"asked": asked}], "in_words": lines[1:]}


def tabulate(
    scores: Sequence[Score], changes: Sequence[TaskChange | None], arms: tuple[str, str], titles: tuple[str, str]
) -> list[str]:
    """Put the scores of two arms, how they differ and the verdicts in the lines of a table."""
    columns = ("task", "metric", *titles, *COLUMNS)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for score, found in zip(scores, changes, strict=True):
        cells = [score.task, score.metric, *(f"{score.values[arm]:.4f}" for arm in arms)]
        if found:
            sign, form = ("times ", ".4f") if found.ratio else ("", "+.4f")
            cells.append(f"{sign}{found.change.value:{form}} ({found.change.bounds(form)})")
            cells += [f"{count:,}" for count in (found.better, found.worse, found.units)]
            cells += [f"{found.p_value:.4f}", f"{found.p_adjusted:.4f}", found.verdict]
        else:
            cells += [""] * (len(COLUMNS) - 1) + ["no paired test: not a mean of its samples"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
