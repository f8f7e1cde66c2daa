"""Paired runs, for instance two methods with the same seeds: Student's test, and that of signs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

EXACT = 16  # differences up to which all signs are tried


class PairedTest(NamedTuple):
    """Pairs of values, for instance of two methods with the same seeds.

    Attributes:
        difference: the mean of first - second.
        low: lower end of Student's interval.
        high: upper end.
        p_t: two-sided p value of the paired t test.
        p_permutation: two-sided p value of changing the differences' signs.
    """

    difference: float
    low: float
    high: float
    p_t: float
    p_permutation: float


def paired_test(
    values_a: ArrayLike, values_b: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> PairedTest:
    """Whether two methods differ over paired runs, for instance over seeds.

    t = mean(d) / (std(d) / sqrt(n)), d = a - b, with n - 1 degrees of freedom; and the share of
    the 2^n ways to give the differences signs in which |mean| is at least the observed one.

    Args:
        values_a: [n], a measure of the first, run by run.
        values_b: [n], of the second, in the same order.
        confidence: of the interval, in (0, 1).
        seed: of the signs; beyond 16 pairs, 20 000 of the ways are drawn.

    Returns:
        A `PairedTest`. With one pair interval and `p_t` are NaN. The smallest `p_permutation`
        that n pairs can give is 2^(1 - n): with 5 seeds .0625.

    Raises:
        ValueError: shapes differ, no value, or one that is not finite.

    Example:
        >>> test = paired_test([0.50, 0.52, 0.54], [0.49, 0.50, 0.51])
        >>> round(test.difference, 6), round(test.p_t, 4), test.p_permutation
        (0.02, 0.0742, 0.25)

    Source: Student, The probable error of a mean (1908); Fisher, The Design of Experiments (1935).
    """
    first, second = (np.asarray(values, np.float64) for values in (values_a, values_b))
    if first.ndim != 1 or first.size == 0 or first.shape != second.shape:
        raise ValueError(
            f"values_a has shape {first.shape} and values_b {second.shape}, expected [n] each"
        )
    differences = first - second
    if not np.isfinite(differences).all():
        raise ValueError(f"values_a - values_b is {differences.tolist()}: must be finite")
    check_confidence(confidence)
    n, mean = differences.size, float(differences.mean())
    ways, exact = signs(n, 20_000, np.random.default_rng(seed))
    reached = np.abs(ways @ differences) >= np.abs(differences.sum()) * (1 - 1e-12)
    p_permutation = float(reached.mean() if exact else (1 + reached.sum()) / (1 + len(ways)))
    if n == 1:
        return PairedTest(mean, math.nan, math.nan, math.nan, p_permutation)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    # Differences that are equal but for rounding have no spread.
    if error <= 1e-14 * abs(mean):
        return PairedTest(mean, mean, mean, 1.0 if mean == 0 else 0.0, p_permutation)
    p_t = 1 - _student(abs(mean) / error, n - 1)
    width = error * _student_quantile(confidence, n - 1)
    return PairedTest(mean, mean - width, mean + width, p_t, p_permutation)


def check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")


def signs(n: int, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Signs [m, n] of +1 and -1: all of them for small n, else drawn; and whether all."""
    if n <= EXACT:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return 1.0 - 2.0 * bits, True
    return 1.0 - 2.0 * rng.integers(0, 2, (draws, n), dtype=np.int8), False


def _student(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's distribution with a whole number of degrees of freedom.

    Source: Abramowitz, Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    share = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, share)


def _student_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| <= t) = confidence."""
    low, high = 0.0, 1.0
    while _student(high, freedom) < confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _student(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2
