"""What all classifiers have in common: what goes in and comes out, thresholds, and saving."""

from __future__ import annotations

import abc
import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxmlcl.data.stratify import stratified_split
from jaxmlcl.errors import CheckpointError, ConfigError
from jaxmlcl.estimators import _files
from jaxmlcl.estimators._targets import Targets, read_targets
from jaxmlcl.evaluation import choose_thresholds
from jaxmlcl.training.arrays import Rows

# Rows that are made dense and scored at once.
_BLOCK = 4096
# Between these the logarithms of scores and of what they lack to 1 are finite.
_LOW, _HIGH = float(np.finfo(np.float32).tiny), 1.0 - 2.0**-25


class MultiLabelClassifier(ClassifierMixin, BaseEstimator, abc.ABC):
    """A scikit-learn classifier of rows [n, d] with labels [n, L].

    `y` is a matrix of 0 and 1: dense, sparse, or a data frame, whose column names are kept in
    `label_names_`; with `label_mask` some may be unknown. `y` may also have one dimension, or one
    column, and hold a class a row, numbers or text: two classes are one label, more are one label
    each, of which the most probable is predicted.

    Fitted ones have `label_names_` [L], or the classes as text; `classes_`, the classes [C], or
    each label's classes [L, 2], which are 0 and 1; `threshold_`; `n_features_in_`, and
    `feature_names_in_` where X had names.

    Subclasses keep the arguments of their constructors as they are, and give `_fit_rows`,
    `_scores` and what `save` needs. They have the parameters `standardize`, `threshold`,
    `validation_fraction` and `random_state`.
    """

    title: ClassVar[str]
    """The name in tables."""

    standardize: bool
    threshold: float | str
    validation_fraction: float
    random_state: Any

    def fit(self, X: Any, y: Any, *, label_mask: Any = None, validation: Any = None) -> Self:
        """Fit to rows.

        Args:
          X: [n, d], finite; an array, a sparse matrix (made dense) or a data frame.
          y: [n, L] of 0 and 1, or [n] classes.
          label_mask: [n, L] (or [n]), True where `y` is known; None: everywhere.
          validation: (X, y) or (X, y, label_mask) to choose threshold and network on; None: where
            something is to be chosen, the share `validation_fraction` of the rows is held out.

        Returns:
          self.

        Raises:
          ValueError: data that do not fit together, or are not finite.
          ConfigError: a parameter that cannot be used.
        """
        self._check_parameters()
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        x = validate_data(
            self,
            X,
            accept_sparse="csr",
            dtype=(np.float64, np.float32),
            ensure_min_samples=2,
        )
        targets = read_targets(y, label_mask, x.shape[0])
        held_out = None
        if validation is not None:
            held_out = self._validation(validation, targets)
        seed = self._seed()
        if held_out is None and self._chooses():
            x, targets, held_out = self._hold_out(x, targets, seed)
        shift, scale = _preparation(x, self.standardize)
        train = Rows(_prepared(x, shift, scale), targets.labels, targets.known)
        other = None
        if held_out is not None:
            found = held_out[1]
            other = Rows(_prepared(held_out[0], shift, scale), found.labels, found.known)
        self._fit_rows(train, other, seed)
        # All at once, so that a fit that fails leaves what was fitted before.
        self._shift, self._scale = shift, scale
        self._targets = targets._replace(labels=targets.labels[:0], known=None)
        self._name_labels()
        self.threshold_ = 0.5
        if self.threshold != "validation":
            self.threshold_ = float(self.threshold)
        elif other is not None:
            scores = self._scores(other.inputs)
            chosen = choose_thresholds(scores, other.labels, per="all", label_mask=other.known)
            self.threshold_ = float(chosen)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Labels [m, L] in {0, 1}, 1 from a probability of `threshold_` on; or classes [m].

        Args:
          X: [m, d], with the feature names that were fitted, if any were.

        Raises:
          ValueError: another width or other names than fitted, or values that are not finite.
          NotFittedError: `fit` was not called.
        """
        scores = self._label_scores(X)
        classes = self._targets.classes
        if classes is None:
            return (scores >= self.threshold_).astype(np.int64)
        if self._targets.kind == "binary":
            return classes[(self._margins(scores)[:, 0] > 0).astype(np.int64)]
        return classes[scores.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [m, L] of the labels; of classes [m, C], with rows that sum to 1.

        Args:
          X: as in `predict`.

        Raises:
          ValueError: as `predict`.
        """
        scores = self._label_scores(X)
        if self._targets.kind == "multilabel":
            return scores
        if self._targets.kind == "binary":
            return np.hstack([1.0 - scores, scores])
        scores = np.maximum(scores, _LOW)
        return scores / scores.sum(axis=1, keepdims=True)

    def decision_function(self, X: Any) -> np.ndarray:
        """log(p / (1 - p)) of the probabilities, less that of `threshold_`: [m, L].

        [m] for two classes, where it is positive for the second; [m, C] for more, of which the
        largest is predicted.

        Args:
          X: as in `predict`.

        Raises:
          ValueError: as `predict`.
        """
        margins = self._margins(self._label_scores(X))
        return margins[:, 0] if self._targets.kind == "binary" else margins

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted classifier to one file, whole or not at all, without pickle.

        Args:
          path: the file; its folder is created.

        Raises:
          NotFittedError: `fit` was not called.
          ConfigError: a parameter, or a class of `y`, that a file cannot hold.
        """
        check_is_fitted(self)
        _files.write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; nothing is unpickled.

        Args:
          path: the file.

        Raises:
          CheckpointError: it is missing, damaged, or of another class.
        """
        found = _files.load(path)
        if not isinstance(found, cls):
            raise CheckpointError(
                f"{os.fspath(path)}: it holds a {type(found).__name__}, not a {cls.__name__}; use "
                f"{type(found).__name__}.load"
            )
        return found

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "threshold_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.input_tags.sparse = True
        return tags

    @abc.abstractmethod
    def _fit_rows(self, train: Rows, validation: Rows | None, seed: int) -> None:
        """Fit to prepared rows."""

    @abc.abstractmethod
    def _scores(self, inputs: np.ndarray) -> np.ndarray:
        """Probabilities [m, L] of prepared rows."""

    @abc.abstractmethod
    def _fitted(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What was learnt: what JSON can hold, and arrays."""

    @abc.abstractmethod
    def _restore(self, info: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take what `_fitted` gave.

        Raises:
          KeyError, TypeError, ValueError: it is not that.
        """

    def _name_labels(self) -> None:
        """Set `label_names_` and `classes_`, as scikit-learn's scorers want it."""
        self.label_names_ = self._targets.names
        self.classes_: Any = self._targets.classes
        if self.classes_ is None:
            # [L, 2], each label's classes: names or numbers of 2 labels would pass for 2 classes.
            self.classes_ = np.tile(np.arange(2), (len(self.label_names_), 1))

    def _chooses(self) -> bool:
        """Whether something is chosen on rows that are not trained on."""
        return self.threshold == "validation"

    def _check_parameters(self) -> None:
        if self.threshold != "validation":
            what = 'a number between 0 and 1, or "validation"'
            require_number(self, "threshold", 0.0, 1.0, what)
        require_number(self, "validation_fraction", 0.0, 1.0, "a number between 0 and 1")

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            if not 0 <= self.random_state < 2**32:
                raise ConfigError(
                    f"{type(self).__name__}: random_state must be at least 0 and below 2^32, not "
                    f"{self.random_state}"
                )
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _validation(self, validation: Any, targets: Targets) -> tuple[Any, Targets]:
        if not isinstance(validation, tuple | list) or len(validation) not in (2, 3):
            raise ValueError("validation must be (X, y) or (X, y, label_mask)")
        x = self._checked(validation[0])
        mask = validation[2] if len(validation) == 3 else None
        return x, read_targets(validation[1], mask, x.shape[0], targets)

    def _hold_out(self, x: Any, targets: Targets, seed: int) -> tuple[Any, Targets, Any]:
        rest, out = stratified_split(targets.labels, self.validation_fraction, seed)
        if len(rest) == 0 or len(out) == 0:
            raise ValueError(
                f"{x.shape[0]} rows are too few to hold out {self.validation_fraction:g} of them; "
                "give validation=(X, y)"
            )

        def part(rows: np.ndarray) -> tuple[Any, Targets]:
            known = None if targets.known is None else targets.known[rows]
            return x[rows], targets._replace(labels=targets.labels[rows], known=known)

        return *part(rest), part(out)

    def _checked(self, x: Any) -> Any:
        return validate_data(
            self, x, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False
        )

    def _label_scores(self, x: Any) -> np.ndarray:
        """Probabilities [m, L] float64 of rows as they are given."""
        return self._by_block(x, self._scores)

    def _by_block(self, x: Any, function: Any) -> np.ndarray:
        check_is_fitted(self)
        checked = self._checked(x)
        parts = [
            function(_prepared(checked[start : start + _BLOCK], self._shift, self._scale))
            for start in range(0, checked.shape[0], _BLOCK)
        ]
        return np.concatenate(parts).astype(np.float64)

    def _margins(self, scores: np.ndarray) -> np.ndarray:
        p = np.clip(scores, _LOW, _HIGH)
        margins = np.log(p) - np.log1p(-p)
        if self._targets.kind == "multiclass":
            return margins
        return margins - (math.log(self.threshold_) - math.log1p(-self.threshold_))


def require_number(
    estimator: Any, name: str, above: float, below: float, what: str, *, whole: bool = False
) -> None:
    """Refuse a parameter that is no number between two, both left out.

    Raises:
      ConfigError: with one line that names estimator, parameter and value.

    Example:
      >>> import types
      >>> require_number(types.SimpleNamespace(steps=0), "steps", 0, 9, "from 1 to 8", whole=True)
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: SimpleNamespace: steps must be from 1 to 8, not 0
    """
    value = getattr(estimator, name)
    kind = (int, np.integer) if whole else (int, float, np.number)
    if isinstance(value, kind) and not isinstance(value, bool) and above < value < below:
        return
    raise ConfigError(f"{type(estimator).__name__}: {name} must be {what}, not {value!r}")


def require_one_of(estimator: Any, name: str, choices: Sequence[str]) -> None:
    """Refuse a parameter that is none of these words.

    Raises:
      ConfigError: with one line that names them.

    Example:
      >>> import types
      >>> require_one_of(types.SimpleNamespace(loss="l2"), "loss", ("bce", "focal"))
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: SimpleNamespace: loss must be "bce" or "focal", not 'l2'
    """
    value = getattr(estimator, name)
    if value not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices)
        raise ConfigError(f"{type(estimator).__name__}: {name} must be {words}, not {value!r}")


