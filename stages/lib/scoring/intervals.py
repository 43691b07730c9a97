"""Intervals: what a number could as well have been, had other documents or prompts been drawn."""

from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap

from stages.lib.records import Interval


def interval(statistic: Callable[[np.ndarray], np.ndarray], num_units: int, resamples: int, seed: int) -> Interval:
    """Return a statistic of all units, and its 95 % confidence interval from units drawn with replacement.

    The interval is bootstrapped, bias-corrected and accelerated (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 14).

    Args:
        statistic: Takes the indices of the drawn units [..., num_units] and returns [...].
        num_units: Documents, or prompts; two at least.
        resamples: Bootstrap samples.
        seed: Of the samples.
    """
    every = np.arange(num_units)
    value = float(statistic(every))
    if np.ptp([statistic(every[[unit]]) for unit in every]) == 0:  # all say the same: nothing to estimate
        return Interval(value, value, value)
    drawn = bootstrap(
        (every,),
        lambda index, axis: statistic(index),
        vectorized=True,
        batch=max(1, 2**18 // num_units),
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return Interval(value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))
