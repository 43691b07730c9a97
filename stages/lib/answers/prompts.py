"""Prompts: what both models are asked to continue."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from stages.lib.data.files import read_text
from stages.lib.data.units import distinct
from stages.lib.data.words import SENTENCE_END, pieces_of
from stages.lib.params import Mistake

PROMPTS = Path("data/prompts.txt")
ABBREVIATION = re.compile(r"\b(?:[A-Za-z]|St|Mr|Mrs|Dr|Prof|vs|etc|cf|[A-Z]\.[A-Z])\.$")  # ends no sentence


class Prompt(NamedTuple):
    """What is to be continued, and how it really goes on, if that is known."""

    text: str
    reference: str | None = None


def read_prompts(path: Path = PROMPTS) -> list[str]:
    """Read one prompt a line; blank lines and repeated prompts are skipped, and the latter counted on stdout.

    Raises:
        Mistake: There is none.
    """
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(path)) if line.strip()]
    prompts = distinct(lines, str)
    if not prompts:
        raise Mistake(f"{path}: no prompts; write one a line")
    if len(prompts) < len(lines):
        print(f"{path}: {len(lines) - len(prompts)} of {len(lines)} prompts left out: they repeat another")
    return prompts


def first_sentence(text: str) -> Prompt | None:
    """Part a text, without its heading, after its first sentence; None where nothing follows one."""
    heading, _, rest = text.strip().partition("\n")
    body = text.strip() if SENTENCE_END.search(heading) else rest.strip()
    ends = (match.end() for match in SENTENCE_END.finditer(body) if not ABBREVIATION.search(body[: match.end()]))
    end = next((end for end in ends if len(pieces_of(body[:end])) >= 4), len(body))
    return Prompt(body[:end].strip(), body[end:].strip()) if body[end:].strip() else None


def as_prompts(texts: list[str]) -> list[Prompt]:
    """Return prompts of which it is not known how they go on."""
    return [Prompt(text) for text in texts]


def add_first_sentences(
    prompts: list[Prompt], texts: Iterable[str], number: int, fits: Callable[[str], bool] = lambda text: True
) -> list[Prompt]:
    """Add the first sentences of so many texts to the prompts, and say so where there are fewer.

    Texts that would repeat a prompt are passed over, and those whose first sentence does not fit.
    """
    sentences = (prompt for prompt in map(first_sentence, texts) if prompt and fits(prompt.text))
    found = distinct([*prompts, *sentences], lambda prompt: prompt.text)[: len(prompts) + number]
    if len(found) < len(prompts) + number:
        print(
            f"params.yaml: generate.held_out: {number} held-out texts are asked for; {len(found) - len(prompts)} have "
            "a first sentence that leaves room for more"
        )
    return found
