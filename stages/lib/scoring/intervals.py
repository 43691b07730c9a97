"""Intervals: what a number could as well have been, had other documents, answers or prompts been drawn."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binomtest, bootstrap, norm, t

from stages.lib.records import Change, Interval

FEWEST_UNITS = 6  # with fewer, more than 5 % of all flips of signs say as much as what was found
EXACT_UNITS = 16  # up to so many, every flip is counted
BLOCK_NUMBERS = 2**22  # flips times units, held at once


def change(sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> Change:
    """Return a change per size, such as nats per token, with the interval and p-value of the sign-flip test.

    If nothing but chance moved the units, each unit's change could as well have had the other sign. The p-value is the
    share of flips of the units' signs, that of none included, which move the whole at least as far as it was moved.
    The 95 % interval holds every change that this test, asked about it instead of about none, does not refuse at 5 %;
    so the two never disagree: it excludes zero exactly where the p-value is at most 0.05.

    No search is needed. A flip parts the units into those that keep their sign and the others. Asked about a change c
    of all units, it moves the whole at least as far as was found exactly if c lies between the two parts' own changes
    per size, which enclose that of the whole. So the bounds are quantiles of the lower and of the upper of these two.

    Args:
        sums: The change of each unit [units].
        sizes: What each is divided by, above zero [units].
        resamples: Random flips; all are counted where the units are few.
        seed: Of the flips.

    Single units that become right (1) or wrong (-1) or stay (0) have a test and an interval of their own.

    Source: inversion of a randomisation test, Garthwaite, Confidence intervals from randomization tests, 1996.
    """
    assert np.isfinite(sums).all() and (sizes > 0).all()
    if (sizes == sizes[0]).all() and np.isin(sums / sizes, (-1, 0, 1)).all():
        return change_of_shares(sums / sizes)
    total, size, rounding = float(sums.sum()), float(sizes.sum()), 1e-12 * float(np.abs(sums).sum())
    if not sums.any():
        return Change(Interval(0.0, 0.0, 0.0), 1.0)
    lows, highs = [np.array([-math.inf])], [np.array([math.inf])]  # of the flip that leaves all as it is
    for kept in _flips(len(sums), resamples, seed):
        part_sums, part_sizes = kept @ sums, kept @ sizes
        parts = part_sums / part_sizes, (total - part_sums) / (size - part_sizes)
        for part, rest in zip(parts, (part_sums, total - part_sums), strict=True):
            part[np.abs(rest) <= rounding] = 0.0  # a tie with no change is one, whatever rounding makes of it
        lows.append(np.minimum(*parts))
        highs.append(np.maximum(*parts))
    low, high = np.concatenate(lows), np.concatenate(highs)
    p_value = float(np.count_nonzero((low <= 0) & (high >= 0)) / len(low))
    refused, value = len(low) // 20, total / size
    bounds = np.sort(low)[refused], np.sort(high)[::-1][refused]
    # Rounding may put the bounds of equal changes a last digit beside them.
    return Change(Interval(value, min(value, float(bounds[0])), max(value, float(bounds[1]))), p_value)


def _flips(num_units: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield flips but that of none [flips, units]: 1 where a unit keeps its sign. A flip and its reverse are one."""
    rows = max(1, BLOCK_NUMBERS // num_units)
    if num_units <= EXACT_UNITS:
        numbers = np.arange(1, 2 ** (num_units - 1))
        blocks = (numbers[start : start + rows] for start in range(0, len(numbers), rows))
        yield from ((block[:, None] >> np.arange(num_units) & 1).astype(float) for block in blocks)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        kept = rng.integers(0, 2, (min(rows, resamples - start), num_units)).astype(float)
        yield kept[(kept != kept[:, :1]).any(-1)]


def change_of_shares(changes: np.ndarray) -> Change:
    """Return the change of the share of units that are right, of 1 (became right), -1 (became wrong) and 0.

    The p-value is that of McNemar's exact test, which is the sign-flip test of such changes; the interval is Tango's
    for paired proportions (1998), which holds what it says where few units changed. It is widened to no change where
    the test does not refuse that: the two never disagree.

    Args:
        changes: Of each unit [units].
    """
    units, gained, lost = len(changes), int((changes > 0).sum()), int((changes < 0).sum())
    value = (gained - lost) / units
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    if units < FEWEST_UNITS:
        return Change(Interval(value, -math.inf, math.inf), p_value)

    def distance(share: float) -> float:  # of what was found from a true change of so much, in standard errors
        linear = (2 * units - gained + lost) * share - gained - lost
        root = math.sqrt(max(0.0, linear**2 + 8 * units * lost * share * (1 - share)))
        variance = units * (2 * (root - linear) / (4 * units) + share * (1 - share))
        return (gained - lost - units * share) / math.sqrt(max(variance, 1e-12))

    def bound(end: float, quantile: float) -> float:
        def beyond(share: float) -> float:
            return distance(share) - quantile

        if beyond(end) * quantile <= 0:
            return round(end)  # even the largest change is not refused
        first, last = sorted((end, value * (1 - 1e-9)))
        return float(root_scalar(beyond, bracket=(first, last)).root)

    z = float(norm.ppf(0.975))
    low, high = bound(-1 + 1e-9, z), bound(1 - 1e-9, -z)
    if p_value > 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    return Change(Interval(value, min(low, value), max(high, value)), p_value)


def spread(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Return the standard deviation of the units' changes per size, in which large units count for more.

    By it and the sizes, the whole's change per size has the standard error of a ratio (Cochran, Sampling Techniques,
    1977, section 6.4).
    """
    units = len(sums)
    if units < 2:
        return math.inf
    rests = sums - sums.sum() / sizes.sum() * sizes
    return float(np.sqrt(units / (units - 1) * (rests**2).sum() / (sizes**2).sum()))


def smallest_visible(spread: float, sizes: np.ndarray) -> float:
    """Return the smallest change per size that four of five such studies would find (power 80 %, two-sided, 5 %).

    Args:
        spread: Of the units' changes per size.
        sizes: Of the units; unequal ones count as fewer, (sum of sizes)² / sum of squares (Kish 1965).
    """
    if len(sizes) < FEWEST_UNITS:
        return math.inf
    effective = sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum()
    quantiles = t.ppf([0.975, 0.8], len(sizes) - 1).sum() / math.sqrt(effective)
    if len(sizes) == FEWEST_UNITS:  # all of which must agree
        quantiles = max(quantiles, float(norm.ppf(0.8 ** (1 / FEWEST_UNITS))))
    return float(quantiles * spread)


def over_seeds(sums: np.ndarray, sizes: np.ndarray) -> Interval:
    """Return the mean change per size of several trainings, with an interval for other units and other seeds at once.

    Its variance is that of the mean change over units, plus that of the trainings over their number: variance
    components of two crossed factors (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4). Each part
    has Student's t of its own degrees of freedom: one for all would be too narrow for two or three seeds.

    Args:
        sums: The change of each unit in each training [seeds, units]; two seeds and six units at least.
        sizes: What each is divided by [units].
    """
    seeds, units = sums.shape
    changes = sums.sum(1) / sizes.sum()
    of_seeds = changes.var(ddof=1) / seeds
    of_units = (spread(sums.mean(0), sizes) * np.sqrt((sizes.astype(float) ** 2).sum()) / sizes.sum()) ** 2
    quantiles = t.ppf(0.975, [seeds - 1, units - 1])
    value, half = float(changes.mean()), float(np.sqrt(quantiles[0] ** 2 * of_seeds + quantiles[1] ** 2 * of_units))
    return Interval(value, value - half, value + half)


def bootstrapped(statistic: Callable[[np.ndarray], np.ndarray], num_units: int, resamples: int, seed: int) -> Interval:
    """Return a statistic that is no change per size, with a 95 % interval from units drawn with replacement.

    The interval is bias-corrected and accelerated (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 14). From few units it is too narrow (docs/evaluation.md): no verdict rests on it.

    Args:
        statistic: Takes the indices of the drawn units [..., num_units] and returns [...].
        num_units: Documents; two at least.
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
