"""Markdown: texts of models and people in its tables, where nothing of them may be taken for markup."""

import html
import re


def cell(text: str) -> str:
    """Return a text on one line, with what Markdown or HTML would take for markup escaped."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
