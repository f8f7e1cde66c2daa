"""Measures of recovered label distributions against the true ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

DISTRIBUTION_MEASURES = (
    "kl_true_recovered",
    "kl_recovered_true",
    "chebyshev",
    "clark",
    "canberra",
    "cosine",
    "intersection",
)
LARGER_IS_BETTER = frozenset({"cosine", "intersection"})
# A degree of 0 is taken as this where its logarithm is wanted.
LEAST_DEGREE = float(np.finfo(np.float64).eps)
# How far the degrees of a row may be from 1 together: float32 and printed digits stay below it.
SUM_TOLERANCE = 1e-3


def distribution_measures(
    recovered: ArrayLike, true: ArrayLike, *, reduce: bool = True
) -> dict[str, float | np.ndarray]:
    """Distances and similarities of recovered label distributions R and true ones T.

    Each is a mean over rows; 0 ln 0 and 0 / 0 count as 0.

    ===================== ==============================================================
    measure               of a row
    ===================== ==============================================================
    `kl_true_recovered`   sum_j T_j ln(T_j / max(R_j, 2.2e-16))
    `kl_recovered_true`   sum_j R_j ln(R_j / T_j); infinite where T_j = 0 < R_j, and such
                          rows leave the mean, as the authors of the data sets do
    `chebyshev`           max_j |R_j - T_j|
    `clark`               sqrt(sum_j ((R_j - T_j) / (R_j + T_j))^2)
    `canberra`            sum_j |R_j - T_j| / (R_j + T_j)
    `cosine`              sum_j R_j T_j / (||R|| ||T||), larger is better
    `intersection`        sum_j min(R_j, T_j), larger is better
    ===================== ==============================================================

    Args:
        recovered: [n, L], rows that sum to 1.
        true: [n, L], rows that sum to 1.
        reduce: False for the values of the rows, [n] each.

    Returns:
        The measures by name. `kl_recovered_true` is NaN where every row is infinite.

    Raises:
        ValueError: shapes differ, no row, a degree that is negative or not finite, or a row whose
            degrees do not sum to 1 within 1e-3.

    Example:
        >>> found = distribution_measures([[0.5, 0.5]], [[0.4, 0.6]])
        >>> {name: round(value, 4) for name, value in found.items() if name != "cosine"}
        ... # doctest: +NORMALIZE_WHITESPACE
        {'kl_true_recovered': 0.0201, 'kl_recovered_true': 0.0204, 'chebyshev': 0.1,
         'clark': 0.1436, 'canberra': 0.202, 'intersection': 0.9}

    Source: X. Geng, Label Distribution Learning, TKDE 2016, table 1 (there the Kullback-Leibler
    divergence is `kl_true_recovered`); the tables of GLLE, LESC and ConLE hold
    `kl_recovered_true`, as the code of GLLE and LESC computes it.
    """
    r, t = _degrees(recovered, "recovered"), _degrees(true, "true")
    if r.shape != t.shape:
        raise ValueError(f"recovered has shape {r.shape} and true {t.shape}; expected [n, L] each")
    difference, total = np.abs(r - t), r + t
    relative = difference / np.where(total > 0, total, 1)
    lengths = np.linalg.norm(r, axis=1) * np.linalg.norm(t, axis=1)
    rows = {
        "kl_true_recovered": _divergence(t, np.maximum(r, LEAST_DEGREE)),
        "kl_recovered_true": _divergence(r, t),
        "chebyshev": difference.max(1),
        "clark": np.sqrt(np.square(relative).sum(1)),
        "canberra": relative.sum(1),
        "cosine": (r * t).sum(1) / np.where(lengths > 0, lengths, 1),
        "intersection": np.minimum(r, t).sum(1),
    }
    if not reduce:
        return dict(rows)
    means = {name: float(values.mean()) for name, values in rows.items()}
    finite = np.isfinite(rows["kl_recovered_true"])
    kept = rows["kl_recovered_true"][finite]
    return {**means, "kl_recovered_true": float(kept.mean()) if kept.size else float("nan")}


def _divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """sum first ln(first / second) of each row; infinite where only the second is 0."""
    there = first > 0
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(there, first, 1)) - np.log(np.where(there, second, 1))
    return np.where(there, first * logs, 0).sum(1)


def _degrees(values: ArrayLike, argument: str) -> np.ndarray:
    degrees = np.asarray(values)
    if degrees.ndim != 2 or degrees.size == 0 or degrees.dtype.kind not in "biuf":
        raise ValueError(
            f"{argument} is {degrees.dtype} of shape {degrees.shape}; expected numbers [n, L]"
        )
    degrees = degrees.astype(np.float64)
    bad = ~(np.isfinite(degrees) & (degrees >= 0))
    if bad.any():
        row, label = (int(index) for index in np.argwhere(bad)[0])
        raise ValueError(
            f"{argument}[{row}, {label}] is {degrees[row, label]}: degrees must be finite and at "
            "least 0"
        )
    sums = degrees.sum(1)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    if off.any():
        row = int(np.argmax(off))
        raise ValueError(
            f"{argument}[{row}] sums to {sums[row]:.6g}: the degrees of a row must sum to 1 "
            f"(within {SUM_TOLERANCE:g})"
        )
    return degrees
