"""Tasks of lm-evaluation-harness: the samples of several arms side by side, and what they make of each metric."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.lib.data.units import normalized
from stages.lib.params import Mistake

Results = Mapping[str, Any]  # what the harness returns of one arm
Sample = dict[str, Any]  # one of its samples: a document of a task, with what a filter made of the model's answer
SAME = ("doc_hash", "prompt_hash", "target_hash", "arguments", "metrics")  # in all arms, or they make no pair
HASH_DIGITS = 12


class Score(NamedTuple):
    """A metric of a task, or of a group of tasks, under each arm.

    Where it is a sum over documents, divided by the sum of their sizes, or exp of that, `units` has both sums of each
    piece of evidence; equal documents are one.
    """

    task: str
    metric: str  # and the filter of answers, if the task names one: `exact_match,strict-match`
    values: dict[str, float]  # as the harness found them, by arm
    more_is_better: bool | None  # None where the task does not say
    asked: str = ""  # a hash of all prompts: two runs with the same one asked the same
    ratio: bool = False  # a perplexity, exp(sum / size): two arms compare by their ratio, not by their difference
    units: pd.DataFrame | None = None  # `size`, and a column of sums for each arm; None where it is no such metric


def pair_samples(task: str, arms: Mapping[str, Sequence[Sample]]) -> list[dict[str, Sample]]:
    """Put each sample of a task beside that of the same document and filter under the other arms.

    Raises:
        Mistake: The arms were not asked the same.
    """
    by_key = {arm: {(row["doc_id"], row["filter"]): row for row in rows} for arm, rows in arms.items()}
    first, *others = by_key.values()
    for other in others:
        for key in sorted(first.keys() | other.keys()):
            if key not in first or key not in other or any(first[key][name] != other[key][name] for name in SAME):
                raise Mistake(
                    f"{task}: expected the same documents, prompts and targets under all arms, found document {key[0]} "
                    "to differ; nothing is written. A task that draws any of them at random must set a seed itself"
                )
    return [{arm: rows[key] for arm, rows in by_key.items()} for key in first]


def unit_of(sample: Sample) -> str:
    """Return a short hash of what is asked and what is right: the same for equal questions, however they are written.

    `question` is what the task asks of the document, without few-shot examples. A task that asks otherwise than in
    text has the hash of the document.
    """
    asked = sample["question"]
    choices = [list(arguments)[1:] for arguments in sample["arguments"]]
    parts = [asked, *map(str, choices), str(sample["target"])] if isinstance(asked, str) else [sample["doc_hash"]]
    return _hash(map(normalized, parts))


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()[:HASH_DIGITS]


def read_scores(found: Mapping[str, Results]) -> list[Score]:
    """Read what the harness found, by arm.

    A group of tasks with a value of its own stands for its tasks, which are not listed.
    """
    arms, first = list(found), next(iter(found.values()))
    pairs = {
        task: pair_samples(task, {arm: results["samples"][task] for arm, results in found.items()})
        for task in first["samples"]
    }
    groups = {name for name, row in first["results"].items() if name in first["group_subtasks"] and _metrics(row)}
    covered = {task for group in groups for task in _below(group, first["group_subtasks"])}
    scores = []
    for name, row in first["results"].items():
        tasks = [task for task in dict.fromkeys((name, *_below(name, first["group_subtasks"]))) if task in pairs]
        for key in _metrics(row) if name not in covered else []:
            metric, _, kind = key.partition(",")
            values = {arm: float(found[arm]["results"][name][key]) for arm in arms}
            direction = first["higher_is_better"].get(name, {}).get(metric)
            label = metric if kind == "none" else key
            rows = [(task, pair) for task in tasks for pair in pairs[task] if _has(pair[arms[0]], metric, kind)]
            asked = _hash(str(pair[arms[0]]["arguments"]) for _, pair in rows)
            scores.append(_score(Score(name, label, values, direction, asked), metric, rows))
    return scores


def _metrics(row: Mapping[str, Any]) -> list[str]:
    """List the metrics of a task, `name,filter`, but for the standard errors beside them."""
    keys = [key for key, value in row.items() if "," in key and isinstance(value, Real)]
    return [key for key in keys if not key.partition(",")[0].endswith("_stderr")]


def _below(group: str, subtasks: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for task in subtasks.get(group, []) for name in (task, *_below(task, subtasks))]


def _has(sample: Sample, metric: str, kind: str) -> bool:
    return sample["filter"] == kind and metric in sample["metrics"]


def _score(score: Score, metric: str, rows: Sequence[tuple[str, dict[str, Sample]]]) -> Score:
    """Add units to a score where its samples make the very value that the harness found, under every arm."""
    arms = list(score.values)
    numbers = [[_numbers(pair[arm][metric]) for arm in arms] for _, pair in rows]
    lengths = {len(found) for row in numbers for found in row}
    if len(lengths) != 1 or not lengths <= {1, 2}:
        return score
    table = np.array(numbers)  # [samples, arms, 1 or 2]
    for sizes, sums, ratio in _forms(table, pd.Series([task for task, _ in rows])):
        with np.errstate(over="ignore"):
            made = np.exp(sums.sum(0) / sizes.sum()) if ratio else sums.sum(0) / sizes.sum()
        if np.isfinite(sums).all() and np.allclose(made, list(score.values.values()), rtol=1e-9, atol=1e-12):
            units = pd.DataFrame(sums, columns=pd.Index(arms)).assign(size=sizes)
            names = pd.Series([unit_of(pair[arms[0]]) for _, pair in rows], name="unit")
            return score._replace(ratio=ratio, units=units.groupby(names).sum())
    return score


def _numbers(value: Any) -> tuple[float, ...]:
    """Return a sample's number, or its log-likelihood and length; nothing where it is something else."""
    parts = value if isinstance(value, tuple | list) else (value,)
    return tuple(map(float, parts)) if all(isinstance(part, Real | np.bool_) for part in parts) else ()


