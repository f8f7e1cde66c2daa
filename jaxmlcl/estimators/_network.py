"""Classifiers that are trained networks: the stages of a method, driven by the trainer's steps."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import jax
import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin

from jaxmlcl.cli.console import make_console
from jaxmlcl.errors import ConfigError
from jaxmlcl.estimators._base import MultiLabelClassifier, require_number, require_one_of
from jaxmlcl.training.arrays import ArrayNetwork, Rows, abstract_arrays, train_on_arrays
from jaxmlcl.training.console import Silent
from jaxmlcl.training.stage import Selection, Stage

_SEPARATOR = "/"


class NetworkClassifier(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, MultiLabelClassifier, abc.ABC
):
    """A classifier whose `_stages` are trained; the last one gives scores and embeddings.

    Subclasses have a constructor that keeps its arguments, and `_stages`. Beside those of
    `MultiLabelClassifier` they have the parameters `select`, `bucketed` and `verbose`. Fitted ones
    have `stages_`, how each stage ended; it is empty where they were loaded from a file.
    """

    representation: ClassVar[str] = "representation"
    """Which of the objective's embeddings `transform` gives."""

    select: str
    bucketed: bool
    verbose: int

    @abc.abstractmethod
    def _stages(self) -> Mapping[str, Stage]:
        """The stages by name, in order, from the parameters as they are now."""

    def transform(self, X: Any) -> np.ndarray:
        """The representations [m, D] of rows.

        Args:
          X: as in `predict`.

        Returns:
          [m, D], in the type of X (float32 or float64).

        Raises:
          ValueError: as `predict`.
        """
        name = self.representation
        found = self._by_block(X, lambda rows: self._network.embed(rows, name))
        return found.astype(np.float32) if getattr(X, "dtype", None) == np.float32 else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        shape = jax.ShapeDtypeStruct((1, self._network.padded[0]), np.float32)
        found = jax.eval_shape(self._network.objective.embed, *self._network.arrays, shape)
        return int(found[self.representation].shape[1])

    def _check_parameters(self) -> None:
        super()._check_parameters()
        require_one_of(self, "select", get_args(Selection))

    def _chooses(self) -> bool:
        return super()._chooses() or self.select != "last"

    def _fit_rows(self, train: Rows, validation: Rows | None, seed: int) -> None:
        self._network, self.stages_ = train_on_arrays(
            self._stages(),
            train,
            validation,
            seed=seed,
            bucketed=self.bucketed,
            console=make_console() if self.verbose else Silent(),
        )
        # As they are now: what was trained stays, whatever parameters are set later.
        self._trained_with = self.get_params(deep=False)

    def _scores(self, inputs: np.ndarray) -> np.ndarray:
        return self._network.scores(inputs)

    def _fitted(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        network = self._network
        info = {
            "trained_with": {
                name: value for name, value in self._trained_with.items() if name != "random_state"
            },
            "widths": (network.features, network.labels),
            "padded": network.padded,
            "masked": network.masked,
        }
        return info, _by_path(network.arrays)

    def _restore(self, info: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self._trained_with = info["trained_with"]
        stages = type(self)(**self._trained_with)._stages()
        objective = list(stages.values())[-1].objective
        features, labels = info["widths"]
        padded, masked = tuple(info["padded"]), bool(info["masked"])
        wanted = abstract_arrays(objective, padded, masked)
        names = _by_path(wanted)
        if {name: (x.shape, x.dtype) for name, x in names.items()} != {
            name: (x.shape, x.dtype) for name, x in arrays.items()
        }:
            raise ValueError("arrays that do not fit the parameters")
        leaves = [arrays[name] for name in names]
        filled = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
        self._network = ArrayNetwork(objective, features, labels, padded, masked, filled)
        self.stages_ = {}


def check_steps(estimator: Any, *names: str) -> None:
    """Refuse parameters that are no counts of at least 1.

    Raises:
      ConfigError: naming the parameter.
    """
    for name in names:
        require_number(estimator, name, 0, math.inf, "a whole number of at least 1", whole=True)


def check_numbers(estimator: Any, *names: str) -> None:
    """Refuse parameters that are no finite numbers; what range they may have is checked elsewhere.

    Raises:
      ConfigError: naming the parameter.
    """
    for name in names:
        require_number(estimator, name, -math.inf, math.inf, "a finite number")


def widths(estimator: Any, name: str = "hidden") -> tuple[int, ...]:
    """A parameter that holds widths of layers: a number, or several.

    Raises:
      ConfigError: it is something else.
    """
    value = getattr(estimator, name)
    found = (value,) if isinstance(value, int) else value
    try:
        return tuple(int(width) for width in found)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{type(estimator).__name__}: {name} must be widths such as (256, 128), not {value!r}"
        ) from None


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, in its order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=_SEPARATOR): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
