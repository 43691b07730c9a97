"""Datasets: every kind of file and the Hugging Face Hub, read as one stream of texts.

A dataset's folder holds files: .txt and .md (one document each), .jsonl and .parquet (a document
a row, in the column `text`), or WikiText pages (`documents: wikitext` in source.yaml).
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from stages.lib.params import Mistake
from stages.lib.sources.hub_rows import read_splits
from stages.lib.sources.source import DATASETS, SOURCE, Source, find, read_source

Split = Literal["train", "validation", "test"]
SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
MAX_DOCUMENT_BYTES = 16 * 2**20


class Text(NamedTuple):
    """A document as read: `split` is set where the name of its file or of its Hub split says it."""

    id: str
    title: str
    text: str
    split: Split | None


def read_dataset(name: str) -> Iterator[Text]:
    """Yield the documents of a dataset that are not blank.

    Raises:
        Mistake: The dataset cannot be read, or a document is too long; says which file and why.
    """
    folder = find(DATASETS, name)
    source = read_source(folder)
    for document in read_hub(folder, source) if source.repo else read_folder(folder, source):
        if len(document.text.encode()) > MAX_DOCUMENT_BYTES:
            raise Mistake(f"{folder}: {document.id}: more than {MAX_DOCUMENT_BYTES:,} bytes; cut it in parts")
        if document.text.strip():
            yield document


def read_folder(folder: Path, source: Source) -> Iterator[Text]:
    """Yield the documents of a local dataset, in order of file name."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / SOURCE and not any(p[0] == "." for p in file.relative_to(folder).parts)
    ]
    if not files:
        raise Mistake(f"{folder}: no files; put .txt, .md, .jsonl, .parquet or WikiText .raw files there")
    for file in files:
        kind, name = file.suffix.lower(), file.relative_to(folder).as_posix()
        within = SPLITS.get(file.relative_to(folder).parts[0].lower())  # a folder `train/`, `test/`
        split = within or named_split(file.stem)
        if kind in (".jsonl", ".parquet"):
            yield from rows_as_texts(read_rows(file), name, split)
        elif kind in (".txt", ".raw") and source.documents == "wikitext":
            yield from pages_as_texts(read_text(file).splitlines(keepends=True), name, split)
        elif kind in (".txt", ".md"):
            text = read_text(file, MAX_DOCUMENT_BYTES).strip()
            heading = re.match(r"#\s+(.+)", text)
            title = heading[1].strip() if heading else file.stem
            split = within or SPLITS.get(file.stem.lower())  # but `test-pilot.md` is about test pilots
            yield Text(name, title, text, split)
        else:
            raise Mistake(
                f"{file}: expected .txt, .md, .jsonl, .parquet, or .raw with `documents: wikitext` in {SOURCE}"
            )


def named_split(stem: str) -> Split | None:
    """Return the split that the name of a file of many documents names: `train-00000-of-00002`, `wiki.valid`."""
    named: set[Split] = {SPLITS[word] for word in re.split("[^a-z]+", stem.lower()) if word in SPLITS}
    return named.pop() if len(named) == 1 else None


def read_hub(folder: Path, source: Source) -> Iterator[Text]:
    """Yield the documents of a dataset on the Hugging Face Hub."""
    assert source.repo and source.revision
    for name, rows in read_splits(source.repo, source.revision, source.config, folder / SOURCE):
        if source.documents == "wikitext":  # a row is a line, and an empty row was the line " \n"
            yield from pages_as_texts([row["text"] or " \n" for row in rows], name, SPLITS.get(name))
        else:
            yield from rows_as_texts(rows, name, SPLITS.get(name))


def read_text(file: Path, max_bytes: float = float("inf")) -> str:
    """Read a UTF-8 file whole; its size is looked at first."""
    if file.stat().st_size > max_bytes:
        raise Mistake(f"{file}: a document of more than {max_bytes:,} bytes; cut it in several files")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Mistake(f"{file}: not UTF-8: byte {error.start:,} is 0x{error.object[error.start]:02x}") from None


def read_rows(file: Path) -> Iterator[Any]:
    """Yield the rows of a .jsonl or .parquet file."""
    if file.suffix.lower() == ".parquet":
        try:
            yield from pd.read_parquet(file).to_dict("records")
        except (ValueError, OSError) as error:
            raise Mistake(f"{file}: not a Parquet file: {error}") from None
        return
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        try:
            yield json.loads(line) if line.strip() else {"text": ""}
        except json.JSONDecodeError as error:
            raise Mistake(f"{file}:{number}: not JSON: {error}") from None


def rows_as_texts(rows: Iterable[Any], name: str, split: Split | None) -> Iterator[Text]:
    """Yield a document a row, from its column `text` and, if there is one, `title`."""
    for number, row in enumerate(rows, start=1):
        id = f"{name}:{number}"
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise Mistake(f"{id}: expected a column `text` that holds a string, found {str(row)[:80]}")
        yield Text(id, str(row.get("title") or id), row["text"], split)


def pages_as_texts(lines: list[str], name: str, split: Split | None) -> Iterator[Text]:
    """Yield a document a WikiText page, which starts at a line ` = Title = ` after a blank line."""
    starts = [
        number
        for number, line in enumerate(lines)
        if re.fullmatch(r" = (?!=).*(?<!=) = ?\n?", line) and not (number and lines[number - 1].strip())
    ]
    if not starts or "".join(lines[: starts[0]]).strip():
        raise Mistake(f"{name}: expected a line ` = Title = ` at the start of each page, after a blank one; found none")
    for number, (start, end) in enumerate(pairwise([*starts, len(lines)]), start=1):
        yield Text(f"{name}:{number}", lines[start].strip(" =\n"), "".join(lines[start:end]), split)
