"""Markdown: texts of models and people in its tables, where nothing of them may be taken for markup."""

import html
import re

from stages.lib.characters import visible


def cell(text: str) -> str:
    """Return a text on one line, with what Markdown or HTML would take for markup escaped."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def shorten(text: str, letters: int) -> str:
    """Return a text on one line, nothing in it hidden, cut after a word where it is longer than so many letters."""
    text = visible(" ".join(text.split()))
    return text if len(text) <= letters else f"{text[:letters].rsplit(' ', 1)[0]} …"
