"""Blocks: documents packed end to end and cut in pieces of one length, without padding."""

import math
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from stages.lib.data.documents import IGNORED, Document


class Blocks(Dataset):
    """Documents packed end to end, each with EOS after it, and cut in blocks of one length: no padding.

    Neighbouring blocks share a token, so that every token but the very first is predicted exactly
    once an epoch. The last block is moved back to full length, and what it repeats has no label.
    The tokens lie in a nameless file, mapped into memory: a large text takes disk, not memory.

    Args:
        documents: Texts.
        end: What ends each: the model's EOS, or nothing.
        block_tokens: Length of a block; less where there is less.
    """

    def __init__(self, documents: Iterable[Document], end: list[int], block_tokens: int) -> None:
        with tempfile.TemporaryFile(dir=".") as file:  # not in /tmp, which may be memory
            for document in documents:
                file.write(np.array([*document.tokens, *end], np.int32).tobytes())
            file.flush()
            self.stream = np.memmap(file, np.int32, "r") if file.tell() else np.zeros(0, np.int32)  # [num_tokens]
        self.block_tokens = min(block_tokens, len(self.stream))

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


class Shuffled(Sampler):
    """All blocks in an order drawn anew each epoch, filled up to whole batches with None.

    Each optimizer step works on the same blocks, in however many pieces and processes it does so.
    """

    def __init__(self, num_blocks: int, batch_size: int, seed: int) -> None:
        self.num_blocks, self.batch_size, self.seed = num_blocks, batch_size, seed
        self.epoch = 0  # whose order is drawn

    def __len__(self) -> int:
        return math.ceil(self.num_blocks / self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int | None]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_blocks)
        yield from order.tolist()
        yield from [None] * (len(self) - self.num_blocks)
