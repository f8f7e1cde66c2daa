"""The model that GLLE and LESC share: kernel regression of the labels under a quadratic penalty.

    min_W |F W - L|^2 + lam tr((F W)^T G F W),     F = [K, 1]

G is symmetric and positive semi-definite, and known by what it does to a matrix.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy import linalg, optimize, sparse
from scipy.sparse.linalg import LinearOperator, cg

from jaxmlcl.enhancement._base import Enhancer, require
from jaxmlcl.enhancement._graph import blocks, gaussian, mean_distance

# G applied to a matrix [n, L].
Penalty = Callable[[np.ndarray], np.ndarray]
ValueAndGradient = Callable[[np.ndarray], tuple[float, np.ndarray]]

# Up to so many rows, every row has a column of the kernel; above, so many rows drawn at random.
ALL, LANDMARKS = 10_000, 1000
# Below so many unknowns the published optimiser is BFGS, with a dense matrix.
_DENSE = 3000
# So many times more rows than columns make a difference.
_FEW = 4


class KernelEnhancer(Enhancer):
    """What GLLE and LESC have in common; they differ in the penalty."""

    seeded = True

    lam: float
    landmarks: int | None
    max_iterations: int | None
    tolerance: float
    memory: int

    def _check(self) -> None:
        require(self, "lam")
        require(self, "landmarks", low=1, whole=True, optional=True)
        require(self, "max_iterations", low=1, whole=True, optional=True)
        require(self, "tolerance")
        require(self, "memory", low=1, whole=True)

    def _regress(
        self, x: np.ndarray, labels: np.ndarray, penalty: Penalty, lam: float, seeds: Sequence[int]
    ) -> np.ndarray:
        """F W [k, n, L] for k seeds, on features that are standardised."""
        found: list[np.ndarray] = []
        columns = None
        for seed in seeds:
            chosen = landmark_rows(len(x), self.landmarks, seed)
            if self.max_iterations is None:
                # Without landmarks nothing depends on the seed.
                again = chosen is None and bool(found)
                basis = None if again else range_basis(x, chosen)
                found.append(found[0] if basis is None else solve(basis, labels, penalty, lam))
                continue
            if columns is None or chosen is not None:
                columns = None  # The old ones go before the new ones come.
                columns = kernel_columns(x, chosen)
            fitted = descend(
                columns,
                labels,
                penalty,
                lam,
                seed=seed,
                max_iterations=self.max_iterations,
                tolerance=self.tolerance,
                memory=self.memory,
            )
            found.append(fitted)
        return np.stack(found)


def landmark_rows(rows: int, landmarks: int | None, seed: int) -> np.ndarray | None:
    """Numbers of the rows that have a column of the kernel; None: all of them."""
    if landmarks is None:
        landmarks = rows if rows <= ALL else LANDMARKS
    if landmarks >= rows:
        return None
    # Another stream than that of the initial weights.
    generator = np.random.default_rng([seed, 1])
    return np.sort(generator.choice(rows, landmarks, replace=False))


def kernel_columns(features: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
    """F [n, m + 1]: the Gaussian kernel with the chosen rows, and a column of ones.

    Its width is the mean distance of two rows.
    """
    keys = features if chosen is None else features[chosen]
    # Columns lie together, as the decomposition of `range_basis` wants them.
    columns = np.ones((len(features), len(keys) + 1), order="F")
    gaussian(features, keys, mean_distance(features), out=columns[:, :-1])
    return columns


def objective(
    weights: np.ndarray, columns: np.ndarray, labels: np.ndarray, penalty: Penalty, lam: float
) -> tuple[float, np.ndarray]:
    """The objective and its gradient 2 F^T (F W - L) + 2 lam F^T G F W.

    Args:
      weights: W [m + 1, L].
      columns: F [n, m + 1].
      labels: [n, L].
      penalty: G.
      lam: its weight.
    """
    fitted = columns @ weights
    residual = fitted - labels
    penalized = penalty(fitted)
    value = np.vdot(residual, residual) + lam * np.vdot(fitted, penalized)
    residual += lam * penalized
    return float(value), 2.0 * (columns.T @ residual)


def descend(
    columns: np.ndarray,
    labels: np.ndarray,
    penalty: Penalty,
    lam: float,
    *,
    seed: int,
    max_iterations: int,
    tolerance: float,
    memory: int,
) -> np.ndarray:
    """F W [n, L] where the quasi-Newton method stops, from W ~ U(0, 1).

    It stops when no entry of the gradient is above the tolerance, when no weight moves by more, or
    after `max_iterations`. It is BFGS below 3000 unknowns, and L-BFGS with so many steps in its
    memory above.
    """
    shape = (columns.shape[1], labels.shape[1])
    # With few columns the products that do not depend on W are made once.
    form = _gathered if _FEW * shape[0] < len(columns) else _directly
    valued = form(columns, labels, penalty, lam)

    def at(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = valued(flat.reshape(shape))
        return value, gradient.ravel()

    start = np.random.default_rng(seed).random(shape).ravel()
    if start.size < _DENSE:
        found = _bfgs(at, start, max_iterations, tolerance)
    else:
        found = _lbfgs(at, start, max_iterations, tolerance, memory)
    return columns @ found.reshape(shape)


def _directly(
    columns: np.ndarray, labels: np.ndarray, penalty: Penalty, lam: float
) -> ValueAndGradient:
    return lambda weights: objective(weights, columns, labels, penalty, lam)


def _gathered(
    columns: np.ndarray, labels: np.ndarray, penalty: Penalty, lam: float
) -> ValueAndGradient:
    """The objective tr(W^T H W) - 2 tr(W^T F^T L) + |L|^2, H = F^T (F + lam G F) [m + 1, m + 1].

    Its cost does not grow with the rows. What cancels in it is some 1e-10 of the value.
    """
    matrix = np.empty((columns.shape[1],) * 2)
    for part in blocks(columns.shape[1], len(columns)):
        some = np.ascontiguousarray(columns[:, part])
        matrix[:, part] = columns.T @ (some + lam * penalty(some))
    matrix = (matrix + matrix.T) / 2
    right = columns.T @ labels
    squares = float(np.vdot(labels, labels))

    def at(weights: np.ndarray) -> tuple[float, np.ndarray]:
        turned = matrix @ weights
        value = float(np.vdot(weights, turned - 2 * right)) + squares
        return value, 2 * (turned - right)

    return at


def _lbfgs(
    at: ValueAndGradient, start: np.ndarray, most: int, tolerance: float, memory: int
) -> np.ndarray:
    before = start

    def moved(intermediate_result: optimize.OptimizeResult) -> None:
        nonlocal before
        step = np.abs(intermediate_result.x - before).max()
        before = intermediate_result.x.copy()
        if step < tolerance:
            raise StopIteration

    # `ftol` would be relative to the objective.
    options = {"maxcor": memory, "maxiter": most, "gtol": tolerance, "ftol": 0.0}
    options["maxfun"] = 100 * most
    return optimize.minimize(
        at, start, jac=True, method="L-BFGS-B", callback=moved, options=options
    ).x


def _bfgs(at: ValueAndGradient, start: np.ndarray, most: int, tolerance: float) -> np.ndarray:
    """BFGS with a dense inverse Hessian, updated in place.

    SciPy's multiplies matrices for each update, which takes minutes with some thousand unknowns.
    """
    x, (value, gradient) = start, at(start)
    # So that the first step moves no weight by more than 1.
    inverse = np.eye(len(x)) / max(float(np.abs(gradient).max()), 1e-300)
    kept: dict[str, np.ndarray | float] = {}

    def function(point: np.ndarray) -> float:
        kept["value"], kept["gradient"] = at(point)
        kept["point"] = point
        return float(kept["value"])

    def slope(point: np.ndarray) -> np.ndarray:
        # The line search asks for both at the same points, one after the other.
        if not np.array_equal(point, kept.get("point", np.empty(0))):
            function(point)
        return np.asarray(kept["gradient"])

    for _ in range(most):
        if np.abs(gradient).max() <= tolerance:
            break
        direction = -(inverse @ gradient)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            length, _, _, reached, _, fresh = optimize.line_search(
                function, slope, x, direction, gradient, value, c1=0.01, c2=0.9
            )
        if length is None or fresh is None:
            # No lower point along it: rounding is all that is left.
            break
        step, change = length * direction, fresh - gradient
        x, value, gradient = x + step, reached, fresh
        if np.abs(step).max() < tolerance:
            break
        curvature = step @ change
        if curvature > 0:
            turned = inverse @ change
            outer = np.outer(step, turned)
            inverse -= (outer + outer.T) / curvature
            inverse += np.outer(step, step) * ((1 + change @ turned / curvature) / curvature)
    return x


def solve(
    basis: np.ndarray | sparse.csr_array, labels: np.ndarray, penalty: Penalty, lam: float
) -> np.ndarray:
    """F W [n, L] of an exact minimiser W.

    W matters only through Z = F W, any matrix in the range of F. With B an orthonormal basis of
    that range, Z = B z and

        (I + lam B^T G B) z = B^T L

    which conjugate gradients solve: its eigenvalues lie between 1 and 1 + lam |G|.

    Args:
      basis: B [n, r].
      labels: [n, L].
      penalty: G.
      lam: its weight.
    """
    rank = basis.shape[1]
    operator = LinearOperator(
        (rank, rank),
        dtype=np.float64,
        matvec=lambda z: (
            z.reshape(-1, 1) + lam * (basis.T @ penalty(basis @ z.reshape(-1, 1)))
        ).ravel(),
    )
    right = basis.T @ labels
    columns = [cg(operator, column, rtol=1e-10, atol=0.0)[0] for column in right.T]
    return basis @ np.stack(columns, axis=1)


def range_basis(features: np.ndarray, chosen: np.ndarray | None) -> np.ndarray | sparse.csr_array:
    """An orthonormal basis of the range of F [n, m + 1].

    The Gaussian kernel of different points has full rank. So with a column for every row, F W may
    be any matrix whose rows are equal where the features are: the basis has a vector for each
    distinct row, and neither kernel nor its width matters. With landmarks it is that of pivoted QR.
    """
    if chosen is None:
        _, group, counts = np.unique(features, axis=0, return_inverse=True, return_counts=True)
        group = group.ravel()
        entries = counts[group] ** -0.5
        return sparse.csr_array((entries, (np.arange(len(group)), group)))
    columns = kernel_columns(features, chosen)
    basis, triangle, _ = linalg.qr(columns, mode="economic", pivoting=True, overwrite_a=True)
    sizes = np.abs(np.diag(triangle))
    return basis[:, sizes > sizes[0] * len(basis) * np.finfo(float).eps]
