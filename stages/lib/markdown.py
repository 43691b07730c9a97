"""Markdown: texts of models and people in its tables, where nothing of them may be taken for markup."""

import html
import re
from collections.abc import Sequence

from stages.lib.characters import visible


def cell(text: str) -> str:
    """Return a text on one line, with what Markdown or HTML would take for markup escaped."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of cells as a table, its columns aligned for readers of the text itself."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (header, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shorten(text: str, letters: int) -> str:
    """Return a text on one line, nothing in it hidden, cut after a word where it is longer than so many letters."""
    text = visible(" ".join(text.split()))
    return text if len(text) <= letters else f"{text[:letters].rsplit(' ', 1)[0]} …"
