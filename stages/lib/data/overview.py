"""Overview: what was read of a dataset, as a table that people look at before anything is trained."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

LEAST_SHARE = 0.001  # of a script that is shown
COLUMNS = {  # of what `count` counts
    "documents": "documents",
    "tokens_read": "tokens",
    "tokens": "learned",
    "median_tokens_read": "median",
    "longest_tokens_read": "longest",
    "repeated": "repeated",
    "left_out": "left out",
}


def count_scripts(texts: Iterable[str]) -> dict[str, float]:
    """Return the share of each script among the letters of texts, the commonest first.

    A letter's script is the first word of its name in Unicode: Latin, Cyrillic, Arabic, CJK, Hiragana.
    """
    signs: Counter[str] = Counter()
    for text in texts:
        signs.update(text)
    scripts: Counter[str] = Counter()
    for sign, number in signs.items():
        letter = unicodedata.normalize("NFKC", sign)[0]
        if unicodedata.category(letter)[0] == "L":
            scripts[unicodedata.name(letter, "unknown").split()[0]] += number
    named = {name if name == "CJK" else name.capitalize(): number for name, number in scripts.most_common()}
    return {name: number / scripts.total() for name, number in named.items()}


def tabulate(title: str, counts: dict[str, dict[str, float]], scripts: dict[str, float]) -> str:
    """Tabulate splits: documents, their tokens, those of them that are learned or scored, and lengths in tokens."""
    rows = {"": list(COLUMNS.values())}
    rows |= {split: [f"{found[name]:,.12g}" for name in COLUMNS] for split, found in counts.items()}
    lines = [f"{name:10}" + "".join(f"{cell:>11}" for cell in cells) for name, cells in rows.items()]
    shown = [f"{name} {share:.1%}" for name, share in scripts.items() if share >= LEAST_SHARE]
    return "\n".join([title, *lines, f"letters: {', '.join(shown) or 'none'}"])
