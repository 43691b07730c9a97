"""Prompts: what both models are asked to continue."""

from pathlib import Path

from stages.lib.params import Mistake

PROMPTS = Path("data/prompts.txt")


def read_prompts(path: Path = PROMPTS) -> list[str]:
    """Read one prompt a line; blank lines are skipped.

    Raises:
        Mistake: There is none.
    """
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise Mistake(f"{path}: no prompts; write one a line")
    return prompts
