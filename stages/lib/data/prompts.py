"""Prompts: what both models are asked to continue."""

from pathlib import Path

from stages.lib.data.units import distinct
from stages.lib.params import Mistake

PROMPTS = Path("data/prompts.txt")


def read_prompts(path: Path = PROMPTS) -> list[str]:
    """Read one prompt a line; blank lines and repeated prompts are skipped, and the latter counted on stdout.

    Raises:
        Mistake: There is none.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    prompts = distinct(lines, str)
    if not prompts:
        raise Mistake(f"{path}: no prompts; write one a line")
    if len(prompts) < len(lines):
        print(f"{path}: {len(lines) - len(prompts)} of {len(lines)} prompts left out: they repeat another")
    return prompts
