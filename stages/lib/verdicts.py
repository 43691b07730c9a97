"""Verdicts: whether the tuned model of one commit is better than that of another, on answers and on losses."""

import io
import math
from dataclasses import dataclass

import pandas as pd

from stages.lib.history import (
    ANSWERING,
    NLL,
    Run,
    compare_runs,
    describe_recipe,
    read,
    read_arithmetic,
    read_flat_params,
    read_metrics,
    seed_noise,
)
from stages.lib.metrics import METRICS
from stages.lib.params import Mistake
from stages.lib.records import Interval
from stages.lib.scoring.intervals import change
from stages.lib.scoring.protocol import CompareParams

ANSWERS = METRICS / "answers.csv"


@dataclass(frozen=True)
class AnswerComparison:
    """How the scores of two tuned models' answers to the same conversations differ."""

    decider: str  # the score, as people write it
    answers: int
    before: float  # mean score
    after: float
    difference: Interval
    gained: int  # answers that became better
    lost: int

    @property
    def verdict(self) -> str:
        """Say in words what the interval allows to be said."""
        return self.difference.verdict() if self.gained or self.lost else "the same"

    def __str__(self) -> str:
        points = Interval(*(100 * value for value in self.difference))
        return (
            f"**The tuned model's answers: {self.verdict}.** {self.decider.capitalize()} {self.before:.1%} to "
            f"{self.after:.1%} of {self.answers:,}, by {points.value:+.1f} points (95 % interval: "
            f"{points.bounds('+.1f')}); {self.gained} became better, {self.lost} worse."
        )


def judge_answers(before: Run, after: Run, params: CompareParams) -> list[str]:
    """Say whether the tuned model's answers are better than they were; nothing where one of the two answered none."""
    if read_answers(before) is None or read_answers(after) is None:
        return []
    if unlike := computed_unlike(before, after, ANSWERING):
        return [f"No verdict on answers. {unlike}"]
    found = compare_answers(before, after, params)
    return [str(found) if found else "The two answered other conversations, or are graded otherwise."]


def compare_answers(before: Run, after: Run, params: CompareParams) -> AnswerComparison | None:
    """Compare the answers of two commits in pairs; None where they have none, or others, or graded otherwise."""
    old, new = read_answers(before), read_answers(after)
    decider = read_decider(after)
    if old is None or new is None or list(old.index) != list(new.index) or read_decider(before) != decider:
        return None
    gain, units = new["tuned"] - old["tuned"], new["unit"]
    sums, sizes = gain.groupby(units).sum().to_numpy(), units.groupby(units).size().to_numpy(float)
    return AnswerComparison(
        decider=decider.replace("_", " "),
        answers=len(new),
        before=old["tuned"].mean(),
        after=new["tuned"].mean(),
        difference=change(sums, sizes, params.resamples, params.seed).interval,
        gained=int((gain > 0).sum()),
        lost=int((gain < 0).sum()),
    )


def read_answers(run: Run) -> pd.DataFrame | None:
    """Read the scores of a commit's answers; None where it has none."""
    try:
        table = pd.read_csv(io.StringIO(read(run, ANSWERS)), dtype={"id": str}, keep_default_na=False)
    except Mistake:
        return None
    return None if table.empty else table.set_index("id").sort_index()


def read_decider(run: Run) -> str:
    """Return the score by which a commit's answers were judged; nothing of commits from before there were any."""
    params = read_flat_params(run)
    metric = params.get("answers.metric", "")
    return f"pattern {params['answers.pattern']!r}" if metric == "pattern" else metric


def judge(before: Run, after: Run, params: CompareParams) -> list[str]:
    """Say whether the tuned model is better than it was by the losses of held-out documents, and what is left open."""
    found = compare_runs(before, after, params)
    if unlike := computed_unlike(before, after, NLL.file):
        return [f"No verdict on losses. {unlike}"]
    if found is None:
        return ["The two scored different documents: their losses do not compare."]
    ratio, difference = found.perplexity_ratio, found.nll_difference.value
    if difference == 0 and not found.documents_better:  # no gain, so no loss either
        return ["The tuned model gives every held-out document the same loss as before."]
    noise = seed_noise(before)
    judged = found.verdict
    if noise is not None and abs(difference) <= noise and judged in ("better", "worse"):
        judged = f"{judged} on these documents, but no more than seeds make"
    told = [
        f"**The tuned model: {judged}.** Perplexity times {ratio.value:.4f} (95 % interval: {ratio.bounds()}; "
        f"paired over {found.documents} documents, lower on {found.documents_better} of them)."
    ]
    told += [f"It cannot be told: {found.limits}."] if judged == "cannot tell" else []
    return [*told, weigh(difference, noise)]


def computed_unlike(before: Run, after: Run, file: str) -> str:
    """Say what two commits were computed in where that differs, and so would their results; else nothing.

    Args:
        file: Of metrics, as `read_arithmetic` takes it.
    """
    first, second = (read_arithmetic(run, file) or "an arithmetic not recorded" for run in (before, after))
    if first == second:
        return ""
    return (
        f"Before was computed in {first}, after in {second}, and rounding alone makes a difference: to compare, "
        "run `dvc repro -f` here with the earlier parameters, and commit what it gives."
    )


def describe(run: Run) -> list[str]:
    """Say what tuning did in a commit, of its adapter, and of its recipe where several seeds ran."""
    words = [read_metrics(run, name).get("in_words") for name in ("answers", "compare")]
    told = [f"After, this adapter: {line}." for line in words if line]
    return told + ([f"After, {recipe}."] if (recipe := describe_recipe(run)) else [])


def weigh(difference: float, noise: float | None) -> str:
    """Say whether another seed might have made the difference."""
    if noise is None:
        return "Both have one seed; `python -m commands.seeds 3` on the commit before tells how far seeds move it."
    beyond = "more than" if abs(difference) > noise else "no more than"
    return (
        f"It is {beyond} two seeds of the commit before may differ: they move perplexity by a factor of up to "
        f"{math.exp(noise):.4f} (95 %)."
    )
