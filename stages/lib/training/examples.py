"""Examples: what is learned, as pieces of one length cut from texts, or as conversations, a row each."""

import math
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from stages.lib.data.documents import IGNORED, Document


class Blocks(Dataset):
    """Documents packed end to end, each with EOS after it, and cut in blocks of one length: no padding.

    Neighbouring blocks share a token, so that every token but the very first is predicted exactly
    once an epoch. The last block is moved back to full length, and what it repeats has no label.

    Args:
        documents: Texts.
        end: What ends each: the model's EOS, or nothing.
        block_tokens: Length of a block; less where there is less.
    """

    sparse = False  # all tokens are targets

    def __init__(self, documents: Iterable[Document], end: list[int], block_tokens: int) -> None:
        self.stream, _ = mapped(np.array([*document.tokens, *end], np.int32) for document in documents)  # [num_tokens]
        self.block_tokens = min(block_tokens, len(self.stream))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each block: all the same."""
        return np.full(len(self), self.block_tokens)

    @property
    def data(self) -> list[memoryview]:
        """What tells these blocks from others of the same length."""
        return [self.stream.data]

    @property
    def num_targets(self) -> int:
        """Tokens predicted in an epoch."""
        return max(0, len(self.stream) - 1)

    def __len__(self) -> int:
        return math.ceil(self.num_targets / (self.block_tokens - 1)) if self.num_targets else 0

    def span(self, index: int) -> tuple[int, int, int]:
        """Return (start, first, end): a block is stream[start:end] and predicts stream[first:end]."""
        planned = index * (self.block_tokens - 1)
        start = min(planned, len(self.stream) - self.block_tokens)
        return start, planned + 1, start + self.block_tokens

    def scored(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens of a block, and the label that follows each: [block_tokens - 1] both."""
        start, first, end = self.span(index)
        labels = self.stream[start + 1 : end].astype(np.int64)
        labels[: first - start - 1] = IGNORED
        return self.stream[start : end - 1], labels

    def __getitem__(self, index: int | None) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both [block_tokens]; the model shifts the labels itself.

        The block None has no targets: it fills a batch.
        """
        start, first, end = self.span(index or 0)
        ids = torch.from_numpy(self.stream[start:end].astype(np.int64))
        labels = ids.clone()
        labels[: len(ids) if index is None else first - start] = IGNORED
        return {"input_ids": ids, "labels": labels}


class Rows(Dataset):
    """Conversations, a row each, of their own lengths. Rows that are learned together are padded on the right.

    There a causal model cannot see the padding, and it has no targets: no row ever sees another.

    Args:
        documents: Conversations.
    """

    sparse = True  # only answers are targets

    def __init__(self, documents: Iterable[Document]) -> None:
        marked = (np.where(document.targets, document.tokens, ~document.tokens) for document in documents)
        self.stream, self.lengths = mapped(marked)  # of what is no target, the complement: a negative number
        self.ends = self.lengths.cumsum()
        self.block_tokens = int(self.lengths.max(initial=0))  # of the longest

    @property
    def num_targets(self) -> int:
        """Tokens predicted in an epoch."""
        return int((self.stream >= 0).sum())

    @property
    def data(self) -> list[memoryview]:
        """What tells these rows from others."""
        return [self.stream.data, self.lengths.data]

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of a row, and which of them are labels: int64 [length] both."""
        marked = self.stream[self.ends[index] - self.lengths[index] : self.ends[index]].astype(np.int64)
        return np.where(marked < 0, ~marked, marked), np.where(marked < 0, IGNORED, marked)

    def scored(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens of a row, and the label that follows each: [length - 1] both."""
        tokens, labels = self.row(index)
        return tokens[:-1], labels[1:]

    def __getitem__(self, index: int | None) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both [length]; the model shifts the labels itself.

        The row None has no targets: it fills a batch.
        """
        tokens, labels = self.row(index or 0)
        labels[: len(labels) if index is None else 1] = IGNORED
        return {"input_ids": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}


class Shuffled(Sampler):
    """All examples in an order drawn anew each epoch, filled up to whole batches with None.

    Each optimizer step works on the same examples, in however many pieces and processes it does so: the longest first,
    so that a piece holds examples of about one length.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0  # whose order is drawn

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int | None]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths))
        for start in range(0, len(order), self.batch_size):
            step = order[start : start + self.batch_size]
            yield from step[np.argsort(-self.lengths[step], kind="stable")].tolist()
        yield from [None] * (len(self) - len(order))


def pad_right(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put examples together, padded on the right to the longest: `input_ids` and `labels` [B, T]."""
    padding = {"input_ids": 0, "labels": IGNORED}
    return {
        name: pad_sequence([example[name] for example in examples], batch_first=True, padding_value=value)
        for name, value in padding.items()
    }


def mapped(pieces: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Join int32 arrays in a nameless file that is mapped into memory: much text takes disk, not memory.

    Returns:
        The array, and the length of each piece.
    """
    with tempfile.TemporaryFile(dir=".") as file:  # not in /tmp, which may be memory
        lengths = np.array([file.write(piece.tobytes()) // piece.itemsize for piece in pieces], np.int64)
        file.flush()
        return np.memmap(file, np.int32, "r") if file.tell() else np.zeros(0, np.int32), lengths
