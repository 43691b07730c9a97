"""Prose: generated texts as people read them, and what can be counted in them."""

import re
import zlib
from dataclasses import dataclass

from stages.lib.data.words import SENTENCE_END, pieces_of

COUNTED_WORDS = 32  # of each text: shares of repeated words compare only at equal length
MARKUP = re.compile(r" @[-,.]@ |(?:^|\s)=+ .+ =+(?:\s|$)|<unk>")  # of WikiText
LOOP = re.compile(r"(?:^| )(\S+(?: \S+){0,9})(?: \1){2}(?: |$)")  # up to ten words, three times in a row


def detokenize(text: str) -> str:
    """Put a text in ordinary spelling, on one line. WikiText spaces punctuation apart: its learner would be known."""
    text = re.sub(r" @([-,.])@ ", r"\1", " ".join(text.split()))
    text = re.sub(r'(^|\s)" ([^"]*) "(?=\W|$)', r'\1"\2"', text)
    text = re.sub(r"(\w) ('(?:s|re|ve|ll|d|m|t)\b)", r"\1\2", text)
    text = re.sub(r" ([.,;:!?%)\]])", r"\1", text)
    return re.sub(r"([(\[$£€]) ", r"\1", text)


def cut(text: str, letters: int, whole: bool) -> str:
    """Cut a text to so many letters, at the end of a sentence.

    Where that would take more than half away, it is cut after a word, and `…` says so.

    Args:
        whole: It ended by itself: where it is short enough it stays as it is.
    """
    if whole and len(text) <= letters:
        return text
    head = text[:letters]
    ends = [match.end() for match in SENTENCE_END.finditer(text) if match.end() <= letters]
    if ends and ends[-1] >= len(head) / 2:
        return head[: ends[-1]]
    return f"{head.rsplit(' ', 1)[0]} …"


@dataclass(frozen=True)
class Prose:
    """What continuations repeat, and how they are written: sums over all texts, divided once.

    The distinct n-grams of words are the share that is no repetition within its text, over the first `COUNTED_WORDS`
    words (Li et al. 2016).
    """

    distinct_1: float
    distinct_2: float
    distinct_3: float
    loops: float  # share of texts that say up to ten words three times in a row
    compression: float  # bytes over bytes after zlib
    markup: float  # share of texts with WikiText's
    words: float  # mean of the texts


def describe(texts: list[str]) -> Prose:
    """Count what texts repeat, and how they are written."""
    words = [pieces_of(text) for text in texts]
    encoded = [detokenize(text).encode() for text in texts]
    return Prose(
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        distinct_3=_distinct(words, 3),
        loops=sum(bool(LOOP.search(" ".join(part))) for part in words) / len(texts),
        compression=sum(map(len, encoded)) / sum(len(zlib.compress(text, 9)) for text in encoded),
        markup=sum(bool(MARKUP.search(text)) for text in texts) / len(texts),
        words=sum(map(len, words)) / len(texts),
    )


def _distinct(texts: list[list[str]], size: int) -> float:
    grams = [_grams(words[:COUNTED_WORDS], size) for words in texts]
    return sum(len(set(found)) for found in grams) / max(1, sum(map(len, grams)))


def _grams(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
