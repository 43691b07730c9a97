"""Judgement: what people are asked about pairs of texts, what they may answer, and what they did."""

import csv
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field, ValidationError

from stages.lib.data.units import normalized
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
        "has nothing to do with the prompt",
        "stays near the subject, but wanders off or is incomplete",
        "does exactly what was asked, or continues what was begun",
    ),
    "correctness": (
        "false, or contradicts itself",
        "partly true, or true but for a detail",
        "everything it states is true",
    ),
}
LEAST_ANSWERS = 3  # of a copy: with fewer, two people may well have said the same
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

    @property
    def said(self) -> set[tuple[str, str, Any]]:
        """Each thing that was said, of which item and text, whichever side it stood on."""
        given = [(str(n), ratings.model_dump(exclude_none=True)) for n, ratings in enumerate(self.ratings)]
        said = {(self.item, name + text, value) for text, ratings in given for name, value in ratings.items()}
        return said if self.preference is None else said | {(self.item, "preference", self.preference)}


class Answers(NamedTuple):
    """A file's valid answers to the sheet."""

    file: str
    saved: str
    rater: str
    answers: list[Answer]

    @property
    def said(self) -> set[tuple[str, str, Any]]:
        """Each thing that the file says."""
        return set().union(*(answer.said for answer in self.answers))


class Collected(NamedTuple):
    """What the answers' files hold."""

    votes: pd.DataFrame  # rater, item, kind, criterion (or preference), arm, value
    refused: list[str]  # what was left out, and why


def read_answers(folder: Path, key: Key) -> Collected:
    """Read every file of answers, leave out what is no valid answer to the sheet or said before, and say what.

    The latest file of a rater comes first. Items with equal prompts are one item, that a rater answers once.
    """
    files, refused = [], []
    for file in sorted(folder.iterdir()):
        if file.name in ("README.md", ".gitignore"):
            continue
        name = file.name.encode(errors="replace").decode()
        try:
            reader = {".json": read_page, ".csv": read_spreadsheet}[file.suffix.lower()]
            saved, rater, found = reader(file)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, csv.Error):
            refused.append(f"{name}: not a file of answers")
            continue
        answers, wrong = check_answers(name, found, key)
        files.append(Answers(name, saved, rater, answers))
        refused += wrong
    copies = find_copies(files)
    refused += copies.values()
    firsts: dict[tuple[str, str], str] = {}
    unit = {item.id: firsts.setdefault((item.kind, normalized(item.prompt)), item.id) for item in key.items}
    accepted: dict[tuple[str, str], Answer] = {}
    for file in sorted(files, key=lambda file: file.saved, reverse=True):
        for answer in file.answers if file.file not in copies else []:
            if (file.rater, unit[answer.item]) in accepted:
                where = f"{file.file}: item {answer.item!r:.40}"
                what = "it" if accepted[file.rater, unit[answer.item]].item == answer.item else "its prompt"
                refused.append(f"{where}: {file.rater!r:.60} has answered {what} already")
            else:
                accepted[file.rater, unit[answer.item]] = answer
    return Collected(table_votes(accepted, key), refused)


def check_answers(name: str, answers: list[tuple[Any, Any]], key: Key) -> tuple[list[Answer], list[str]]:
    """Return a file's answers to the sheet that say something, and what was refused and why."""
    valid, refused = [], []
    known = {item.id for item in key.items}
    for number, (sheet, found) in enumerate(answers, start=1):
        item = found.get("item") if isinstance(found, dict) else None
        where = f"{name}: " + (f"item {item!r:.40}" if item else f"answer {number}")
        try:
            answer = Answer.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            refused.append(f"{where}: {place}: {first['msg']}, found {first['input']!r:.40}")
            continue
        if sheet != key.sheet:
            refused.append(f"{where}: expected an answer to sheet {key.sheet}, found one to {sheet!r:.40}")
        elif answer.item not in known:
            refused.append(f"{where}: the sheet has no such item")
        elif answer.said:
            valid.append(answer)
    return valid, refused


