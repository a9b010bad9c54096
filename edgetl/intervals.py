"""Estimates with 95 % intervals. [no torch, no pydantic]"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""

MOST_LOG = 300.0
"""Half the width of an interval on the logarithm, beyond which the number would be none."""

MOST_BLOCKS = 256
"""Blocks that a long series is reduced to before a line is laid through it."""


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval, in the unit of the value."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """Return a share of n with Wilson's interval (Wilson 1927); n must be positive."""
    share = successes / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # Rounding must not put an end of the interval on the wrong side of the share.
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def paired_difference(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Interval:
    """Return mean(a) - mean(b) over the same samples, with the interval of Agresti & Min (2005).

    It is the normal interval of the paired difference after half a sample is added to each cell of the 2 x 2 table, so
    that a few samples without a difference prove little: the plain one would have no width.
    """
    n = len(a) + 2
    only_a, only_b = int((a & ~b).sum()) + 0.5, int((b & ~a).sum()) + 0.5
    centre = (only_a - only_b) / n
    half = Z * math.sqrt(only_a + only_b - (only_a - only_b) ** 2 / n) / n
    value = (only_a - only_b) / len(a)
    return Interval(value, min(value, centre - half), max(value, centre + half))


@cache
def student_t(probability: float, freedom: int) -> float:
    """Return the two-sided quantile: P(|T| < t) = probability for Student's t with that many degrees of freedom.

    The distribution is a finite sum for whole degrees of freedom (Abramowitz & Stegun 26.7.3-4); it is inverted by
    bisection, so scipy is not needed on a device.
    """
    low, high = 0.0, 1.0
    while student_within(high, freedom) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if student_within(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high


def student_within(t: float, freedom: int) -> float:
    """Return P(|T| < t) for Student's t with that many degrees of freedom."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def geometric_mean(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the geometric mean of positive values, one per round, with Student's interval on their logarithms.

    One value has an interval that reaches from 0 to infinity.
    """
    logs = np.log(np.asarray(values, np.float64))
    mean, n = float(logs.mean()), len(logs)
    if n < 2:
        return Interval(math.exp(mean), 0.0, math.inf)
    half = student_t(level, n - 1) * float(logs.std(ddof=1)) / math.sqrt(n)
    half = min(half, MOST_LOG)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def paired_ratio(new: Sequence[float], base: Sequence[float], level: float = 0.95) -> Interval:
    """Return new / base over the same rounds, with Student's interval on the logarithms of the ratios.

    Pairing by round removes what both share, such as a slow drift of the clock (Kalibera & Jones 2013).
    """
    return geometric_mean(np.divide(new, base).tolist(), level)


def half_width(interval: Interval) -> float:
    """Return how far the upper end lies above the value, as a share of the value."""
    return interval.high / interval.value - 1


def theil_sen(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the change from the first to the last value along Theil and Sen's line, the median of all slopes.

    Long series are first reduced to the medians of blocks, because the number of slopes grows with the square.
    """
    y = np.asarray(values, np.float64)
    parts = np.array_split(np.arange(len(y)), min(len(y), MOST_BLOCKS))
    if len(parts) < 2:
        return 0.0
    x = np.array([part.mean() for part in parts])
    y = np.array([np.median(y[part]) for part in parts])
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[j] - y[i]) / (x[j] - x[i]))) * (len(values) - 1)


def early_stopping(
    samples: Sequence[float] | NDArray[np.float64], percentile: float, confidence: float = 0.99
) -> float | None:
    """Return a latency that the percentile stays below with that confidence; None where samples are too few.

    MLPerf's early-stopping estimate: with t the largest count, at least 1, for which P(Binomial(n, 1 - percentile)
    <= t) <= 1 - confidence, the t - 1 largest samples are discarded and the largest of the rest is the answer.
    It needs 64 samples for the 90th percentile, 662 for the 99th and 6,636 for the 99.9th.
    """
    n = len(samples)
    allowed = allowed_above(n, percentile, confidence)
    return None if allowed < 1 else float(np.sort(np.asarray(samples, np.float64))[n - allowed])


def allowed_above(n: int, percentile: float, confidence: float = 0.99) -> int:
    """Return how many of n samples may lie above a latency that still proves the percentile; -1: n is too few."""
    below, above = math.log(percentile), math.log(1 - percentile)
    total, count = 0.0, 0
    while count <= n:
        choices = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
        total += math.exp(choices + count * above + (n - count) * below)
        if total > 1 - confidence:
            break
        count += 1
    return count - 1