def _forms(table: np.ndarray, tasks: pd.Series) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield sizes [samples], sums [samples, arms] and whether exp is taken, in the ways the harness aggregates."""
    if table.shape[2] == 1:
        ones, numbers, per_task = np.ones(len(table)), table[:, :, 0], tasks.groupby(tasks).transform("size").to_numpy()
        yield ones, numbers, False  # mean
        yield ones, -numbers, True  # perplexity, of log-likelihoods
        yield 1 / per_task, numbers / per_task[:, None], False  # mean of the means of a group's tasks
    elif (table[:, :, 1] == table[:, :1, 1]).all() and (table[:, :, 1] > 0).all():
        sizes, losses = table[:, 0, 1], -table[:, :, 0]
        yield sizes, losses, True  # word_perplexity, byte_perplexity
        yield sizes, losses / math.log(2), False  # bits_per_byte


def keep(task: str, found: Mapping[str, Results]) -> list[dict[str, Any]]:
    """Return the samples of a task as they are kept: what all arms were asked once, and what each answered."""
    told = ("doc_id", "filter", "doc", "target", "arguments")
    rows = []
    for pair in pair_samples(task, {arm: results["samples"][task] for arm, results in found.items()}):
        first = next(iter(pair.values()))
        answers = {arm: {name: sample[name] for name in ("resps", "filtered_resps", *sample["metrics"])}
                   for arm, sample in pair.items()}  # fmt: skip
        rows.append({name: first[name] for name in told} | answers)
    return rows


def to_csv(scores: Sequence[Score]) -> str:
    """Write the units of scores, in full precision."""
    tables = [
        score.units.reset_index().assign(task=score.task, metric=score.metric)
        for score in scores
        if score.units is not None
    ]
    columns = ["task", "metric", "unit", "size", *scores[0].values]
    return pd.concat([pd.DataFrame(columns=columns), *tables])[columns].to_csv(index=False)
