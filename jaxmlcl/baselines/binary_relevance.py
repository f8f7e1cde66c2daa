"""One binary classifier per label, by scikit-learn: logistic regression and a kernel machine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression as _LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC
from sklearn.utils.parallel import Parallel, delayed
from threadpoolctl import threadpool_limits

from jaxmlcl.baselines.base import Baseline, Rows
from jaxmlcl.errors import ConfigError

# Kernel entries of rows to be scored that are held at once: 256 MiB.
_ENTRIES = 1 << 25
# Megabytes of kernel rows that libsvm remembers per label, beside the kernel itself.
_CACHE = 64

# What one label's classifier comes to: weights of features or of training rows, and an intercept.
_Linear = tuple[np.ndarray, float]


@dataclasses.dataclass(frozen=True)
class LogisticRegression(Baseline):
    """A linear classifier per label, its weights w shrunk but not its intercept b.

        min_(w, b)  |w|^2 / 2 + C sum_i log(1 + exp(-t_i (w.x_i + b))),      t_i = 2 y_i - 1

    Solved by L-BFGS; scores are probabilities. A label that is always or never on among its
    known training rows gets 1 or 0 everywhere, and one that is nowhere known gets 0.

    Example:
      >>> predictor = LogisticRegression(C=10.0).fit([[-2.0], [-1.0], [1.0], [2.0]],
      ...                                            [[0, 1], [0, 1], [1, 1], [1, 1]])
      >>> (predictor.scores([[-0.5], [0.5]]) >= 0.5).tolist()
      [[False, True], [True, True]]
    """

    C: float = 1.0
    """Weight of the data against shrinkage."""
    iterations: int = 1000
    """Most iterations per label."""
    jobs: int = -1
    """Labels fitted at the same time, in threads; -1: as many as there are cores."""

    def __post_init__(self) -> None:
        _check_positive("LogisticRegression", "C", self.C)
        if self.iterations < 1:
            raise ConfigError(
                f"LogisticRegression: iterations must be at least 1, not {self.iterations}"
            )

    def describe(self) -> str:
        """logistic regression."""
        return "logistic regression"

    def _fit(self, rows: Rows) -> Callable[[np.ndarray], np.ndarray]:
        def fit(known: np.ndarray, labels: np.ndarray) -> _Linear:
            x = rows.inputs if known.all() else rows.inputs[known]
            model = _LogisticRegression(C=self.C, max_iter=self.iterations).fit(x, labels)
            return model.coef_[0], model.intercept_[0]

        weights, intercepts, constant = _each_label(fit, rows, rows.inputs.shape[1], self.jobs)
        return lambda inputs: _scores(inputs @ weights + intercepts, constant)


@dataclasses.dataclass(frozen=True)
class KernelSVM(Baseline):
    """A support vector machine per label with k(x, x') = exp(-gamma |x - x'|^2).

    The kernel of the training rows is computed once for all labels; it takes 8 n^2 bytes. The
    score is sigma(f(x)) of the decision value f: not a probability, but increasing in f, and 0.5 is
    the machine's own decision boundary. Labels that are constant in training are treated as by
    `LogisticRegression`.

    Example:
      >>> x = [[-2.0], [-1.0], [0.0], [1.0], [2.0]]
      >>> predictor = KernelSVM(C=10.0).fit(x, [[0], [1], [1], [1], [0]])
      >>> (predictor.scores(x) >= 0.5)[:, 0].tolist()
      [False, True, True, True, False]
    """

    C: float = 1.0
    """Largest weight of a training row."""
    gamma: float | Literal["scale"] = "scale"
    """Inverse squared width of the kernel; scale: 1 / (d times the variance of the inputs)."""
    jobs: int = -1
    """Labels fitted at the same time, in threads; -1: as many as there are cores."""

    def __post_init__(self) -> None:
        _check_positive("KernelSVM", "C", self.C)
        if self.gamma != "scale":
            _check_positive("KernelSVM", "gamma", self.gamma)

    def describe(self) -> str:
        """rbf-svm."""
        return "rbf-svm"

    def _fit(self, rows: Rows) -> Callable[[np.ndarray], np.ndarray]:
        n = len(rows.inputs)
        _check_memory(n)
        x = rows.inputs.astype(np.float64)
        gamma = self._gamma(x)
        kernel = rbf_kernel(x, gamma=gamma)

        def fit(known: np.ndarray, labels: np.ndarray) -> _Linear:
            part = kernel if known.all() else np.ascontiguousarray(kernel[np.ix_(known, known)])
            model = SVC(C=self.C, kernel="precomputed", cache_size=_CACHE).fit(part, labels)
            weights = np.zeros(n)
            weights[np.flatnonzero(known)[model.support_]] = model.dual_coef_[0]
            return weights, model.intercept_[0]

        weights, intercepts, constant = _each_label(fit, rows, n, self.jobs)

        def scores(inputs: np.ndarray) -> np.ndarray:
            held = max(1, _ENTRIES // n)
            parts = [
                rbf_kernel(inputs[first : first + held].astype(np.float64), x, gamma) @ weights
                for first in range(0, len(inputs), held)
            ]
            return _scores(np.concatenate(parts) + intercepts, constant)

        return scores

    def _gamma(self, inputs: np.ndarray) -> float:
        if self.gamma != "scale":
            return self.gamma
        variance = inputs.var()
        return 1.0 / (inputs.shape[1] * variance) if variance > 0 else 1.0


def _each_label(
    fit: Callable[[np.ndarray, np.ndarray], _Linear], rows: Rows, size: int, jobs: int
) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """Weights [size, L] and intercepts [L] of every label, and the scores of constant labels."""
    count = rows.labels.shape[1]
    positives, known = rows.labels.sum(0), rows.known.sum(0)
    constant = {j: float(positives[j] > 0) for j in range(count) if positives[j] in (0, known[j])}
    varying = [j for j in range(count) if j not in constant]
    # A label's products are small: threads below the labels' own make them 10 to 100 times slower.
    with threadpool_limits(1):
        fitted = Parallel(n_jobs=jobs, prefer="threads")(
            delayed(fit)(rows.known[:, j], rows.labels[rows.known[:, j], j]) for j in varying
        )
    weights, intercepts = np.zeros((size, count)), np.zeros(count)
    for j, (weight, intercept) in zip(varying, fitted, strict=True):
        weights[:, j], intercepts[j] = weight, intercept
    return weights, intercepts, constant


def _scores(decisions: np.ndarray, constant: dict[int, float]) -> np.ndarray:
    scores = 0.5 + 0.5 * np.tanh(0.5 * decisions)
    for j, value in constant.items():
        scores[:, j] = value
    return scores


def _check_positive(name: str, field: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ConfigError(f"{name}: {field} must be positive, not {value}")


def _check_memory(rows: int) -> None:
    needed = 8 * rows**2
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigError(
            f"KernelSVM: the kernel of {rows} training rows takes {needed / 2**30:.0f} GiB, and "
            f"this machine has {there / 2**30:.0f}; fit to fewer rows"
        )
