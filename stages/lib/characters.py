"""Characters: texts of models and people on pages and terminals, where nothing of them may act or hide."""

import unicodedata

SEEN = "\n\t\u200c\u200d"  # the last two join or part letters and emoji


def visible(text: str) -> str:
    """Show by its number what is invisible, steers a terminal or turns the direction of writing: `<U+001B>`."""
    return "".join(f"<U+{ord(sign):04X}>" if _hidden(sign) else sign for sign in text)


def _hidden(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cf", "Co", "Cs") and sign not in SEEN
