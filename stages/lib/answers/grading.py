"""Grading: answers to held-out conversations beside their references, and whether tuning made them better."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

import pandas as pd

from stages.lib.answers.protocol import GradeParams
from stages.lib.data.units import normalized
from stages.lib.data.words import words_of
from stages.lib.params import Mistake
from stages.lib.records import Interval
from stages.lib.scoring.intervals import FEWEST_UNITS, change

NUMBER = re.compile(  # 1,000 and 1 000 and 1000 are one; a decimal comma and fractions are not read
    r"(?<![\w.])(?:[-\u2212](?=[$£€\d.]))?[$£€]?"
    r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3}|\ \d{3}(?!\d))+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d{1,3})?(?!\w)"
)
Row = dict[str, Any]  # what generate keeps of an answer: stages/lib/answers/conversing.py
Score = Callable[[str, str], float]  # of a reference and an answer


@dataclass(frozen=True)
class Scored:
    """A score of the answers of both models: means over answers, and their difference."""

    base: float
    tuned: float
    difference: Interval  # tuned minus base
    p_value: float  # of the difference, two-sided: by McNemar's exact test of single yes or no, else by sign flips
    gained: int  # answers that score more than before
    lost: int  # answers that score less


@dataclass(frozen=True)
class Grades:
    """What metrics/answers.json holds; a score is left out where references do not allow for it."""

    answers: int
    units: int  # groups of conversations, or single ones; those of equal prompts are one
    effective_units: float  # (sum of sizes)² / sum of squares (Kish 1965): fewer where groups are unequal
    exact_match: Scored
    token_f1: Scored
    ended: Scored  # share of answers that the model ended by itself
    words: Scored
    last_number: Scored | None = None
    json_valid: Scored | None = None
    json_fields: Scored | None = None
    pattern: Scored | None = None

    def to_words(self, name: str) -> str:
        """Say what the deciding score allows to be said of the answers."""
        found: Scored = getattr(self, name)
        verdict = found.difference.verdict()
        if self.units < FEWEST_UNITS:
            verdict += f" ({FEWEST_UNITS} answers at least are needed, or groups of them)"
        return (
            f"answers, base to tuned: {name.replace('_', ' ')} {found.base:.1%} to {found.tuned:.1%} of "
            f"{self.answers:,}, by {100 * found.difference.value:+.1f} points (95 % interval: "
            f"{Interval(*(100 * value for value in found.difference)).bounds('+.1f')}): {verdict}; "
            f"{found.gained:,} became better, {found.lost:,} worse"
        )


def exact_match(reference: str, answer: str) -> float:
    """Return 1 where both are the same but for white space, invisible characters and Unicode's spellings."""
    return float(normalized(reference) == normalized(answer))


def token_f1(reference: str, answer: str) -> float:
    """Return the harmonic mean of the shares of words that the two have in common (Rajpurkar et al. 2016)."""
    expected, found = Counter(words_of(reference)), Counter(words_of(answer))
    if not expected or not found:
        return exact_match(reference, answer)  # signs and pictures are no words
    common = (expected & found).total()
    return 2 * common / (expected.total() + found.total())


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text: that of `#### $1,000` is 1000."""
    found = NUMBER.findall(text)
    return Decimal(re.sub(r"[,$£€\s]", "", found[-1]).replace("\u2212", "-")) if found else None


def read_object(text: str) -> dict[str, Any] | None:
    """Read a text that is one JSON object and nothing else; NaN and a name that comes twice are none of JSON's."""
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=Decimal, object_pairs_hook=_once)
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def json_fields(reference: str, answer: str) -> float:
    """Return the share of fields, of those of either, that both have with the same value."""
    expected, found = read_object(reference) or {}, read_object(answer)
    if found is None:
        return 0.0
    names = expected.keys() | found.keys()
    same = sum(name in expected and name in found and _same(expected[name], found[name]) for name in names)
    return same / len(names) if names else 1.0


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _same(one: Any, other: Any) -> bool:
    """Compare JSON values: numbers by value, texts as `exact_match` does; in Python true is 1."""
    if isinstance(one, str) and isinstance(other, str):
        return bool(exact_match(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def find(pattern: str, text: str) -> str | None:
    """Return the first group of what a pattern finds first, or all of it where it has no group."""
    found = re.search(pattern, text)
    return found and (found[1] if found.re.groups else found[0])


def scores_for(references: Sequence[str], pattern: str) -> dict[str, Score]:
    """Return the scores that these references allow for, by name."""
    scores: dict[str, Score] = {"exact_match": exact_match, "token_f1": token_f1}
    if all(last_number(text) is not None for text in references):
        scores["last_number"] = lambda reference, answer: float(last_number(reference) == last_number(answer))
    if all(read_object(text) is not None for text in references):
        scores["json_valid"] = lambda reference, answer: float(read_object(answer) is not None)
        scores["json_fields"] = json_fields
    if pattern and all(find(pattern, text) is not None for text in references):
        scores["pattern"] = lambda reference, answer: float(find(pattern, reference) == find(pattern, answer))
    return scores


def score_answers(base: Sequence[Row], tuned: Sequence[Row], pattern: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score each answer of both models in every way: two tables, a row an answer, a column a score."""
    assert [row["id"] for row in base] == [row["id"] for row in tuned]
    scores = scores_for([row["reference"] for row in base], pattern)
    tables = []
    for rows in (base, tuned):
        found = {name: [score(row["reference"], row["text"]) for row in rows] for name, score in scores.items()}
        counts = {"ended": [float(row["ended"]) for row in rows], "words": [len(words_of(row["text"])) for row in rows]}
        tables.append(pd.DataFrame(found | counts, dtype=float))
    return tables[0], tables[1]


def units_of(rows: Sequence[Row]) -> pd.Series:
    """Name the piece of evidence that each answer belongs to: its group, or else its prompt."""
    prompts = [json.dumps(_normal([row["messages"], row["tools"]]), sort_keys=True) for row in rows]
    names = [row["group"] or f"\0{prompt}" for row, prompt in zip(rows, prompts, strict=True)]
    return pd.Series(pd.factorize(pd.Series(names))[0], name="unit")


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _normal(part) for name, part in value.items()}
    return [_normal(part) for part in value] if isinstance(value, list) else normalized(str(value))


def grade(base: pd.DataFrame, tuned: pd.DataFrame, units: pd.Series, params: GradeParams) -> Grades:
    """Compare the scores of both models' answers, unit by unit.

    Raises:
        Mistake: The references do not allow for the score that is to decide.
    """
    if params.metric not in base:
        needed = {
            "last_number": "a number",
            "json_fields": "a JSON object",
            "pattern": f"what {params.pattern!r} finds",
        }
        raise Mistake(
            f"params.yaml: answers.metric: {params.metric} needs {needed[params.metric]} in the answer of every "
            "held-out conversation, which not all have"
        )
    sizes = units.groupby(units).size().to_numpy(float)

    def compare(name: str) -> Scored:
        gain = tuned[name] - base[name]
        found = change(gain.groupby(units).sum().to_numpy(), sizes, params.resamples, params.seed)
        means = float(base[name].mean()), float(tuned[name].mean())
        return Scored(*means, *found, gained=int((gain > 0).sum()), lost=int((gain < 0).sum()))

    names = [field.name for field in fields(Grades) if field.name in base]
    effective = float(sizes.sum() ** 2 / (sizes**2).sum())
    return Grades(len(base), len(sizes), effective, **{name: compare(name) for name in names})
