"""Examples: what is learned, as pieces of one length cut from texts, or as conversations, a row each."""

import math
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from stages.lib.data.documents import IGNORED, Document
from stages.lib.training.recipe import SettledParams

MOST_ROOMS = 4  # shapes of micro-batches of packed rows: each costs a recording, and saves filling up
ROOM_TOKENS = 32  # of which each room is a multiple, large ones of more


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

    num_tokens = num_targets  # that are read for it

    def largest(self, params: SettledParams) -> "Room":
        """Return the tokens and targets of a micro-batch."""
        tokens = params.micro_batch_size * self.block_tokens
        return Room(tokens, tokens)

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
    """Conversations, a row each, of their own lengths.

    Rows that are learned together are packed end to end, where the model can keep them apart, or padded on the right,
    where a causal model cannot see it: no row ever sees another.

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
    def num_tokens(self) -> int:
        """Tokens read for it."""
        return len(self.stream)

    def targets(self) -> np.ndarray:
        """Return the number of targets of each row: [rows]."""
        counted = np.concatenate([[0], np.cumsum(self.stream >= 0)])
        return counted[self.ends] - counted[self.ends - self.lengths]

    def largest(self, params: SettledParams) -> "Room":
        """Return the most tokens and targets that a micro-batch has, packed."""
        shapes = rooms(self, params)
        return Room(shapes[-1].tokens, max(shape.targets for shape in shapes))

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

        The row None is one token without targets: it fills a batch.
        """
        tokens, labels = self.row(index) if index is not None else (np.zeros(1, np.int64), np.zeros(1, np.int64))
        labels[:1] = IGNORED
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


class Room(NamedTuple):
    """A shape that a micro-batch of packed rows is filled up to: a CUDA graph needs shapes to stay as they are."""

    tokens: int
    targets: int


def rooms(rows: Rows, params: SettledParams) -> list[Room]:
    """Return at most `MOST_ROOMS` shapes, the smallest first, that hold all micro-batches of a training.

    They are those that leave least to fill up. Each holds as many targets as its micro-batches have at most.
    """
    order, sizes = Shuffled(rows.lengths, params.batch_size, params.seed), []
    tokens, targets = np.append(rows.lengths, 1), np.append(rows.targets(), 0)  # the last: of the row None
    for order.epoch in range(params.epochs):
        pieces = np.array([-1 if index is None else index for index in order]).reshape(-1, params.micro_batch_size)
        sizes.append(np.stack([tokens[pieces].sum(1), targets[pieces].sum(1)], axis=1))
    tokens, targets = np.concatenate(sizes).T
    unit = max(ROOM_TOKENS, 2 ** int(np.log2(tokens.max() / 64)))
    tops = few_tops(-(-tokens // unit) * unit, MOST_ROOMS)
    number = np.searchsorted(tops, tokens)
    return [Room(int(top), max(1, int(targets[number == n].max()))) for n, top in enumerate(tops)]


def few_tops(sizes: np.ndarray, most: int) -> np.ndarray:
    """Return those few of some sizes, ascending, that all of them, rounded up to these, come to the least sum with."""
    values, counts = np.unique(sizes, return_counts=True)
    before = np.append(0, counts.cumsum())  # how many sizes are smaller than each value
    cost, tops = np.append(0.0, np.full(len(values), np.inf)), [[]] * (len(values) + 1)  # of the first values alone
    for _ in range(min(most, len(values))):
        choices = [cost[:end] + values[end - 1] * (before[end] - before[:end]) for end in range(1, len(values) + 1)]
        cost = np.append(np.inf, [choice.min() for choice in choices])
        tops = [[], *([*tops[choice.argmin()], values[end]] for end, choice in enumerate(choices))]
    return np.array(tops[-1])


def pack(examples: list[dict[str, torch.Tensor]], rooms: list[Room], longest: int) -> dict[str, torch.Tensor]:
    """Put rows end to end, each with its own positions.

    Args:
        examples: R rows: `input_ids` and `labels`.
        rooms: Shapes, the smallest first, of which the first that has room is filled up with rows that have no targets;
            none: nothing is filled up.
        longest: Tokens of the longest of all rows; none that fills up is longer.

    Returns:
        `input_ids` and `position_ids` [1, N]; `cu_seq_lens_q`, where rows begin and the last ends; `places` [C] of the
        tokens that have a target; `labels` [1 + C], of which the Trainer does not count the first: their targets, or
        `IGNORED`.
    """
    lengths = [len(example["labels"]) for example in examples]
    ids, labels = (torch.cat([example[name] for example in examples]) for name in ("input_ids", "labels"))
    (after,) = torch.nonzero(labels.ne(IGNORED), as_tuple=True)
    fill, num_targets, slots = 0, max(1, len(after)), 0
    if rooms:
        room = next(room for room in rooms if room.tokens >= len(ids) and room.targets >= len(after))
        fill, num_targets, slots = room.tokens - len(ids), room.targets, math.ceil(rooms[-1].tokens / longest)
    filling = [min(longest, fill - start) for start in range(0, fill, longest)]
    lengths += filling + [0] * (slots - len(filling))
    pad = torch.nn.functional.pad
    return {
        "input_ids": pad(ids, (0, fill))[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32),
        "places": pad(after - 1, (0, num_targets - len(after))),
        "labels": pad(labels[after], (1, num_targets - len(after)), value=IGNORED),
    }


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
