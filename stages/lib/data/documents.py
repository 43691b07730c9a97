"""Documents: the table that prepare writes and every later stage reads."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow.parquet import ParquetFile

PREPARED = Path("data/prepared")
READ_AT_ONCE = 64  # documents


@dataclass(frozen=True)
class Document:
    """One text, whole, as the dataset gave it.

    Attributes:
        id: Where it came from: a file, or a file and the number of its row or page.
        title: Its heading, or the name of its file.
        text: The text that is learned or scored.
        tokens: Token ids of `text` alone (no BOS, no EOS), int32.
    """

    id: str
    title: str
    text: str
    tokens: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode())

    @property
    def num_words(self) -> int:
        """Length of the text split at white space, an empty end counted as lm-evaluation-harness does."""
        return len(re.split(r"\s+", self.text))


def write_documents(documents: list[Document], split: str, folder: Path = PREPARED) -> None:
    """Write a split (train, validation or test), one row a document: id, title, text, tokens."""
    columns = ["id", "title", "text", "tokens"]
    rows = [(d.id, d.title, d.text, d.tokens) for d in documents]
    table = pd.DataFrame(rows, columns=columns)
    table.to_parquet(folder / f"{split}.parquet", index=False, row_group_size=READ_AT_ONCE)


def read_documents(split: str, folder: Path = PREPARED) -> Iterator[Document]:
    """Read a split (train, validation or test), a few documents at a time."""
    file = ParquetFile(folder / f"{split}.parquet")
    for group in range(file.num_row_groups):
        for row in file.read_row_group(group).to_pandas().itertuples(index=False):
            yield Document(*row)
