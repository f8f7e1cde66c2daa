"""Learners of label distributions, by which an enhancement can be judged: is it good to learn from?

scikit-learn regressors whose targets are distributions [n, L] and whose predictions are, too.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from sklearn.base import BaseEstimator, RegressorMixin

from jaxmlcl.enhancement._base import require, softmax
from jaxmlcl.errors import ConfigError
from jaxmlcl.neighbours import nearest


class SABFGS(RegressorMixin, BaseEstimator):
    """Maximum entropy: p = softmax(W x + b), with the least mean KL(distribution | p).

    By L-BFGS from W = 0, b = 0. The published form has no b: `fit_intercept=False`. Features are
    taken as they are; standardise them before.

    Args:
      fit_intercept: whether there is b.
      max_iterations: the most of L-BFGS.
      tolerance: it stops where no entry of the gradient is above it.
      memory: steps that it remembers.

    Attributes:
      coef_: W [L, q].
      intercept_: b [L].
      n_iter_: iterations that were taken.

    Example:
      >>> learner = SABFGS().fit([[0.0], [1.0]], [[0.5, 0.5], [0.2, 0.8]])
      >>> learner.predict([[0.0], [1.0], [2.0]]).round(2).tolist()
      [[0.5, 0.5], [0.2, 0.8], [0.06, 0.94]]

    Source: Geng, "Label Distribution Learning", TKDE 2016, SA-BFGS.
    """

    def __init__(
        self,
        fit_intercept: bool = True,
        max_iterations: int = 500,
        tolerance: float = 1e-6,
        memory: int = 20,
    ) -> None:
        self.fit_intercept = fit_intercept
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.memory = memory

    def fit(self, features: ArrayLike, distributions: ArrayLike) -> Self:
        """Fit to features [n, q] and distributions [n, L].

        Raises:
          ValueError: arrays that do not fit together, or rows that are no distributions.
        """
        require(self, "max_iterations", low=1, whole=True)
        require(self, "tolerance")
        require(self, "memory", low=1, whole=True)
        x, d = _check(features, distributions)
        n, q = x.shape
        inputs = np.hstack([x, np.ones((n, 1))]) if self.fit_intercept else x
        shape = (inputs.shape[1], d.shape[1])

        def at(flat: np.ndarray) -> tuple[float, np.ndarray]:
            # The entropy of the targets is constant and left out.
            logits = inputs @ flat.reshape(shape)
            logits -= logits.max(1, keepdims=True)
            exponentials = np.exp(logits)
            total = exponentials.sum(1, keepdims=True)
            value = (np.log(total[:, 0]) - (d * logits).sum(1)).mean()
            gradient = inputs.T @ (exponentials / total - d) / n
            return float(value), gradient.ravel()

        options = {"maxcor": self.memory, "maxiter": self.max_iterations, "ftol": 0.0}
        options |= {"gtol": self.tolerance, "maxfun": 100 * self.max_iterations}
        start = np.zeros(shape).ravel()
        found = optimize.minimize(at, start, jac=True, method="L-BFGS-B", options=options)
        weights = found.x.reshape(shape)
        self.coef_ = weights[:q].T
        self.intercept_ = weights[q] if self.fit_intercept else np.zeros(d.shape[1])
        self.n_iter_ = int(found.nit)
        self.n_features_in_ = q
        return self

    def predict(self, features: ArrayLike) -> np.ndarray:
        """Distributions [m, L] float64 of features [m, q].

        Raises:
          ValueError: features of another width, or not finite.
        """
        x = _check_features(features, self.n_features_in_)
        return softmax(x @ self.coef_.T + self.intercept_)


class AAkNN(RegressorMixin, BaseEstimator):
    """The mean distribution of the k nearest training rows.

    Nearest by the Euclidean distance of the features as they are; of equal ones the lower row.

    Args:
      neighbours: k.

    Example:
      >>> learner = AAkNN(neighbours=2).fit([[0.0], [1.0], [9.0]], [[1, 0], [0.5, 0.5], [0, 1]])
      >>> learner.predict([[0.2]]).tolist()
      [[0.75, 0.25]]

    Source: Geng, "Label Distribution Learning", TKDE 2016, AA-kNN.
    """

    def __init__(self, neighbours: int = 5) -> None:
        self.neighbours = neighbours

    def fit(self, features: ArrayLike, distributions: ArrayLike) -> Self:
        """Remember features [n, q] and distributions [n, L].

        Raises:
          ValueError: arrays that do not fit together, or rows that are no distributions.
          ConfigError: fewer rows than neighbours.
        """
        require(self, "neighbours", low=1, whole=True)
        self.features_, self.distributions_ = _check(features, distributions)
        n, self.n_features_in_ = self.features_.shape
        if n < self.neighbours:
            raise ConfigError(f"AAkNN: {self.neighbours} neighbours need as many rows, not {n}")
        return self

    def predict(self, features: ArrayLike) -> np.ndarray:
        """Distributions [m, L] float64 of features [m, q].

        Raises:
          ValueError: features of another width, or not finite.
        """
        x = _check_features(features, self.n_features_in_)
        found = nearest(x, self.features_, self.neighbours)
        return self.distributions_[found].mean(1)


def _check(features: ArrayLike, distributions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, d = _check_features(features), np.asarray(distributions, np.float64)
    if d.ndim != 2 or len(d) != len(x) or d.size == 0:
        raise ValueError(f"distributions has shape {d.shape}; expected [{len(x)}, L]")
    sums = d.sum(1)
    bad = (d < 0).any(1) | ~(np.abs(sums - 1) <= 1e-4)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"distributions[{row}] is {d[row].tolist()}; rows are at least 0 and sum to 1"
        )
    return x, d


def _check_features(features: ArrayLike, width: int | None = None) -> np.ndarray:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or x.size == 0 or (width is not None and x.shape[1] != width):
        raise ValueError(f"features has shape {x.shape}; expected [n, {width or 'q'}]")
    if not np.isfinite(x).all():
        row, column = (int(index) for index in np.argwhere(~np.isfinite(x))[0])
        raise ValueError(f"features[{row}, {column}] is {x[row, column]}; features must be finite")
    return x
