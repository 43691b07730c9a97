"""Intervals: what a number could as well have been, had other documents or prompts been drawn."""

from collections.abc import Callable, Iterable

import numpy as np
from scipy.stats import bootstrap


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], number: int, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Return a statistic of units drawn with repetition, and the bounds of its 95 % interval.

    The interval is bootstrapped, bias-corrected and accelerated (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 14).

    Args:
        statistic: Takes the indices of the drawn units [..., number] and returns [...].
        number: Units: documents, or prompts; two at least.
        resamples: Draws.
        seed: Of the draws.
    """
    every = np.arange(number)
    value = float(statistic(every))
    if np.ptp([statistic(every[[unit]]) for unit in every]) == 0:  # all say the same: nothing to estimate
        return value, value, value
    drawn = bootstrap(
        (every,),
        lambda index, axis: statistic(index),
        vectorized=True,
        batch=max(1, 2**18 // number),
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def named(name: str, values: Iterable[float]) -> dict[str, float]:
    """Name a value and the bounds of its interval."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
