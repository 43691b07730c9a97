"""Units: what counts as one piece of evidence, however often it is there and however it is written."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphen, zero-width space, word joiner, byte order mark
T = TypeVar("T")


def normalized(text: str) -> str:
    """Return what equal texts share: Unicode's form NFC, without invisible characters, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFC", INVISIBLE.sub("", text)).split())


def distinct(things: Iterable[T], text_of: Callable[[T], str]) -> list[T]:
    """Return the things in order; of those with equal texts, the first alone."""
    found: dict[str, T] = {}
    for thing in things:
        found.setdefault(normalized(text_of(thing)), thing)
    return list(found.values())
