"""Judgement: what people are asked about pairs of texts, what they may answer, and what they did."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field, ValidationError

from stages.lib.params import Section

RATINGS = Path("data/ratings")
KEY = RATINGS / "key.json"
ANSWERS = RATINGS / "answers"
CRITERIA = {  # and what 1, 3 and 5 mean
    "fluency": (
        "unreadable: words in disorder, or one phrase over and over",
        "understandable, with several mistakes or repetitions",
        "reads as if a careful person wrote it",
    ),
    "relevance": (
        "has nothing to do with the beginning",
        "stays near the subject, but wanders off or does not complete the beginning",
        "continues exactly what was begun",
    ),
    "correctness": (
        "false, or contradicts itself",
        "partly true, or true but for a detail",
        "everything it states is true",
    ),
}
Likert = Annotated[int, Field(ge=1, le=5)]


class Item(NamedTuple):
    """A pair of texts to rate."""

    id: str
    kind: str  # compared; or a control: disordered, same
    prompt: str
    texts: tuple[str, str]
    arms: tuple[str, str]  # whose they are
    couple: int  # pairs of one couple are turned together


class Key(NamedTuple):
    """A sheet, and whose text is whose."""

    sheet: str  # its version: a hash of its contents
    items: list[Item]

    def to_json(self) -> str:
        """Write it, an item a line."""
        items = ",\n  ".join(json.dumps(item._asdict(), ensure_ascii=False) for item in self.items)
        return f'{{"sheet": "{self.sheet}", "items": [\n  {items}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Key":
        """Read what `to_json` wrote."""
        found = json.loads(text)
        items = [Item(**item | {"texts": tuple(item["texts"]), "arms": tuple(item["arms"])}) for item in found["items"]]
        return cls(found["sheet"], items)


class Ratings(Section):
    """Of one text; None where nothing was said."""

    fluency: Likert | None = None
    relevance: Likert | None = None
    correctness: Likert | Literal["cannot judge"] | None = None


class Answer(Section):
    """Of one rater on one item, by the order of its texts in the key, not by the sides that the rater saw."""

    item: str
    left: Literal[0, 1]  # the text that stood on the left, or first
    ratings: Annotated[list[Ratings], Field(min_length=2, max_length=2)]
    preference: Literal[0, 1, "tie", "both bad"] | None = None


class Collected(NamedTuple):
    """What the answers' files hold."""

    votes: pd.DataFrame  # rater, item, kind, criterion (or preference), arm, value
    refused: list[str]  # what was left out, and why


def read_answers(folder: Path, key: Key) -> Collected:
    """Read every file of answers, leave out what is no valid answer to the sheet, and say what that was."""
    accepted: dict[tuple[str, str], Answer] = {}
    refused = []
    for file in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".csv")):
        try:
            rater, answers = (read_json if file.suffix == ".json" else read_csv)(file, key)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
            refused.append(f"{file.name}: {error if str(error).startswith('expected') else 'not a file of answers'}")
            continue
        for number, found in enumerate(answers, start=1):
            try:
                answer = Answer.model_validate(found)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                item = found.get("item") if isinstance(found, dict) else None
                named_item = f"item {item}" if item else f"answer {number}"
                refused.append(f"{file.name}: {named_item}: {where}: {first['msg']}, found {first['input']!r:.40}")
                continue
            if answer.item not in {item.id for item in key.items}:
                refused.append(f"{file.name}: item {answer.item}: the sheet has no such item")
            elif (rater, answer.item) in accepted:
                refused.append(f"{file.name}: item {answer.item}: {rater} has answered it already")
            else:
                accepted[rater, answer.item] = answer
    return Collected(table_votes(accepted, key), refused)


def read_json(file: Path, key: Key) -> tuple[str, list[Any]]:
    """Read what the page saves."""
    found = json.loads(file.read_text(encoding="utf-8"))
    check_sheet(found["sheet"], key)
    return _rater(found["rater"]), list(found["answers"])


def read_csv(file: Path, key: Key) -> tuple[str, list[Any]]:
    """Read a spreadsheet; its rater is named by the file: ratings-<rater>.csv."""
    text = file.read_text(encoding="utf-8-sig")
    rows = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in text.splitlines()[0] else ",")
    answers = []
    for row in rows:
        check_sheet(row["sheet"], key)
        ratings = [{name: row[f"{name}_{side}"].strip().lower() for name in CRITERIA} for side in "ab"]
        preference = row["preference"].strip().lower()
        if any(itertools.chain(preference, *(rating.values() for rating in ratings))):
            said = [{name: _number(value) for name, value in rating.items() if value} for rating in ratings]
            answer = {"item": row["item"].strip(), "left": 0, "ratings": said}
            answers.append(
                answer | ({"preference": {"a": 0, "b": 1}.get(preference, preference)} if preference else {})
            )
    return _rater(file.stem.removeprefix("ratings-")), answers


def check_sheet(sheet: Any, key: Key) -> None:
    if sheet != key.sheet:
        raise ValueError(f"expected answers to sheet {key.sheet}, found {sheet!r:.40}: another version's")


def table_votes(accepted: dict[tuple[str, str], Answer], key: Key) -> pd.DataFrame:
    """Put answers in a table, a row for each number or preference given, with the arm that it was given to.

    The arm of a tie is `tie`, of two bad texts `both bad`.
    """
    items = {item.id: item for item in key.items}
    rows = []
    for (rater, number), answer in accepted.items():
        item = items[number]
        for arm, ratings in zip(item.arms, answer.ratings):
            given = ratings.model_dump(exclude_none=True).items()
            rows += [(rater, number, item.kind, criterion, arm, value) for criterion, value in given]
        if answer.preference is not None:
            chosen = item.arms[answer.preference] if isinstance(answer.preference, int) else answer.preference
            if item.kind == "same" and isinstance(answer.preference, int):
                chosen = "one of two equal texts"
            rows.append((rater, number, item.kind, "preference", chosen, None))
    return pd.DataFrame(rows, columns=["rater", "item", "kind", "criterion", "arm", "value"])


def _rater(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError("expected the rater's name")
    return name.strip()


def _number(value: str) -> int | str:
    return int(value) if value.isdecimal() else value
