"""Label frequencies: what can be said without looking at the inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxmlcl.baselines.base import Baseline, Rows


@dataclasses.dataclass(frozen=True)
class LabelFrequencies(Baseline):
    """Every row gets the share of positives that each label has in training.

    Example:
      >>> predictor = LabelFrequencies().fit([[1.0], [2.0], [3.0], [4.0]], [[1], [0], [1], [1]])
      >>> predictor.scores([[9.0]])
      array([[0.75]], dtype=float32)
    """

    looks_at_inputs = False

    def describe(self) -> str:
        """label frequencies."""
        return "label frequencies"

    def _fit(self, rows: Rows) -> Callable[[np.ndarray], np.ndarray]:
        # A label that is nowhere known has no positive either.
        share = rows.labels.sum(0) / np.maximum(rows.known.sum(0), 1)
        return lambda inputs: np.tile(share, (len(inputs), 1))
