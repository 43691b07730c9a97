"""Blocks: documents packed end to end and cut in pieces of one length, without padding."""

import math

import numpy as np
import torch
from torch.utils.data import Dataset

from stages.lib.documents import Document


class Blocks(Dataset):
    """Documents packed as `BOS text EOS`, end to end, and cut in blocks of one length: no padding.

    Neighbouring blocks share a token, so that every token but the very first is predicted exactly
    once an epoch. The last block is moved back to full length, and what it repeats has no label.
    """

    def __init__(self, documents: list[Document], bos: int, eos: int, block_tokens: int) -> None:
        parts = [part for document in documents for part in ([bos], document.tokens, [eos])]
        self.stream = np.concatenate(parts).astype(np.int64)  # [num_tokens]
        self.block_tokens = min(block_tokens, len(self.stream))

    @property
    def num_targets(self) -> int:
        """Tokens predicted in an epoch."""
        return len(self.stream) - 1

    def __len__(self) -> int:
        return math.ceil(self.num_targets / (self.block_tokens - 1))

    def span(self, index: int) -> tuple[int, int, int]:
        """Return (start, first, end): a block is stream[start:end] and predicts stream[first:end]."""
        planned = index * (self.block_tokens - 1)
        start = min(planned, len(self.stream) - self.block_tokens)
        return start, planned + 1, start + self.block_tokens

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both [block_tokens]; the model shifts the labels itself."""
        start, first, end = self.span(index)
        ids = torch.from_numpy(self.stream[start:end])
        labels = ids.clone()
        labels[: first - start] = -100
        return {"input_ids": ids, "labels": labels}
