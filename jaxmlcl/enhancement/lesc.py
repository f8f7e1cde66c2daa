"""LESC: kernel regression whose result each row's low-rank representation must reproduce."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from jaxmlcl.enhancement._base import check_rows, require, softmax, standardize
from jaxmlcl.enhancement._kernel import KernelEnhancer

_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
GRID: tuple[tuple[float, float], ...] = tuple(itertools.product(_VALUES, _VALUES))
"""The 64 pairs (beta, lam) of the authors, who print the one that is best against the truth."""

# The authors' constants of the augmented Lagrangian.
_PENALTY, _GROWTH, _LARGEST, _TOLERANCE, _MOST = 1e-6, 1.1, 1e10, 1e-8, 1_000_000


class LESC(KernelEnhancer):
    """Label enhancement with sample correlations.

        min_W |F W - L|^2 + lam |(I - C) F W|^2,     D = softmax(F W) by row

    on standardised features, with F as in `GLLE` and C the low-rank representation of the rows by
    one another (see `low_rank`),

        min_C |C|_* + beta |E|_{2,1},     X^T = X^T C + E.

    The authors print the best of 64 pairs (beta, lam) against the true distributions: `lesc_grid`
    gives all of them. The defaults know nothing of a truth. `lam` is GLLE's, whose model and place
    in it are the same. `beta` is the middle of the authors' grid on a logarithmic scale, rounded
    down to a value of it.

    As in `GLLE`, the published optimiser stops before it converges, `max_iterations=None` gives
    the minimum, and of more than 10 000 rows only 1000 have a column in K. Rows without labels are
    regressed on zeros and rows with all labels on ones; rows of F W that are constant become
    uniform.

    Args:
      beta: weight of the errors in the representation; the larger, the higher the rank of C.
      lam: weight of the representation.
      landmarks: rows that have a column in K; None: all of up to 10 000, 1000 of more.
      max_iterations: the most steps; None: the minimum, by conjugate gradients.
      tolerance: the optimiser stops where no entry of the gradient is above it, or no weight moves
        more.
      memory: steps that L-BFGS remembers.
      random_state: seed of the initial W ~ U(0, 1) and of the landmarks.

    Example:
      >>> features, labels = [[0.0, 1.0], [0.1, 0.9], [2.0, 2.0]], [[1, 0], [1, 0], [0, 1]]
      >>> found = LESC(max_iterations=None).fit_transform(features, labels)
      >>> found.argmax(1).tolist()
      [0, 0, 1]

    Source: Tang, Zhu, Zheng, Wang, Pang & Li, "Label Enhancement with Sample Correlations via
    Low-Rank Representation", AAAI 2020, and its published program, whose penalty
    (I - C)^T (I - C) this is.
    """

    title = "LESC"

    def __init__(
        self,
        beta: float = 0.1,
        lam: float = 0.01,
        landmarks: int | None = None,
        max_iterations: int | None = 300,
        tolerance: float = 1e-6,
        memory: int = 20,
        random_state: int | None = 0,
    ) -> None:
        self.beta = beta
        self.lam = lam
        self.landmarks = landmarks
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.memory = memory
        self.random_state = random_state

    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """See `Enhancer.fit_many`: transductive; representation and kernel are made once."""
        self._check()
        require(self, "beta", above=True)
        self._all_rows(features, rows)
        x = standardize(features)
        return softmax(self._regress(x, labels, low_rank(x, self.beta).penalty, self.lam, seeds))


def lesc_grid(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    pairs: Iterable[tuple[float, float]] = GRID,
    seeds: Sequence[int] = (0,),
    **options: float | int | None,
) -> Iterator[tuple[tuple[float, float], np.ndarray]]:
    """What LESC recovers for each pair (beta, lam), each representation made once.

    To choose among them by the true distributions, as the authors do, is to consult an oracle:
    such a row of a table must say so.

    Args:
      features: [n, q], finite.
      labels: [n, L], 0/1.
      pairs: of which those with the same beta should stand together.
      seeds: of the fits.
      **options: of `LESC`, other than these.

    Yields:
      A pair, and distributions [k, n, L], one of each seed.

    Raises:
      ValueError: arrays that do not fit together, or labels other than 0 and 1.

    Example:
      >>> features, labels = [[0.0, 1.0], [0.1, 0.9], [2.0, 2.0]], [[1, 0], [1, 0], [0, 1]]
      >>> pairs = [(0.1, 0.01), (0.1, 1.0)]
      >>> for pair, found in lesc_grid(features, labels, pairs=pairs):
      ...     print(pair, found.shape)
      (0.1, 0.01) (1, 3, 2)
      (0.1, 1.0) (1, 3, 2)
    """
    x, y = check_rows(features, labels)
    x = standardize(x)
    made: tuple[float, LowRank] | None = None
    for beta, lam in pairs:
        enhancer = LESC(beta=beta, lam=lam).set_params(**options)
        enhancer._check()
        require(enhancer, "beta", above=True)
        if made is None or made[0] != beta:
            made = (beta, low_rank(x, beta))
        yield (beta, lam), softmax(enhancer._regress(x, y, made[1].penalty, lam, seeds))


class LowRank(NamedTuple):
    """C = P Z, a matrix [n, n] that is never formed."""

    basis: np.ndarray
    """P [n, r], orthonormal columns."""
    coefficients: np.ndarray
    """Z [r, n]."""
    errors: np.ndarray
    """U^T E [r, n], the errors in the basis of the features' directions; columns as long as E's."""
    iterations: int
    """Steps that were taken."""

    def penalty(self, values: np.ndarray) -> np.ndarray:
        """(I - C)^T (I - C) V, of V [n, L]."""
        left = values - self.basis @ (self.coefficients @ values)
        return left - self.coefficients.T @ (self.basis.T @ left)


def low_rank(features: np.ndarray, beta: float) -> LowRank:
    """Each row from the others, with coefficients of low rank and errors in few rows.

        min_C |C|_* + beta sum_i |e_i|,     X^T = X^T C + E,     e_i the columns of E

    by the inexact augmented Lagrangian method.

    No matrix is larger than [min(q, n), n]. With the thin decomposition X^T = U S P^T (r values),
    a minimiser has its columns in the range of P, since what is orthogonal to it changes nothing
    but the nuclear norm: C = P Z with Z [r, n], and |C|_* = |Z|_*. The authors reduce the
    dictionary so: X^T P = U S. Then X^T, X^T C and so E lie in the range of U, whose columns are
    orthonormal, so that lengths do not change if everything is multiplied by U^T:

        min |Z|_* + beta sum_i |(U^T E)_i|,     S P^T = S Z + U^T E.

    The dictionary is now diagonal, so the system for Z, (S^2 + I) Z = ..., is a division, and J
    with Z = J, which carries the nuclear norm, is a soft threshold of singular values of [r, n].
    These come from the eigenvectors of an [r, r] matrix: a value s is then off by some 1e-16 / s,
    which counts only for values that are near the tolerance.

    Args:
      features: X [n, q], standardised.
      beta: weight of the errors.

    Returns:
      The factors of C, and U^T E.

    Source: Liu, Lin, Yan, Sun, Yu & Ma, "Robust Recovery of Subspace Structures by Low-Rank
    Representation", TPAMI 2013, algorithm 1 and section 3.4.
    """
    left, values, _ = linalg.svd(features, full_matrices=False)
    rank = int((values > max(features.shape) * np.finfo(float).eps * values[:1]).sum())
    basis, scale = left[:, :rank], values[:rank, None]
    if rank == 0:
        empty = np.zeros((0, len(features)))
        return LowRank(basis, empty, empty, 0)
    data = scale * basis.T
    inverse = 1.0 / (scale**2 + 1.0)
    z = np.zeros_like(data)
    e = np.zeros_like(data)
    first = np.zeros_like(data)  # the multiplier of the data's equation
    second = np.zeros_like(data)  # and that of Z = J
    mu = _PENALTY
    for iteration in range(1, _MOST + 1):  # noqa: B007
        j = _shrink_values(z + second / mu, 1.0 / mu)
        z = inverse * (scale * (data - e + first / mu) + j - second / mu)
        missing = data - scale * z
        e = _shrink_columns(missing + first / mu, beta / mu)
        missing -= e
        apart = z - j
        if max(np.abs(missing).max(), np.abs(apart).max()) < _TOLERANCE:
            break
        first += mu * missing
        second += mu * apart
        mu = min(mu * _GROWTH, _LARGEST)
    return LowRank(basis, z, e, iteration)


def _shrink_values(matrix: np.ndarray, threshold: float) -> np.ndarray:
    """U max(S - threshold, 0) V^T of a matrix U S V^T with no more rows than columns."""
    if np.linalg.norm(matrix) <= threshold:
        # No singular value is larger than the norm.
        return np.zeros_like(matrix)
    squares, vectors = linalg.eigh(matrix @ matrix.T, check_finite=False)
    kept = squares > threshold**2
    vectors = vectors[:, kept]
    factors = 1.0 - threshold / np.sqrt(squares[kept])
    return (vectors * factors) @ (vectors.T @ matrix)


def _shrink_columns(matrix: np.ndarray, threshold: float) -> np.ndarray:
    """Every column made shorter by the threshold, down to zero."""
    lengths = np.linalg.norm(matrix, axis=0)
    return matrix * (np.maximum(lengths - threshold, 0.0) / np.where(lengths > 0, lengths, 1.0))