def find_copies(files: list[Answers]) -> dict[str, str]:
    """Find the files that say nothing but what another says too: of one rater, whatever names they bear.

    A copy under a second name would be a second rater, who always agrees. The fuller file counts; of equal ones that
    whose name comes first. Two people who rate three pairs in full hardly ever say the same seven things of each; who
    only prefer may, and then count as one: that takes votes away and never adds any. A file of fewer than
    `LEAST_ANSWERS` always counts: whether it is a copy cannot be told, and it adds votes but no prompt.

    Returns:
        By the name of a file why it does not count.
    """
    kept: list[Answers] = []
    copies = {}
    for file in sorted(files, key=lambda file: (-len(file.said), file.file)):
        twin = next((other for other in kept if file.said <= other.said), None)
        if twin is None or len({answer.item for answer in file.answers}) < LEAST_ANSWERS:
            kept.append(file)
        else:
            what = "the same answers as" if file.said == twin.said else "no other answers than"
            copies[file.file] = f"{file.file}: {what} {twin.file}: the two count as one rater"
    return copies


def read_page(file: Path) -> tuple[str, str, list[tuple[Any, Any]]]:
    """Read what the page saves: when, by whom, and answers, each with the sheet that it answers."""
    found = json.loads(file.read_text(encoding="utf-8-sig"))
    return str(found.get("saved", "")), rater_of(found["rater"]), [(found["sheet"], a) for a in list(found["answers"])]


def read_spreadsheet(file: Path) -> tuple[str, str, list[tuple[Any, Any]]]:
    """Read a spreadsheet likewise; its rater is named by the file: ratings-<rater>.csv."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    header = re.match(r"\"?sheet\"?([,;\t])", text)
    if not header:
        raise ValueError("no header")
    answers = []
    for cells in csv.DictReader(io.StringIO(text), delimiter=header[1]):
        row = {name: (cell or "").strip() for name, cell in cells.items() if name}
        ratings = [{name: row[f"{name}_{side}"].lower() for name in CRITERIA} for side in "ab"]
        said = [{name: _number(value) for name, value in rating.items() if value} for rating in ratings]
        preference = row["preference"].lower()
        if any(said) or preference:
            answer = {"item": row["item"], "left": 0, "ratings": said}
            chosen = {"preference": {"a": 0, "b": 1}.get(preference, preference)} if preference else {}
            answers.append((row["sheet"], answer | chosen))
    return "", rater_of(file.stem.removeprefix("ratings-")), answers


def rater_of(name: Any) -> str:
    """Return what tells a rater from others, however the name is written.

    Raises:
        ValueError: It is no name.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError("expected the rater's name")
    return re.sub(r"\W+", "-", unicodedata.normalize("NFKC", name).casefold()).strip("-") or name.strip()


def table_votes(accepted: dict[tuple[str, str], Answer], key: Key) -> pd.DataFrame:
    """Put answers in a table, a row for each number or preference given, with the arm that it was given to.

    Args:
        accepted: By rater, and the item that stands for all those of one prompt.

    The arm of a tie is `tie`, of two bad texts `both bad`.
    """
    items = {item.id: item for item in key.items}
    rows = []
    for (rater, number), answer in accepted.items():
        item = items[answer.item]
        for arm, ratings in zip(item.arms, answer.ratings):
            given = ratings.model_dump(exclude_none=True).items()
            rows += [(rater, number, item.kind, criterion, arm, value) for criterion, value in given]
        if answer.preference is not None:
            chosen = item.arms[answer.preference] if isinstance(answer.preference, int) else answer.preference
            if item.texts[0] == item.texts[1] and isinstance(answer.preference, int):
                chosen = "one of two equal texts"
            rows.append((rater, number, item.kind, "preference", chosen, None))
    return pd.DataFrame(rows, columns=["rater", "item", "kind", "criterion", "arm", "value"])


def _number(value: str) -> int | str:
    return int(value) if value in "0123456789" else value
