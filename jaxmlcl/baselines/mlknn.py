"""ML-kNN: a label's posterior from how many of the nearest training rows carry it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlcl.baselines.base import Baseline, Rows
from jaxmlcl.errors import ConfigError
from jaxmlcl.neighbours import nearest

# Labels of neighbours gathered at once.
_GATHERED = 1 << 24


@dataclasses.dataclass(frozen=True)
class MLkNN(Baseline):
    """Maximum a posteriori from counts among the k nearest training rows.

    With k neighbours, smoothing s, c_ij of row i's neighbours carrying label j, and kappa1_j[c]
    (kappa0_j[c]) the training rows with (without) label j that have c such neighbours, themselves
    left out:

        P(H_j)     = (s + n_j) / (2 s + n)
        P(c | H_j) = (s + kappa1_j[c]) / (s (k + 1) + sum kappa1_j);     without j: kappa0_j
        score_ij   = P(H_j) P(c_ij | H_j) / (P(H_j) P(c_ij | H_j) + P(not H_j) P(c_ij | not H_j))

    A neighbour whose label is unknown does not count as carrying it, and a training row whose
    label is unknown is in none of that label's counts.

    Example:
      >>> predictor = MLkNN(neighbours=1).fit([[0.0], [1.0], [8.0], [9.0]], [[1], [1], [0], [0]])
      >>> predictor.scores([[0.4], [8.4]])
      array([[0.75],
             [0.25]], dtype=float32)

    Source: Zhang & Zhou, "ML-KNN: A lazy learning approach to multi-label learning", 2007.
    """

    neighbours: int = 10
    """Training rows that are asked, k."""
    smoothing: float = 1.0
    """What is added to every count, s."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """What is near; cosine, the rows scaled to unit length, suits bags of words."""

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ConfigError(f"MLkNN: neighbours must be at least 1, not {self.neighbours}")
        if not 0 < self.smoothing < np.inf:
            raise ConfigError(f"MLkNN: smoothing must be positive, not {self.smoothing}")
        if self.metric not in ("euclidean", "cosine"):
            raise ConfigError(f'MLkNN: metric must be euclidean or cosine, not "{self.metric}"')

    def describe(self) -> str:
        """ml-knn."""
        return "ml-knn"

    def _fit(self, rows: Rows) -> Callable[[np.ndarray], np.ndarray]:
        n, k = len(rows.inputs), self.neighbours
        if k >= n:
            raise ConfigError(f"MLkNN: {k} neighbours need at least {k + 1} training rows, not {n}")
        keys, labels = jnp.asarray(self._scaled(rows.inputs)), jnp.asarray(rows.labels)
        around = nearest(keys, keys, k, leave_self_out=True)
        counts = _counts(jnp.asarray(around), labels)
        present = _histogram(counts, labels, k)
        absent = _histogram(counts, jnp.asarray(rows.known & ~rows.labels), k)
        table = _posterior(
            np.asarray(present, np.float64), np.asarray(absent, np.float64), self.smoothing
        )
        return Neighbourhood(np.asarray(keys), rows.labels, table, k, self.metric)

    def _scaled(self, inputs: np.ndarray) -> np.ndarray:
        return _scaled(inputs, self.metric)


@dataclasses.dataclass(frozen=True)
class Neighbourhood:
    """What a fitted ML-kNN knows: a function from inputs [m, d] to scores [m, L]."""

    keys: np.ndarray
    """[n, d], the training rows, scaled as the metric wants it."""
    labels: np.ndarray
    """[n, L] bool, False where unknown."""
    table: np.ndarray
    """[k + 1, L]: a label's probability after each count."""
    neighbours: int
    """k."""
    metric: str

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Scores [m, L] of checked inputs [m, d]."""
        found = nearest(_scaled(inputs, self.metric), self.keys, self.neighbours)
        counts = np.asarray(_counts(jnp.asarray(found), jnp.asarray(self.labels)))
        return self.table[counts, np.arange(self.table.shape[1])]


def _scaled(inputs: np.ndarray, metric: str) -> np.ndarray:
    """Inputs among which Euclidean distances order rows as the metric does."""
    if metric == "euclidean":
        return inputs
    length = np.linalg.norm(inputs, axis=1, keepdims=True)
    return inputs / np.where(length > 0, length, 1.0)


@jax.jit
def _counts(neighbours: jax.Array, labels: jax.Array) -> jax.Array:
    """[m, L]: how many of each row's neighbours [m, k] carry each label [n, L]."""
    m, k = neighbours.shape
    held = max(1, _GATHERED // (k * labels.shape[1]))
    return jax.lax.map(
        lambda around: labels[around].sum(0, dtype=jnp.int32), neighbours, batch_size=min(held, m)
    )


@functools.partial(jax.jit, static_argnames="most")
def _histogram(counts: jax.Array, which: jax.Array, most: int) -> jax.Array:
    """[most + 1, L]: for how many of `which` rows [n, L] the count is 0, 1, ..."""
    return jax.lax.map(
        lambda c: jnp.sum((counts == c) & which, axis=0, dtype=jnp.int32), jnp.arange(most + 1)
    )


def _posterior(present: np.ndarray, absent: np.ndarray, smoothing: float) -> np.ndarray:
    """[k + 1, L]: the label's probability after each count, from the two histograms."""
    with_label, without = present.sum(0), absent.sum(0)
    prior = (smoothing + with_label) / (2 * smoothing + with_label + without)
    bins = len(present)
    likely = (smoothing + present) / (smoothing * bins + with_label)
    unlikely = (smoothing + absent) / (smoothing * bins + without)
    return prior * likely / (prior * likely + (1 - prior) * unlikely)
