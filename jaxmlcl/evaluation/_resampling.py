"""How far a measure, or a difference of two, may be chance: bootstrap intervals and paired tests.

The rows are resampled as weights, so that nothing is copied or sorted again. Replicate number b
draws from (seed, b) alone: the figures depend on neither threads nor memory, and two sets of
scores of the same rows are resampled alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Unpack

import numpy as np
from numpy.typing import ArrayLike

from jaxmlcl.evaluation._counts import THRESHOLD_METRICS, Conventions, ratio, resolve
from jaxmlcl.evaluation._inputs import Inputs, check, check_rows, check_thresholds
from jaxmlcl.evaluation._metrics import METRICS
from jaxmlcl.evaluation._paired import EXACT, check_confidence, signs
from jaxmlcl.evaluation._weighted import RowRatio, row_ratios, weighted_measures

Thresholds = ArrayLike | Mapping[str, float]

_BLOCK = 1 << 19  # cells of a block of weights


class Interval(NamedTuple):
    """A value, and the interval around it."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A measure of two sets of scores of the same rows.

    Attributes:
        first: the measure of the first.
        second: the measure of the second.
        difference: first - second.
        low: lower end of the interval of the difference.
        high: upper end.
        p_bootstrap: two-sided p value; below 1 - confidence where the interval leaves 0 out.
        p_permutation: two-sided p value of exchanging the two row by row; NaN for measures that
            are no sums over rows.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_bootstrap: float
    p_permutation: float


def bootstrap_replicates(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    measures: str | Sequence[str] = "map",
    thresholds: Thresholds = 0.5,
    label_mask: ArrayLike | None = None,
    replicates: int = 1000,
    seed: int = 0,
    **conventions: Unpack[Conventions],
) -> dict[str, np.ndarray]:
    """Measures of rows drawn with replacement, n of n.

    replicate b of a measure = the measure of rows i_1 ... i_n drawn from (seed, b)

    Args:
        scores: [n, L], finite.
        labels: [n, L], 0/1.
        measures: a name, or names, of `METRICS`.
        thresholds: a number, one per label [L], or a dict from measure to number, such as
            `choose_thresholds` gives. They are not chosen anew in each replicate.
        label_mask: [n, L], True where the label is known; None: everywhere.
        replicates: R.
        seed: of the draws; equal n and seed mean equal rows.
        **conventions: as in `multilabel_metrics`.

    Returns:
        Measure -> [R] float64; NaN where the drawn rows leave it undefined.

    Raises:
        ValueError: as `multilabel_metrics`; unknown measure; no threshold for it; replicates < 1.

    Example:
        >>> scores, labels = [[0.9], [0.8], [0.3], [0.1]], [[1], [0], [1], [0]]
        >>> drawn = bootstrap_replicates(
        ...     scores, labels, measures="hamming_accuracy", replicates=5
        ... )
        >>> drawn["hamming_accuracy"]
        array([0.25, 0.5 , 0.5 , 0.75, 0.5 ])

    Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 6.
    """
    inputs = check_rows(check(scores, labels, label_mask))
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}, expected at least 1")
    weights = _draw(len(inputs.scores), replicates, seed)
    return _measure(inputs, _names(measures), thresholds, resolve(conventions), weights)


def bootstrap_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    measures: str | Sequence[str] = "map",
    thresholds: Thresholds = 0.5,
    label_mask: ArrayLike | None = None,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    **conventions: Unpack[Conventions],
) -> dict[str, Interval]:
    """Measures with bootstrap intervals over rows.

    [low, high] = quantiles (1 -/+ confidence) / 2 of the replicates - mean(replicates) + value,
    cut to [0, 1] (but for `coverage`)

    Rows that are drawn twice tie with themselves, which lifts the average precision of rare
    labels; without the shift the interval of a mean over many rare labels can miss its own value.

    Args:
        scores: [n, L], finite.
        labels: [n, L], 0/1.
        measures: a name, or names, of `METRICS`.
        thresholds: as in `bootstrap_replicates`.
        label_mask: [n, L], True where the label is known; None: everywhere.
        replicates: number of resamples.
        confidence: of the interval, in (0, 1).
        seed: of the resamples.
        **conventions: as in `multilabel_metrics`.

    Returns:
        Measure -> `Interval`; all NaN for a measure that is not defined.

    Raises:
        ValueError: as `bootstrap_replicates`; confidence outside (0, 1).

    Example:
        >>> scores, labels = [[0.9], [0.8], [0.3], [0.1]], [[1], [0], [1], [0]]
        >>> value, low, high = bootstrap_interval(scores, labels, measures="micro_f1")["micro_f1"]
        >>> value, round(low, 1), round(high, 1)
        (0.5, 0.1, 1.0)

    Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapters 10 and 13.
    """
    inputs, full = check_rows(check(scores, labels, label_mask)), resolve(conventions)
    drawn = bootstrap_replicates(
        scores,
        labels,
        measures=measures,
        thresholds=thresholds,
        label_mask=label_mask,
        replicates=replicates,
        seed=seed,
        **conventions,
    )
    values = _measure(inputs, list(drawn), thresholds, full, _once(inputs))
    found = {}
    for name, replicate in drawn.items():
        value = float(values[name][0])
        low, high = replicate_interval(value, replicate, confidence)
        if name != "coverage":
            low, high = (float(np.clip(end, 0.0, 1.0)) for end in (low, high))
        found[name] = Interval(value, low, high)
    return found


