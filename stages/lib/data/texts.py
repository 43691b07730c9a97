"""Datasets: every kind of file and the Hugging Face Hub, read as one stream of texts or conversations.

A dataset's folder holds files: .txt and .md (one document each), .jsonl, .json and .parquet (a document a row: a text
in the column `text`, or a conversation in one of the formats), or WikiText pages, where source.yaml says
`documents: wikitext`.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from stages.lib.conversations.formats import (
    Conversation,
    RowRefused,
    checked_text,
    find_format,
    rename,
    to_conversation,
)
from stages.lib.data.files import read_text
from stages.lib.params import Mistake
from stages.lib.sources.hub_rows import read_splits
from stages.lib.sources.source import DATASETS, SOURCE, Source, Split, find, read_source

SPLITS: dict[str, Split] = {  # as the Hub takes names of files and folders
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
PACKAGING = (
    "citation.cff",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "desktop.ini",
    "state.json",
)
ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "changelog")
PROMPTS = "prompts.txt"  # in a dataset's folder: what both models are asked, and no text of it
MAX_DOCUMENT_BYTES = 16 * 2**20


class Text(NamedTuple):
    """A document as read.

    Attributes:
        text: Of a conversation, all that was said.
        split: Where the name of its file or of its Hub split says it.
    """

    id: str
    title: str
    text: str
    split: Split | None
    conversation: Conversation | None = None

    @property
    def place(self) -> str:
        """What decides which split it is drawn into: what belongs together is never parted."""
        return (self.conversation.group or self.conversation.asked) if self.conversation else self.text

    @property
    def identity(self) -> str:
        """What equal documents share."""
        return self.conversation.to_json() if self.conversation else self.text


def read_dataset(name: str, left_out: Counter[str] | None = None) -> Iterator[Text]:
    """Yield the documents of a dataset that are not blank.

    Args:
        name: A folder of data/raw/.
        left_out: Rows that nothing can be learned from are counted here, by what is wrong with them.

    Raises:
        Mistake: The dataset cannot be read, a document is too long, or texts and conversations are mixed; says which
            file and why.
    """
    folder, left_out = find(DATASETS, name), Counter() if left_out is None else left_out
    source, kinds = read_source(folder), set()
    documents = read_hub(folder, source, left_out) if source.repo else read_folder(folder, source, left_out)
    for document in documents:
        kinds.add(document.conversation is None)
        if len(kinds) > 1:
            raise Mistake(f"{folder}: {document.id}: a dataset is all texts or all conversations; this one has both")
        if len(document.text.encode()) > MAX_DOCUMENT_BYTES:
            raise Mistake(f"{folder}: {document.id}: more than {MAX_DOCUMENT_BYTES:,} bytes; cut it in parts")
        if document.text.strip():
            yield document


def read_own_prompts(name: str) -> str:
    """Return the prompts that a dataset brings itself, or nothing."""
    file = find(DATASETS, name) / PROMPTS
    return read_text(file) if file.exists() else ""


def read_folder(folder: Path, source: Source, left_out: Counter[str]) -> Iterator[Text]:
    """Yield the documents of a local dataset, in order of file name."""
    hidden = (".", "__MACOSX")
    found = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(hidden) for part in file.relative_to(folder).parts)
    ]
    packaging = [file for file in found if is_packaging(file, folder)]
    if packaging:
        print(f"{folder}: not read as text: {', '.join(file.name for file in packaging)}")
    own = (folder / SOURCE, folder / PROMPTS)
    files = [file for file in found if file not in (*own, *packaging)]
    if not files:
        raise Mistake(f"{folder}: no files; put .txt, .md, .jsonl, .json, .parquet or WikiText .raw files there")
    for file in files:
        kind, name = file.suffix.lower(), readable(file.relative_to(folder))
        folders = file.relative_to(folder).parts[:-1]
        within: Split | None = None  # of the folders `train/`, `test/`
        for part in folders:
            within = within or named_split(part, source)
        split = within or named_split(file.stem, source)
        if kind in (".jsonl", ".json", ".parquet"):
            yield from rows_as_documents(read_rows(file), name, split, source, left_out)
        elif kind in (".txt", ".raw") and source.documents == "wikitext":
            yield from pages_as_texts(read_text(file).splitlines(keepends=True), name, split)
        elif kind in (".txt", ".md"):
            text = read_text(file, MAX_DOCUMENT_BYTES).strip()
            heading = re.match(r"#\s+(.+)", text)
            title = heading[1].strip() if heading else readable(file.stem)
            split = within or SPLITS.get(file.stem.lower())  # but `test-pilot.md` is about test pilots
            yield Text(name, title, text, split)
        else:
            raise Mistake(
                f"{file}: expected .txt, .md, .jsonl, .json, .parquet, or .raw with `documents: wikitext` in {SOURCE}"
            )


def named_split(name: str, source: Source) -> Split | None:
    """Return the split that the name of a folder or a file of many documents names: `train-00000-of-00002`."""
    if name in source.splits:
        return source.splits[name]
    named: set[Split] = {SPLITS[word] for word in re.split("[^a-z]+", name.lower()) if word in SPLITS}
    return named.pop() if len(named) == 1 else None


def is_packaging(file: Path, folder: Path) -> bool:
    """Return whether a file at the top of a dataset's folder is about the dataset, and none of its texts."""
    return file.parent == folder and (
        file.suffix == ".dvc"
        or file.name.lower() in PACKAGING
        or (file.suffix.lower() in ("", ".md", ".txt") and file.stem.lower() in ABOUT)
    )


