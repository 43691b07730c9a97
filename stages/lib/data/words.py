"""Words: pieces of texts in any script, and where sentences end.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no spaces between words: there each character counts as one.
"""

import re
import sys
import unicodedata

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
MARKS = "".join(sign for sign in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(sign)[0] == "M")
WORD = re.compile(rf"[{UNSPACED}][{MARKS}]*|(?:(?![{UNSPACED}])[\w{MARKS}])+")
LETTER = re.compile(f"[{UNSPACED}]")
PIECE = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
ENDS = r"[.!?\u061f\u06d4\u0964\u0965\u2026]"  # and those of Arabic, Urdu and Hindi
FULL_WIDTH_ENDS = "[\u3002\uff01\uff1f\uff61]"  # no space follows these
SENTENCE_END = re.compile(
    rf"{ENDS}[\"'\u201d\u2019)\]]*(?=\s|$)|{FULL_WIDTH_ENDS}[\"'\u201d\u2019\u300d\u300f\uff09)]*"
)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def is_unspaced(words: list[str]) -> bool:
    """Return whether most words of a text are single letters of a script without spaces."""
    return sum(bool(LETTER.match(word)) for word in words) > len(words) / 2


def pieces_of(text: str) -> list[str]:
    """Return the words of a text as they are written, punctuation and all."""
    return PIECE.findall(text)


def first_pieces(text: str, number: int) -> str:
    """Return a text up to so many words."""
    ends = [match.end() for match in PIECE.finditer(text)]
    return text[: ends[min(number, len(ends)) - 1]] if ends and number else ""