def paired_comparison(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    *,
    measures: str | Sequence[str] = "map",
    thresholds_a: Thresholds = 0.5,
    thresholds_b: Thresholds = 0.5,
    label_mask: ArrayLike | None = None,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    **conventions: Unpack[Conventions],
) -> dict[str, Comparison]:
    """Measures of two sets of scores of the same rows, and whether they differ by chance.

    - Interval and `p_bootstrap`: the rows are resampled, the same for both; the differences are
      shifted as in `bootstrap_interval`, and `p = 2 (1 + min(#{d <= 0}, #{d >= 0})) / (R + 1)`.
    - `p_permutation`: for measures that are sums over rows, or ratios of such sums (all but mAP,
      the macro measures, AUC, `ece` and the `authors` forms): the two are exchanged in a random
      half of the rows, R times, and `p = (1 + #{|d| >= |observed|}) / (R + 1)`; with up to 16
      rows in all of the 2^n ways.

    Both say how much depends on the rows drawn, with the trained networks as they are; what
    depends on the seed of the training is for `paired_test`.

    Args:
        scores_a: [n, L], finite.
        scores_b: [n, L], finite.
        labels: [n, L], 0/1.
        measures: a name, or names, of `METRICS`.
        thresholds_a: for the first, as in `bootstrap_replicates`.
        thresholds_b: for the second.
        label_mask: [n, L], True where the label is known; None: everywhere.
        replicates: number R of resamples, and of exchanges.
        confidence: of the interval, in (0, 1).
        seed: of both.
        **conventions: as in `multilabel_metrics`.

    Returns:
        Measure -> `Comparison`.

    Raises:
        ValueError: as `bootstrap_interval`; scores_a and scores_b differ in shape.

    Example:
        >>> labels = [[1], [0], [1], [0]]
        >>> found = paired_comparison(
        ...     [[0.9], [0.2], [0.8], [0.1]],
        ...     [[0.1], [0.7], [0.2], [0.6]],
        ...     labels,
        ...     measures="hamming_accuracy",
        ... )
        >>> found["hamming_accuracy"].difference, found["hamming_accuracy"].p_permutation
        (1.0, 0.125)

    Source: Efron, Tibshirani (1993), chapters 13 and 15; Noreen, Computer-Intensive Methods for
        Testing Hypotheses (1989), approximate randomisation.
    """
    full, names = resolve(conventions), _names(measures)
    first, second = (
        check_rows(check(scores, labels, label_mask)) for scores in (scores_a, scores_b)
    )
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}, expected at least 1")
    weights = _draw(len(first.scores), replicates, seed)
    both = ((first, thresholds_a), (second, thresholds_b))
    once = [_measure(inputs, names, cuts, full, _once(inputs)) for inputs, cuts in both]
    drawn = [_measure(inputs, names, cuts, full, weights) for inputs, cuts in both]
    ratios = [_ratios(inputs, names, cuts, full) for inputs, cuts in both]
    exchanged = _exchange(ratios[0], ratios[1], replicates, seed)
    found = {}
    for name in names:
        a, b = (float(values[name][0]) for values in once)
        differences = drawn[0][name] - drawn[1][name]
        found[name] = Comparison(
            a,
            b,
            a - b,
            *replicate_interval(a - b, differences, confidence),
            replicate_p(a - b, differences),
            exchanged.get(name, math.nan),
        )
    return found


