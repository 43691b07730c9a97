"""Tasks in history: what two commits' tuned models made of the same samples."""

import io
from typing import Any

import pandas as pd

from stages.lib.history import Run, adapter_in, read, read_metrics
from stages.lib.metrics import METRICS
from stages.lib.params import Mistake
from stages.lib.scoring.protocol import CompareParams
from stages.lib.scoring.task_comparison import compare_tasks, tabulate
from stages.lib.scoring.task_scores import Score

TASKS = "tasks"  # metrics/tasks.json, and metrics/tasks.csv with the samples' numbers


def judge_tasks(before: Run, after: Run, params: CompareParams) -> str:
    """Say what the tuned model of a commit makes of tasks, beside that of another; nothing where none was measured."""
    old, new = read_tasks(before), read_tasks(after)
    if new is None:
        return ""
    within = "\n".join(["After, this adapter:", "", *new["in_words"]])
    if old is None or old["measured"][0]["adapter"] == new["measured"][0]["adapter"]:
        return within
    earlier, later = read_units(before, old), read_units(after, new)
    pairs = [_pair(earlier[key], score) for key, score in later.items() if key in earlier]
    scores = [score for score in pairs if score]
    table = tabulate(scores, compare_tasks(scores, "before", "after", params), ("before", "after"), ("before", "after"))
    unlike = "The two were not asked the same, or not in one arithmetic that both record."
    return "\n\n".join(["\n".join(table) if scores else unlike, within])


def read_tasks(run: Run) -> dict[str, Any] | None:
    """Read what a commit's adapter makes of tasks; None where nothing is there, or it is of another adapter."""
    try:
        found = read_metrics(run, TASKS)
    except Mistake:
        return None
    return found if found["measured"][0]["adapter"] == adapter_in(read(run, "dvc.lock")) else None


def read_units(run: Run, found: dict[str, Any]) -> dict[tuple[str, str], Score]:
    """Read the scores of a commit's tuned model that have units, by task and metric."""
    table = pd.read_csv(io.StringIO(read(run, METRICS / f"{TASKS}.csv")), keep_default_na=False)
    measured, scores = found["measured"][0], {}
    for (task, metric), units in table.groupby(["task", "metric"], sort=False):
        assert isinstance(task, str) and isinstance(metric, str)
        row = found["tasks"][task][metric]
        change = row["base_to_tuned"]
        way = [measured["harness"], measured["seeds"], measured.get("arithmetic", "")]
        asked = " ".join(map(str, [*way, measured["asked"][f"{task} {metric}"]]))
        score = Score(task, metric, {"tuned": row["tuned"]}, change["more_is_better"], asked, change["ratio"])
        scores[task, metric] = score._replace(units=units.set_index("unit"))
    return scores


def _pair(old: Score, new: Score) -> Score | None:
    """Put the tuned models of two commits side by side; None where they were not asked the same."""
    assert old.units is not None and new.units is not None
    if old.asked != new.asked or not old.units["size"].equals(new.units["size"]):
        return None
    units = pd.DataFrame({"before": old.units["tuned"], "after": new.units["tuned"], "size": new.units["size"]})
    return new._replace(values={"before": old.values["tuned"], "after": new.values["tuned"]}, units=units)