def _prepared(x: Any, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Dense rows [m, d] float32, shifted and scaled."""
    dense = x.toarray() if sparse.issparse(x) else x
    with np.errstate(over="ignore", invalid="ignore"):
        prepared = ((dense - shift) * scale).astype(np.float32)
    if not np.isfinite(prepared).all():
        row, column = (int(index) for index in np.argwhere(~np.isfinite(prepared))[0])
        raise ValueError(
            f"X[{row}, {column}] is {dense[row, column]:g}, which float32 cannot hold; scale this "
            "feature"
        )
    return prepared


def _preparation(x: Any, standardize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale [d] float64: mean 0 and deviation 1; features that are constant become 0."""
    width = x.shape[1]
    if not standardize:
        return np.zeros(width), np.ones(width)
    if sparse.issparse(x):
        mean = np.asarray(x.mean(axis=0), np.float64).reshape(-1)
        square = np.asarray(x.astype(np.float64).power(2).mean(axis=0)).reshape(-1)
        # Sums of squares lose digits where the mean is large: those columns are few, and dense.
        deviation = np.sqrt(np.maximum(0.0, square - mean**2))
        narrow = (deviation < 1e-3 * np.abs(mean)) & (mean != 0)
        for column in np.flatnonzero(narrow).tolist():
            deviation[column] = x[:, [column]].toarray().std(dtype=np.float64)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        far = ~(np.isfinite(mean) & np.isfinite(deviation))
        if far.any():
            first = int(np.flatnonzero(far)[0])
            raise ValueError(
                f"X[:, {first}] has values too large to be squared; scale this feature"
            )
    # The deviation of a constant column is rounding, not zero.
    constant = deviation <= 1e-12 * np.abs(mean)
    return mean, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))