def replicate_interval(
    value: float, replicates: ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval that `bootstrap_interval` makes of a value and its replicates.

    [low, high] = quantiles (1 -/+ confidence) / 2 of the replicates - mean(replicates) + value

    For statistics that are made of several measures, such as a mean over seeds: replicates of the
    same rows and seed may be added and subtracted.

    Args:
        value: of the statistic.
        replicates: [R]; NaN are left out.
        confidence: in (0, 1).

    Returns:
        Low and high; NaN if the value is, or all replicates are.

    Raises:
        ValueError: confidence outside (0, 1).

    Example:
        >>> replicate_interval(5.0, [1.0, 2.0, 3.0], confidence=0.5)
        (4.5, 5.5)

    Source: Efron, Tibshirani (1993), chapters 10 and 13.
    """
    check_confidence(confidence)
    drawn = _defined(value, replicates)
    if drawn.size == 0:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) + (value - drawn.mean())
    return float(low), float(high)


def replicate_p(value: float, replicates: ArrayLike) -> float:
    """Two-sided p value of a difference, of its replicates shifted as in `replicate_interval`.

    p = min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (R + 1))

    Args:
        value: the difference.
        replicates: [R]; NaN are left out.

    Returns:
        The p value; NaN if the value is, or all replicates are.

    Example:
        >>> replicate_p(3.0, [-1.0, 0.0, 1.0])
        0.5

    Source: Efron, Tibshirani (1993), section 15.4.
    """
    drawn = _defined(value, replicates)
    if drawn.size == 0:
        return math.nan
    shifted = drawn + (value - drawn.mean())
    # What is 0 but for rounding is on both sides.
    near = 1e-12
    least = min(int((shifted <= near).sum()), int((shifted >= -near).sum()))
    return min(1.0, 2 * (1 + least) / (1 + drawn.size))


def _defined(value: float, replicates: ArrayLike) -> np.ndarray:
    drawn = np.asarray(replicates, np.float64)
    return drawn[:0] if math.isnan(value) else drawn[~np.isnan(drawn)]


def _names(measures: str | Sequence[str]) -> list[str]:
    names = [measures] if isinstance(measures, str) else list(dict.fromkeys(measures))
    for name in names:
        if name not in METRICS:
            raise ValueError(f"measures: {name!r} is unknown, expected one of {list(METRICS)}")
    if not names:
        raise ValueError("measures is empty, expected at least one name")
    return names


def _groups(
    names: Sequence[str], thresholds: Thresholds, num_labels: int
) -> list[tuple[np.ndarray, list[str]]]:
    """Measures that share a threshold ([1] or [L]); those that need none go with the first."""
    if not isinstance(thresholds, Mapping):
        return [(check_thresholds(thresholds, num_labels), list(names))]
    groups: dict[float, list[str]] = {}
    free = [name for name in names if name not in THRESHOLD_METRICS]
    for name in names:
        if name in THRESHOLD_METRICS:
            if name not in thresholds:
                raise ValueError(f"thresholds has none for {name!r}: {sorted(thresholds)}")
            groups.setdefault(float(thresholds[name]), []).append(name)
    groups = groups or {0.5: []}
    groups[next(iter(groups))] += free
    return [(check_thresholds(cut, num_labels), group) for cut, group in groups.items()]


def _measure(
    inputs: Inputs,
    names: Sequence[str],
    thresholds: Thresholds,
    conventions: Conventions,
    weights: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {}
    for cut, group in _groups(names, thresholds, inputs.scores.shape[1]):
        values |= weighted_measures(inputs, group, cut, conventions, weights)
    return {name: values[name] for name in names}


def _ratios(
    inputs: Inputs, names: Sequence[str], thresholds: Thresholds, conventions: Conventions
) -> dict[str, RowRatio]:
    found: dict[str, RowRatio] = {}
    for cut, group in _groups(names, thresholds, inputs.scores.shape[1]):
        found |= row_ratios(inputs, group, cut, conventions)
    return found


def _once(inputs: Inputs) -> list[np.ndarray]:
    return [np.ones((len(inputs.scores), 1), np.float32)]


def _draw(num_rows: int, replicates: int, seed: int) -> list[np.ndarray]:
    """How often each row is drawn, in blocks [n, r]."""
    width = max(16, min(replicates, _BLOCK // num_rows))
    blocks = []
    for start in range(0, replicates, width):
        stop = min(start + width, replicates)
        block = np.empty((stop - start, num_rows), np.float32)
        for i, b in enumerate(range(start, stop)):
            drawn = np.random.default_rng([seed, b]).integers(0, num_rows, num_rows)
            block[i] = np.bincount(drawn, minlength=num_rows)
        blocks.append(np.ascontiguousarray(block.T))
    return blocks


def _exchange(
    first: Mapping[str, RowRatio], second: Mapping[str, RowRatio], replicates: int, seed: int
) -> dict[str, float]:
    """P values of exchanging the two in random rows."""
    if not first:
        return {}
    a = np.stack([array for found in first.values() for array in found[:2]], axis=1)
    b = np.stack([array for found in second.values() for array in found[:2]], axis=1)
    half, middle = (a - b) / 2, (a + b).sum(axis=0) / 2

    def gaps(moved: np.ndarray) -> np.ndarray:
        """Differences of the two ratios [m, measures] when the sums are middle +- moved."""
        one, other = middle + moved, middle - moved
        columns = [
            ratio(one[:, 2 * i], one[:, 2 * i + 1], found.otherwise)
            - ratio(other[:, 2 * i], other[:, 2 * i + 1], found.otherwise)
            for i, found in enumerate(first.values())
        ]
        return np.abs(np.stack(columns, axis=1))

    observed = gaps(half.sum(axis=0)[None])
    rng = np.random.default_rng([seed, replicates])
    reached, size, exact = np.zeros(len(first), np.int64), 0, len(a) <= EXACT
    step = max(1, _BLOCK // len(a))
    for start in range(0, 1 if exact else replicates, step):
        ways, _ = signs(len(a), min(step, replicates - start), rng)
        reached += (gaps(ways @ half) >= observed - 1e-12).sum(axis=0)
        size += len(ways)
    shares = reached / size if exact else (1 + reached) / (1 + size)
    shares[np.isnan(observed[0])] = math.nan
    return dict(zip(first, shares.tolist(), strict=True))