def readable(name: str | Path) -> str:
    """Return a file's name; bytes that are no UTF-8 are written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_hub(folder: Path, source: Source, left_out: Counter[str]) -> Iterator[Text]:
    """Yield the documents of a dataset on the Hugging Face Hub."""
    assert source.repo and source.revision
    for name, rows in read_splits(source.repo, source.revision, source.config, folder / SOURCE):
        split = (SPLITS | source.splits).get(name)
        if source.documents == "wikitext":  # a row is a line, and an empty row was the line " \n"
            yield from pages_as_texts([row["text"] or " \n" for row in rows], name, split)
        else:
            yield from rows_as_documents(rows, name, split, source, left_out)


def read_rows(file: Path) -> Iterator[Any]:
    """Yield the rows of a .jsonl, .json or .parquet file, of the second a list of them; None for a blank line."""
    if file.suffix.lower() == ".parquet":
        try:
            for batch in ParquetFile(file).iter_batches():
                yield from batch.to_pylist()  # where a value is missing: None
        except (ArrowException, OSError) as error:
            raise Mistake(f"{file}: not a Parquet file: {error}") from None
        return
    if file.suffix.lower() == ".json":
        try:
            rows = json.loads(read_text(file))
        except json.JSONDecodeError as error:
            raise Mistake(f"{file}: not JSON: {error}") from None
        if not isinstance(rows, list):
            raise Mistake(f"{file}: expected a list of rows, found {str(rows)[:80]!r}")
        yield from rows
        return
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        try:
            yield json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise Mistake(f"{file}:{number}: not JSON: {error}") from None


def rows_as_documents(
    rows: Iterable[Any], name: str, split: Split | None, source: Source, left_out: Counter[str]
) -> Iterator[Text]:
    """Yield a document a row: a text with, if there is one, its title, or a conversation."""
    for number, row in enumerate(rows, start=1):
        id = f"{name}:{number}"
        if row is None:  # a blank line
            continue
        format = find_format(row, id, source.format, source.columns)
        if format == "text":
            row = rename(row, source.columns)
            title = checked_text(str(row.get("title") or id), id)
            yield Text(id, title, checked_text(row["text"], id), split)
            continue
        try:
            conversation = to_conversation(row, id, format, source.columns)
        except RowRefused as reason:
            left_out[str(reason)] += 1
            continue
        yield Text(id, conversation.title or id, conversation.said, split, conversation)


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
