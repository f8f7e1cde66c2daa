"""What `y` may be: a matrix of labels, or one class a row; and how it becomes labels [n, L]."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

Kind = Literal["multilabel", "binary", "multiclass"]


class Targets(NamedTuple):
    """Checked targets of n rows."""

    labels: np.ndarray
    """[n, L] uint8 in {0, 1}, 0 where unknown. One column for two classes, else one a class."""
    known: np.ndarray | None
    """[n, L] bool; None: all are known."""
    kind: Kind
    classes: np.ndarray | None
    """[C], the sorted classes of a `y` of one dimension; None for a matrix of labels."""
    names: np.ndarray
    """[L] names of the labels, or of the classes [C]."""


def read_targets(y: Any, label_mask: Any, rows: int, like: Targets | None = None) -> Targets:
    """Check targets.

    Args:
      y: [n, L] of 0 and 1, dense, sparse or a data frame; or [n] classes (numbers or text).
      label_mask: of the shape of `y`, True where it is known; None: everywhere. Anything, also NaN,
        may stand in `y` where it is not.
      rows: n.
      like: targets whose kind, classes and names these must have.

    Raises:
      ValueError: with one line that names the place.

    Example:
      >>> read_targets([[1, 0], [1, 1]], None, 2).labels.tolist()
      [[1, 0], [1, 1]]
      >>> read_targets(["no", "yes", "no"], None, 3).labels.tolist()
      [[0], [1], [0]]
    """
    columns = _columns(y)
    values = _dense(y)
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] == 0):
        raise ValueError(f"y has shape {values.shape}; expected [n, L] labels or [n] classes")
    check_consistent_length(np.empty((rows, 1)), values)
    known = None if label_mask is None else _mask(label_mask, values.shape, columns)
    matrix = values.ndim == 2 and values.shape[1] > 1
    if not matrix:
        values = column_or_1d(values, warn=True)
        known = None if known is None else known.reshape(-1)
    if known is not None and not known.any():
        raise ValueError("label_mask: no label is known in any row; there is nothing to learn")
    read = _matrix(values, known, columns) if matrix else _classes(values, known, like)
    if like is not None and (read.kind == "multilabel") != (like.kind == "multilabel"):
        raise ValueError(f"y has shape {values.shape}, unlike the y that is fitted")
    if like is not None and list(read.names) != list(like.names):
        raise ValueError(
            f"y has the labels {_few(read.names)}, where {_few(like.names)} are fitted, in this "
            "order"
        )
    return read


def _matrix(values: np.ndarray, known: np.ndarray | None, columns: list[str] | None) -> Targets:
    width = values.shape[1]
    names = columns or [f"label_{index}" for index in range(width)]
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError("Unknown label type: a y of several columns holds 0 and 1") from None
    bad = (numbers != 0) & (numbers != 1)
    if known is not None:
        bad &= known
    if bad.any():
        row, label = (int(index) for index in np.argwhere(bad)[0])
        value = numbers[row, label]
        if np.isnan(value):
            raise ValueError(
                f"Input y contains NaN: row {row}, label {names[label]!r}; say with label_mask "
                "which labels are unknown"
            )
        raise ValueError(
            f"Unknown label type: row {row}, label {names[label]!r} of y is {value:g}; labels are "
            "0 or 1"
        )
    labels = numbers == 1
    if known is not None:
        labels &= known
    return Targets(labels.astype(np.uint8), known, "multilabel", None, np.array(names, object))


def _classes(values: np.ndarray, known: np.ndarray | None, like: Targets | None) -> Targets:
    given = values if known is None else values[known]
    if given.dtype == object:
        # Missing values differ from themselves; those of pandas are not even comparable.
        missing = [x is None or type(x).__name__ == "NAType" or x != x for x in given]
        if any(missing):
            raise ValueError(
                "Input y contains NaN: say with label_mask which rows have unknown classes"
            )
    check_classification_targets(given)
    classes = np.unique(given)
    if like is not None and like.classes is not None:
        unseen = np.setdiff1d(classes, like.classes)
        if unseen.size:
            raise ValueError(f"y has the classes {_few(unseen)}, which are not fitted")
        classes = like.classes
    if len(classes) < 2:
        raise ValueError(f"y has one class, {_few(classes)}; at least 2 classes can be told apart")
    columns = classes[1:] if len(classes) == 2 else classes
    labels = np.zeros((len(values), len(columns)), np.uint8)
    found = given[:, None] == columns[None]
    labels[slice(None) if known is None else known] = found
    mask = None if known is None else np.repeat(known[:, None], len(columns), axis=1)
    kind: Kind = "binary" if len(classes) == 2 else "multiclass"
    return Targets(labels, mask, kind, classes, np.array([str(one) for one in classes], object))


def _columns(y: Any) -> list[str] | None:
    columns = getattr(y, "columns", None)
    return None if columns is None else [str(name) for name in columns]


def _dense(y: Any) -> np.ndarray:
    if sparse.issparse(y):
        return y.toarray()
    if hasattr(y, "columns"):
        try:
            # Columns of several types, and pandas' own missing values.
            return y.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError):
            return np.asarray(y)
    return np.asarray(y)


def _mask(mask: Any, shape: tuple[int, ...], columns: list[str] | None) -> np.ndarray:
    names = _columns(mask)
    if names is not None and columns is not None and names != columns:
        raise ValueError(f"label_mask has the columns {_few(names)}, y has {_few(columns)}")
    values = mask.toarray() if sparse.issparse(mask) else np.asarray(mask)
    if values.shape != shape and values.size == np.prod(shape) and 1 in (*shape[1:], *values.shape):
        values = values.reshape(shape)
    if values.shape != shape:
        raise ValueError(f"label_mask has shape {values.shape}; expected {shape}, as y")
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise ValueError("label_mask holds other values than True and False")
    return values.astype(bool)


def _few(names: Any) -> str:
    shown = ", ".join(map(repr, np.asarray(names).tolist()[:4]))
    return f"{shown}, ..." if len(names) > 4 else shown
