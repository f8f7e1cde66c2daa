"""ML-kNN as a scikit-learn classifier."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np

from jaxmlcl.baselines import MLkNN
from jaxmlcl.baselines.mlknn import Neighbourhood
from jaxmlcl.estimators._base import MultiLabelClassifier, require_number
from jaxmlcl.training.arrays import Rows


class MLkNNClassifier(MultiLabelClassifier):
    """The posterior of each label given how many of the nearest training rows carry it.

    The formula stands at `jaxmlcl.baselines.MLkNN`. It has no embeddings, so no `transform`.

    Args:
      neighbours: training rows that are asked, k; where there are fewer other rows, all of them
        (`neighbours_`).
      smoothing: what is added to every count, above 0.
      metric: `euclidean`, or `cosine`, which suits bags of words.
      standardize: whether features get mean 0 and deviation 1 first; with False, zeros stay zeros.
      threshold: least probability of a predicted label; `validation`: the best micro-F1 on rows
        that are held out.
      validation_fraction: share of the rows that is held out, if no `validation` is given.
      random_state: seed of the choice of these rows.

    Example:
      >>> X, Y = [[0.0], [1.0], [8.0], [9.0]], [[1, 0], [1, 0], [0, 1], [0, 1]]
      >>> MLkNNClassifier(neighbours=1).fit(X, Y).predict([[0.4], [8.4]])
      array([[1, 0],
             [0, 1]])

    Source: Zhang & Zhou, "ML-KNN: A lazy learning approach to multi-label learning", 2007.
    """

    title: ClassVar[str] = "ML-kNN"

    def __init__(
        self,
        neighbours: int = 10,
        *,
        smoothing: float = 1.0,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        standardize: bool = True,
        threshold: float | Literal["validation"] = 0.5,
        validation_fraction: float = 0.2,
        random_state: Any = 0,
    ) -> None:
        self.neighbours = neighbours
        self.smoothing = smoothing
        self.metric = metric
        self.standardize = standardize
        self.threshold = threshold
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def _check_parameters(self) -> None:
        super()._check_parameters()
        require_number(self, "neighbours", 0, math.inf, "a whole number of at least 1", whole=True)

    def _fit_rows(self, train: Rows, validation: Rows | None, seed: int) -> None:
        del validation, seed
        self.neighbours_ = min(self.neighbours, len(train.inputs) - 1)
        baseline = MLkNN(self.neighbours_, self.smoothing, self.metric)
        neighbourhood = baseline.fit(*train).function
        assert isinstance(neighbourhood, Neighbourhood)
        self._neighbourhood = neighbourhood

    def _scores(self, inputs: np.ndarray) -> np.ndarray:
        return np.clip(self._neighbourhood(inputs), 0.0, 1.0)

    def _fitted(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        held = self._neighbourhood
        arrays = {"keys": held.keys, "labels": held.labels, "table": held.table}
        return {"neighbours": held.neighbours, "metric": held.metric}, arrays

    def _restore(self, info: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.neighbours_ = int(info["neighbours"])
        self._neighbourhood = Neighbourhood(
            arrays["keys"], arrays["labels"], arrays["table"], self.neighbours_, info["metric"]
        )
