"""Methods over several data sets: average ranks, and whether they differ.

SciPy is imported when a test is made, so that importing the room stays quick.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class FriedmanTest(NamedTuple):
    """Whether any of several methods differs over data sets.

    Attributes:
        statistic: Friedman's chi-squared, corrected for ties.
        p: its p value, k - 1 degrees of freedom.
        f_statistic: Iman and Davenport's form of it, which is less conservative.
        f_p: its p value, k - 1 and (k - 1)(N - 1) degrees of freedom.
    """

    statistic: float
    p: float
    f_statistic: float
    f_p: float


class WilcoxonTest(NamedTuple):
    """One pair of methods over data sets.

    Attributes:
        first: column of one method.
        second: column of the other.
        difference: the median over the sets of first - second.
        statistic: the smaller of the two sums of ranks.
        p: two-sided p value.
        p_holm: p after Holm's correction for all the pairs that were tested together.
    """

    first: int
    second: int
    difference: float
    statistic: float
    p: float
    p_holm: float


def average_ranks(values: ArrayLike, higher_is_better: bool) -> np.ndarray:
    """The rank of each method, 1 for the best, as a mean over data sets.

    Methods that are equal on a set share the mean of their ranks there.

    Args:
        values: [sets, methods], one measure.
        higher_is_better: whether the largest value of a set has rank 1.

    Returns:
        [methods] float64, from 1 to their number; they sum to k (k + 1) / 2.

    Raises:
        ValueError: not two axes, nothing in them, or a value that is not finite.

    Example:
        >>> average_ranks([[0.9, 0.8, 0.8], [0.7, 0.9, 0.5]], higher_is_better=True)
        array([1.5 , 1.75, 2.75])

    Source: J. Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006.
    """
    from scipy.stats import rankdata

    table = _table(values)
    return rankdata(-table if higher_is_better else table, axis=1).mean(0)


def friedman_test(values: ArrayLike) -> FriedmanTest:
    """Whether the average ranks of k methods over N data sets differ by more than chance.

    Args:
        values: [sets, methods], one measure; three methods and two sets at least. Which end is
            better does not matter.

    Returns:
        A `FriedmanTest`. Where all methods are equal on every set, statistics are 0 and p 1.

    Raises:
        ValueError: too few methods or sets, or a value that is not finite.

    Example:
        >>> test = friedman_test([[1, 2, 3], [1, 3, 2], [1, 2, 3], [2, 1, 3]])
        >>> round(test.statistic, 3), round(test.p, 3), round(test.f_p, 3)
        (4.5, 0.105, 0.084)

    Source: Demsar, JMLR 7, 2006, section 3.2.2; Iman, Davenport, 1980.
    """
    from scipy.stats import f, friedmanchisquare

    table = _table(values)
    sets, methods = table.shape
    if methods < 3 or sets < 2:
        raise ValueError(
            f"values has shape {table.shape}: expected at least two sets and three methods; "
            "for two methods take wilcoxon_signed_rank"
        )
    if (table == table[:, :1]).all():
        return FriedmanTest(0.0, 1.0, 0.0, 1.0)
    chi2, p = (float(x) for x in friedmanchisquare(*table.T))
    rest = sets * (methods - 1) - chi2
    # The same order on every set leaves nothing to divide by.
    ratio = (sets - 1) * chi2 / rest if rest > 1e-9 * sets * methods else math.inf
    freedom = methods - 1
    return FriedmanTest(chi2, p, ratio, float(f.sf(ratio, freedom, freedom * (sets - 1))))


def nemenyi_critical_difference(methods: int, sets: int, alpha: float = 0.05) -> float:
    """The difference in average rank from which two of several methods differ.

        CD = q_alpha sqrt(k (k + 1) / (6 N))

    with q_alpha the quantile of the studentized range of k groups, infinite degrees of freedom,
    divided by sqrt(2).

    Args:
        methods: k, at least 2.
        sets: N, at least 1.
        alpha: chance of any false difference, in (0, 1).

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> round(nemenyi_critical_difference(4, 14), 2)
        1.25

    Source: Demsar, JMLR 7, 2006, section 3.2.2 and table 5(a).
    """
    from scipy.stats import studentized_range

    if methods < 2 or sets < 1:
        raise ValueError(f"methods is {methods} and sets {sets}: expected at least 2 and 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected a number between 0 and 1")
    quantile = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * sets))


def wilcoxon_signed_rank(values: ArrayLike, *, against: int | None = None) -> list[WilcoxonTest]:
    """Wilcoxon's signed-rank test of pairs of methods over data sets, corrected after Holm.

    Sets on which a pair is equal are kept, their ranks split between both sides. p is exact up to
    50 sets without ties, and an approximation otherwise.

    Args:
        values: [sets, methods], one measure; two methods at least.
        against: column that all others are compared with; None: every pair.

    Returns:
        One `WilcoxonTest` for each pair, in the order of the columns. Methods that are equal on
        every set have p 1. The smallest p that N sets can give is 2^(1 - N): with five .0625.

    Raises:
        ValueError: too few methods, a column that is not there, or a value that is not finite.

    Example:
        >>> table = [[0.1, 0.2], [0.3, 0.5], [0.2, 0.6], [0.1, 0.9], [0.2, 0.3], [0.4, 0.95]]
        >>> wilcoxon_signed_rank(np.round(table, 2) + [0, 0.001])[0].p
        0.03125

    Source: Demsar, JMLR 7, 2006, section 3.1.3; S. Holm, A simple sequentially rejective multiple
    test procedure, 1979.
    """
    table = _table(values)
    methods = table.shape[1]
    if methods < 2:
        raise ValueError(f"values has shape {table.shape}: expected at least two methods")
    if against is None:
        pairs = list(itertools.combinations(range(methods), 2))
    elif 0 <= against < methods:
        pairs = [(against, other) for other in range(methods) if other != against]
    else:
        raise ValueError(f"against is {against}; expected a column from 0 to {methods - 1}")
    tests = [_wilcoxon(table[:, a] - table[:, b]) for a, b in pairs]
    corrected = holm(np.array([p for _, p in tests]))
    return [
        WilcoxonTest(a, b, float(np.median(table[:, a] - table[:, b])), statistic, p, float(mended))
        for (a, b), (statistic, p), mended in zip(pairs, tests, corrected, strict=True)
    ]


def holm(p_values: np.ndarray) -> np.ndarray:
    """p values [m] corrected for being m: rejected one after the other, the smallest first.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03]))
        array([0.03, 0.06, 0.06])
    """
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def _wilcoxon(differences: np.ndarray) -> tuple[float, float]:
    from scipy.stats import wilcoxon

    if not differences.any():
        half = len(differences) * (len(differences) + 1) / 4
        return half, 1.0
    found = wilcoxon(differences, zero_method="zsplit", method="auto")
    return float(found.statistic), float(found.pvalue)


def _table(values: ArrayLike) -> np.ndarray:
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"values has shape {table.shape}; expected [sets, methods]")
    if not np.isfinite(table).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(table))[0])
        raise ValueError(
            f"values{list(place)} is {table[place]}: leave out sets that a method has no value for"
        )
    return table
