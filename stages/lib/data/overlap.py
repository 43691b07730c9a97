"""Overlap: what of a held-out text stands in training texts, or in another held-out one."""

import re

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

COPIED = 13  # words in a row that no two independent texts share, but for set phrases (Brown et al. 2020, appendix C)
ALIKE = 5  # words in a row, by whose number a text is recognised though words in it were changed
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial that hashes words in a row; odd


def grams(text: str, size: int) -> np.ndarray:
    """Hash each `size` words in a row, whatever their case and punctuation; of a shorter text, all its words.

    Returns:
        Distinct hashes in ascending order, uint64. Two of a million different ones are equal once in 40 million times.
    """
    words = words_of(text)
    if not words:
        return np.zeros(0, np.uint64)
    hashes = pd.util.hash_array(np.array(words, dtype=object), categorize=True)
    size = min(size, len(words))
    total = np.zeros(len(words) - size + 1, np.uint64)
    for offset in range(size):
        total = total * BASE + hashes[offset : offset + len(total)]
    return np.unique(total)


def overlap(training: list[str], held_out: list[str]) -> pd.DataFrame:
    """Measure how much of each held-out text stands in the training texts; one of fewer than five words never does.

    Returns:
        One row a held-out text: `copied`, the share of its 13-word sequences that stand anywhere in training;
        `alike`, the largest share of its 5-word sequences that stand in one training text, and `nearest`, the
        number of that text; `twin_alike` and `twin`, the same of the other held-out texts.
    """
    copied, alike = ([grams(text, size) for text in held_out] for size in (COPIED, ALIKE))
    known = np.unique(np.concatenate(copied))
    seen = np.zeros(len(known), bool)
    shared = np.unique(np.concatenate(alike))
    rows = np.repeat(np.arange(len(held_out)), [len(part) for part in alike])
    columns = np.searchsorted(shared, np.concatenate(alike))
    holds = csc_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(held_out), len(shared)))
    most, nearest = np.zeros(len(held_out)), np.zeros(len(held_out), int)
    for number, text in enumerate(training):
        seen[_found(grams(text, COPIED), known)] = True
        counts = holds[:, _found(grams(text, ALIKE), shared)].sum(axis=1)
        nearest[counts > most] = number
        most = np.maximum(most, counts)
    twin_most, twin = np.zeros(len(held_out)), np.zeros(len(held_out), int)
    for number, part in enumerate(alike):
        counts = holds[:, np.searchsorted(shared, part)].sum(axis=1)
        counts[number] = 0
        twin[counts > twin_most] = number
        twin_most = np.maximum(twin_most, counts)
    return pd.DataFrame(
        {
            "copied": [seen[np.searchsorted(known, part)].mean() if len(part) else 0.0 for part in copied],
            "alike": most / np.maximum(1, [len(part) for part in alike]),
            "nearest": nearest,
            "twin_alike": twin_most / np.maximum(1, [len(part) for part in alike]),
            "twin": twin,
        }
    )


def quoted(prompts: list[str], training: list[str]) -> list[str]:
    """Return the prompts that stand word for word in a training text, whatever their case and punctuation."""
    plain = [f" {' '.join(words_of(text))} " for text in training]
    return [prompt for prompt in prompts if any(f" {' '.join(words_of(prompt))} " in text for text in plain)]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def _found(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return where in `known`, which ascends, those of the hashes stand that stand there at all."""
    places = np.searchsorted(known, hashes)
    places = places[places < len(known)]
    return places[known[places] == hashes[: len(places)]]
