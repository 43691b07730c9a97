"""Documents: the table that prepare writes and every later stage reads."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow.parquet import ParquetFile

PREPARED = Path("data/prepared")
PROMPTS_OF_DATASET = PREPARED / "prompts.txt"  # that the dataset brought itself; blank where it brought none
READ_AT_ONCE = 64  # documents
IGNORED = -100  # as a label: no target; PyTorch's own number for it


@dataclass(frozen=True)
class Document:
    """One text or conversation, whole, as the dataset gave it.

    Attributes:
        id: Where it came from: a file, or a file and the number of its row or page.
        title: Its heading, or the name of its file.
        text: What is learned and scored of it: the text, or the answers.
        tokens: Token ids as a model reads them, int32; first what its tokenizer puts before a text, if anything.
        targets: Which of them are learned and scored, bool.
        group: What belongs together and is one unit of every statistic, such as its customer or author; "" where it
            stands alone.
        conversation: Its messages and tools as JSON; "" where it is a text.
    """

    id: str
    title: str
    text: str
    tokens: np.ndarray
    targets: np.ndarray
    group: str = ""
    conversation: str = ""

    @property
    def labels(self) -> np.ndarray:
        """The target that follows each token but the last, or `IGNORED`: int64 [len(tokens) - 1]."""
        return np.where(self.targets, self.tokens, IGNORED)[1:].astype(np.int64)

    @property
    def num_targets(self) -> int:
        """How many tokens are learned and scored; the very first never is, for nothing comes before it."""
        return int(self.targets[1:].sum())

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode())

    @property
    def num_words(self) -> int:
        """Length of the text split at white space, an empty end counted as lm-evaluation-harness does."""
        return len(re.split(r"\s+", self.text))


def write_documents(documents: list[Document], split: str, folder: Path = PREPARED) -> None:
    """Write a split (train, validation or test), a row a document, a column for each of its attributes."""
    columns = [field.name for field in fields(Document)]
    table = pd.DataFrame([[getattr(document, name) for name in columns] for document in documents], columns=columns)
    table.to_parquet(folder / f"{split}.parquet", index=False, row_group_size=READ_AT_ONCE)


def read_documents(split: str, folder: Path = PREPARED) -> Iterator[Document]:
    """Read a split (train, validation or test), a few documents at a time."""
    file = ParquetFile(folder / f"{split}.parquet")
    for group in range(file.num_row_groups):
        for row in file.read_row_group(group).to_pandas().itertuples(index=False):
            yield Document(*row)
