"""Overlap: what of a held-out text stands in training texts, or in another held-out one."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from stages.lib.data.words import is_unspaced, words_of

COPIED = 13  # words in a row that no two independent texts share, but for set phrases (Brown et al. 2020, appendix C)
ALIKE = 5  # words in a row, by whose number a text is recognised though words in it were changed
LETTERS = 2  # of a script without spaces, that say as much as a word
AT_ONCE = 512  # texts compared with all held-out ones
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial that hashes words in a row; odd


def grams(texts: list[str], size: int) -> list[np.ndarray]:
    """Hash each `size` words in a row of texts, whatever their case and punctuation; of a shorter text, all its words.

    Returns:
        Of each text, distinct hashes in ascending order, uint64. Two of a million different ones are equal once in 40
        million times.
    """
    words = [words_of(text) for text in texts]
    flat = np.array([word for part in words for word in part], dtype=object)
    hashes = pd.util.hash_array(flat, categorize=True) if len(flat) else np.zeros(0, np.uint64)
    parts = np.split(hashes, np.cumsum([len(part) for part in words])[:-1])
    return [_grams(part, size * LETTERS if is_unspaced(said) else size) for part, said in zip(parts, words)]


def _grams(hashes: np.ndarray, size: int) -> np.ndarray:
    size = min(size, len(hashes))
    if not size:
        return np.zeros(0, np.uint64)
    total = np.zeros(len(hashes) - size + 1, np.uint64)
    for offset in range(size):
        total = total * BASE + hashes[offset : offset + len(total)]
    return np.unique(total)


class Overlap(NamedTuple):
    """What held-out texts have in common with others.

    Attributes:
        table: A row a held-out text: `copied`, the share of its 13-word sequences that stand anywhere in training;
            `alike`, the largest share of its 5-word sequences that stand in one training text, and `nearest`, the
            number of that text; `twin_alike` and `twin`, the same of the other held-out texts.
        learned: For each training text the largest share of a held-out one's 5-word sequences that it has.
    """

    table: pd.DataFrame
    learned: np.ndarray


def overlap(training: list[str], held_out: list[str]) -> Overlap:
    """Measure how much of each held-out text stands in training texts, or in other held-out ones."""
    alike = grams(held_out, ALIKE)
    shared = np.unique(np.concatenate(alike))
    holds = _incidence(alike, shared)
    sizes = np.maximum(1, [len(part) for part in alike])
    most, nearest, learned = np.zeros(len(held_out)), np.zeros(len(held_out), int), np.zeros(len(training))
    for start in range(0, len(training), AT_ONCE):
        some = _incidence(grams(training[start : start + AT_ONCE], ALIKE), shared)
        shares = (some @ holds.T).toarray() / sizes  # [training, held_out]
        learned[start : start + AT_ONCE] = shares.max(1)
        best = shares.max(0)
        nearest[best > most] = start + shares.argmax(0)[best > most]
        most = np.maximum(most, best)
    twin_most, twin = np.zeros(len(held_out)), np.zeros(len(held_out), int)
    for start in range(0, len(held_out), AT_ONCE):
        here = slice(start, start + AT_ONCE)
        shares = (holds[here] @ holds.T).toarray() / sizes[here, None]  # [some held-out, held_out]
        shares[np.arange(len(shares)), start + np.arange(len(shares))] = 0
        twin_most[here], twin[here] = shares.max(1), shares.argmax(1)
    columns = {"copied": copied(training, held_out), "alike": most, "nearest": nearest}
    return Overlap(pd.DataFrame(columns | {"twin_alike": twin_most, "twin": twin}), learned)


def copied(training: list[str], held_out: list[str]) -> np.ndarray:
    """Return the share of each held-out text's 13-word sequences that stand anywhere in training."""
    parts = grams(held_out, COPIED)
    known = np.unique(np.concatenate(parts))
    seen = np.zeros(len(known), bool)
    for start in range(0, len(training), AT_ONCE):
        for part in grams(training[start : start + AT_ONCE], COPIED):
            seen[_found(part, known)] = True
    return np.array([seen[np.searchsorted(known, part)].mean() if len(part) else 0.0 for part in parts])


def _incidence(parts: list[np.ndarray], shared: np.ndarray) -> csr_array:
    """Return which sequences of `shared` each text has: [texts, shared]."""
    places = [_found(part, shared) for part in parts]
    ends = np.cumsum([0, *map(len, places)])
    columns = np.concatenate([np.zeros(0, np.int64), *places])
    return csr_array((np.ones(len(columns), np.int32), columns, ends), shape=(len(parts), len(shared)))


def quoted(prompts: list[str], training: list[str]) -> list[str]:
    """Return the prompts that stand word for word in a training text, whatever their case and punctuation."""
    plain = [f" {' '.join(words_of(text))} " for text in training]
    return [prompt for prompt in prompts if any(f" {' '.join(words_of(prompt))} " in text for text in plain)]


def _found(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return where in `known`, which ascends, those of the hashes stand that stand there at all."""
    places = np.searchsorted(known, hashes)
    places = places[places < len(known)]
    return places[known[places] == hashes[: len(places)]]
