"""Simulated studies: how often a 95 % interval holds the truth, and how often a verdict is given where nothing changed.

`PYTHONPATH=. python -m tests.support.studies 20000` prints the tables of docs/evaluation.md.
"""

import sys
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from stages.lib.records import Interval
from stages.lib.scoring import intervals
from stages.lib.scoring.intervals import _flips, bootstrapped, change

UNITS = (6, 12, 26, 60, 200)
FLIPS = 1999
Gains = Callable[[np.random.Generator, int], np.ndarray]
GAINS: dict[str, Gains] = {  # of documents, nats per token, of mean 0 and about the same spread
    "gaussian": lambda rng, number: rng.normal(0, 1, number),
    "heavy-tailed (Student's t, 3 degrees)": lambda rng, number: rng.standard_t(3, number) / 3**0.5,
    "skewed (exponential)": lambda rng, number: rng.exponential(1, number) - 1,
}
EXTREME: dict[str, Gains] = {  # a few documents hold most of the gain
    "very skewed (log-normal)": lambda rng, number: (rng.lognormal(0, 1, number) - np.exp(0.5)) / 2.16,
}


def draw_documents(rng: np.random.Generator, gains: Gains, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the changes of summed loss of documents, and their tokens: a third of them twice as long, or half."""
    tokens = np.ceil(500 * rng.lognormal(0, 0.7, units))
    return gains(rng, units) * tokens, tokens


def draw_answers(rng: np.random.Generator, wrong_to_right: float, right_to_wrong: float, units: int) -> np.ndarray:
    """Draw the changes of single answers, right (1) or wrong (0) before and after."""
    drawn = rng.random(units)
    return (drawn < wrong_to_right).astype(float) - (drawn > 1 - right_to_wrong)


def cover(rng: np.random.Generator, gains: Gains, units: int, studies: int, old: bool = False) -> tuple[float, float]:
    """Return the share of studies whose interval holds the true change, none, and the share with a verdict."""
    held = verdicts = 0
    for _ in range(studies):
        sums, tokens = draw_documents(rng, gains, units)
        if old:

            def ratio(drawn: np.ndarray, sums: np.ndarray = sums, tokens: np.ndarray = tokens) -> np.ndarray:
                return sums[drawn].sum(-1) / tokens[drawn].sum(-1)

            found = bootstrapped(ratio, units, 1000, 1)
        else:
            found, p_value = change(sums, tokens, FLIPS, 1)
            assert (p_value <= 0.05) == excludes(found, 0.0)  # they never disagree
        held += not excludes(found, 0.0)
        verdicts += excludes(found, 0.0)
    return held / studies, verdicts / studies


def cover_answers(rng: np.random.Generator, gained: float, lost: float, units: int, studies: int) -> float:
    """Return the share of studies of single answers whose interval holds the true change of the share that is right."""
    found = (change(draw_answers(rng, gained, lost, units), np.ones(units), FLIPS, 1) for _ in range(studies))
    return sum(not excludes(interval, gained - lost) for interval, _ in found) / studies


def excludes(interval: Interval, value: float) -> bool:
    """Return whether a value lies outside, by more than rounding."""
    return value < interval.low - 1e-12 or value > interval.high + 1e-12


def main(studies: int) -> None:
    rng = np.random.default_rng(0)
    drawn = lru_cache(lambda *arguments: list(_flips(*arguments)))  # all studies flip alike: draw the flips once
    intervals._flips = drawn
    print(f"| gains of documents | interval | {' | '.join(map(str, UNITS))} |")
    for name, gains in (GAINS | EXTREME).items():
        for old in (False, True):
            covered = [cover(rng, gains, units, studies // 20 if old else studies, old)[0] for units in UNITS]
            cells = " | ".join(f"{share:.3f}" for share in covered)
            print(f"| {name} | {'BCa' if old else 'sign flips'} | {cells} |", flush=True)
    for gained, lost in ((0.3, 0.1), (0.5, 0.02), (0.03, 0.01), (0.1, 0.1)):
        covered = [cover_answers(rng, gained, lost, units, studies) for units in UNITS]
        print(
            f"| {gained:.0%} gained, {lost:.0%} lost | {' | '.join(f'{share:.3f}' for share in covered)} |", flush=True
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
