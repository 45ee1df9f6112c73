"""Statistics over seeds: interquartile mean, bootstrap intervals, paired differences, what so many seeds can show.

The aggregate and its interval are those of "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(Agarwal et al. 2021): the interquartile mean, and a percentile bootstrap stratified by task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 10_000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An aggregate and its confidence interval; ``low`` and ``high`` are nan where there is a single run."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean difference of two methods over the seeds that both have.

    Attributes:
        pairs: P, number of seeds.
        mean: Mean of first minus second.
        low: Lower end of its interval; nan for a single pair, as are the following.
        high: Upper end.
        deviation: Standard deviation of the paired differences, unbiased variance.
        detectable: See :func:`detectable_difference`.
    """

    pairs: int
    mean: float
    low: float
    high: float
    deviation: float
    detectable: float


def interquartile_mean(scores: ArrayLike) -> Array:
    """Mean of what is left of the last axis without its ``floor(N / 4)`` smallest and as many largest values.

    Args:
        scores: ``[..., N]``; up to three values this is their mean.

    Returns:
        ``[...]``.

    Raises:
        ValueError: There is no value.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=-1)
    count = ordered.shape[-1]
    if count == 0:
        raise ValueError("an interquartile mean needs at least one value, got none")
    cut = count // 4
    return np.asarray(ordered[..., cut : count - cut].mean(axis=-1))


def stratified_interval(
    scores: ArrayLike,
    aggregate: Callable[[Array], Array] = interquartile_mean,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of an aggregate over runs and tasks; runs are drawn anew within each task.

    With few runs it is too narrow: for the mean of S normal scores it covers what a t-interval does whose quantile is
    the normal one times ``sqrt((S - 1) / S)``, which is 85 % for S = 5 and 92 % for S = 16 where 95 % was asked for.

    Args:
        scores: One score a run ``[S]``, or ``[S, T]`` for T tasks; every task is a stratum.
        aggregate: ``[..., N] -> [...]``.
        level: Confidence in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: There is no score, or it is not of that shape.
    """
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"expected scores of shape [S] or [S, T] with S, T >= 1, got {np.shape(scores)}")
    runs, tasks = table.shape
    value = float(aggregate(table.ravel()))
    if runs == 1:
        return Interval(value, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(runs, size=(resamples, runs, tasks))
    replicates = aggregate(table[drawn, np.arange(tasks)].reshape(resamples, runs * tasks))
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Mean of ``first - second`` over seeds, with a bootstrap interval that is widened for few pairs.

    The percentiles are moved out to ``Phi(-sqrt(P / (P - 1)) t)``, t being Student's quantile (Hesterberg 2015, the
    expanded percentile interval), so that for normal differences it is about as wide as the t-interval. It still cannot
    leave the range of the P differences, so it covers at most :func:`largest_coverage`.

    Args:
        first: ``[P]``, one score a seed.
        second: ``[P]``, the same seeds in the same order.
        level: Confidence in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: The two are not of one shape ``[P]`` with P >= 1.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"expected two sets of scores of one shape [P], P >= 1, got {a.shape} and {b.shape}")
    differences = a - b
    pairs, mean = len(differences), float(differences.mean())
    if pairs == 1:
        return Difference(1, mean, math.nan, math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(pairs, size=(resamples, pairs))
    wide = math.sqrt(pairs / (pairs - 1)) * student_quantile((1 + level) / 2, pairs - 1)
    tail = NormalDist().cdf(-wide)
    low, high = np.quantile(differences[drawn].mean(axis=1), [tail, 1 - tail])
    deviation = float(differences.std(ddof=1))
    return Difference(pairs, mean, float(low), float(high), deviation, detectable_difference(deviation, pairs))


def detectable_difference(deviation: float, pairs: int, *, power: float = POWER, level: float = LEVEL) -> float:
    """Smallest true mean difference that so many pairs show with probability ``power``: the minimum detectable effect.

    ``(t_{(1 + level) / 2} + t_power) deviation / sqrt(pairs)`` with Student's quantiles at ``pairs - 1`` degrees of
    freedom, for a two-sided paired t-test. From four pairs on the power is within .02 of the wanted one. The deviation
    is itself an estimate, and 0 where all differences are equal.

    Args:
        deviation: Standard deviation of the paired differences.
        pairs: Number of pairs, at least 2.
        power: Wanted probability, in (0.5, 1).
        level: Confidence of the test, in (0, 1).
    """
    quantiles = student_quantile((1 + level) / 2, pairs - 1) + student_quantile(power, pairs - 1)
    return quantiles * deviation / math.sqrt(pairs)


def largest_coverage(pairs: int) -> float:
    """``1 - 2^(1 - pairs)``: the chance that the mean of a symmetric distribution lies within the range of a sample."""
    return 1.0 - 2.0 ** (1 - pairs)


def student_central(t: float, freedom: int) -> float:
    """``P(|T| <= t)`` of Student's distribution with a whole number of degrees of freedom.

    The finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4, in ``theta = atan(t / sqrt(freedom))``.

    Raises:
        ValueError: If ``freedom`` is less than 1.
    """
    if freedom < 1:
        raise ValueError(f"freedom must be at least 1 (two pairs), got {freedom}")
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(1 + odd, freedom, 2):  # one term for each even, or odd, exponent up to freedom - 2
        total += term
        term *= cosine * cosine * power / (power + 1)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's distribution, by bisection.

    Raises:
        ValueError: If ``probability`` is not in [0.5, 1), or ``freedom`` is less than 1.
    """
    if not 0.5 <= probability < 1.0:
        raise ValueError(f"probability must be in [0.5, 1), got {probability}")
    central = 2 * probability - 1
    low, high = 0.0, 1.0
    while student_central(high, freedom) < central:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_central(middle, freedom) < central else (low, middle)
    return (low + high) / 2
