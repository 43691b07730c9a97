"""Texts to be rated, and raters' answers."""

import json
from pathlib import Path

import numpy as np

from stages.lib.people.judgement import CRITERIA, Item, Key
from stages.lib.people.rating import RateParams

RATE_PARAMS = RateParams(seed=1, resamples=1000)
WORDS = [
    "the",
    "a",
    "river",
    "city",
    "was",
    "is",
    "in",
    "of",
    "and",
    "large",
    "old",
    "new",
    "found",
    "made",
    "people",
    "water",
]
HOSTILE = "<script>alert(1)</script></script><!-- <b>\u2028\u202e &amp; \"'` \U0001f600 \\u003c {{data}} אבג"


def answers(seed: int, number: int = 10) -> tuple[list[dict], list[dict]]:
    """Texts of two models that write alike."""
    rng = np.random.default_rng(seed)
    prompts = [f"Prompt {n} is" for n in range(number)]
    return tuple(
        [{"prompt": p, "text": " ".join(rng.choice(WORDS, rng.integers(20, 60))) + ".", "ended": True} for p in prompts]
        for _ in range(2)
    )


def answer(item: Item, tuned: int = 4, base: int = 2, preference="tuned") -> dict:
    """Rate an item's texts by their arms."""
    ratings = [dict.fromkeys(CRITERIA, tuned if arm == "tuned" else base) for arm in item.arms]
    chosen = item.arms.index(preference) if preference in item.arms else preference
    return {"item": item.id, "left": 0, "ratings": ratings, "preference": chosen}


def save(folder: Path, key: Key, rater: str, given: list) -> None:
    (folder / f"ratings-{rater}.json").write_text(json.dumps({"sheet": key.sheet, "rater": rater, "answers": given}))


def compared(key: Key) -> list[Item]:
    return [item for item in key.items if item.kind == "compared"]
