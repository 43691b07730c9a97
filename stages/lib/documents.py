"""Documents: the table that prepare writes and every later stage reads."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

PREPARED = Path("data/prepared")


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
    pd.DataFrame(rows, columns=columns).to_parquet(folder / f"{split}.parquet", index=False)


def read_documents(split: str, folder: Path = PREPARED) -> list[Document]:
    """Read a split (train, validation or test)."""
    return [Document(*row) for row in pd.read_parquet(folder / f"{split}.parquet").itertuples(index=False)]
