"""What arrays must fulfil to be records, and how messages quote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxmlcl.errors import DataError


def shorten(text: str, length: int = 60) -> str:
    """`text` quoted for a message, control characters escaped, cut to about `length` characters.

    Example:
      >>> shorten("a" * 100, 5)
      "'aaaaa...'"
    """
    return repr(text if len(text) <= length else text[:length] + "...")


def check_numbers(values: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        raise DataError(
            f"{where}: rows of different lengths, one rectangular array is expected"
        ) from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: type {array.dtype} where numbers are expected")
    return array


def check_shapes(inputs: np.ndarray, labels: np.ndarray, where: str) -> None:
    if inputs.ndim not in (2, 4):
        raise DataError(
            f"{where}: inputs have shape {inputs.shape}; vectors are [n, d], "
            "images are [n, height, width, channels]"
        )
    if labels.ndim != 2:
        raise DataError(f"{where}: labels have shape {labels.shape}, expected [n, L]")
    if len(inputs) != len(labels):
        raise DataError(f"{where}: {len(inputs)} rows of inputs but {len(labels)} rows of labels")
    if len(inputs) == 0:
        raise DataError(f"{where}: no rows; at least one record is needed")
    if labels.shape[1] == 0:
        raise DataError(f"{where}: no labels; at least one label column is needed")
    if 0 in inputs.shape:
        raise DataError(f"{where}: inputs are empty, their shape is {inputs.shape}")


def check_names(names: Iterable[str] | None, count: int, what: str, where: str) -> tuple[str, ...]:
    if names is None:
        return tuple(f"{what}_{i}" for i in range(count))
    names = tuple(str(name) for name in names)
    if len(names) != count:
        raise DataError(f"{where}: {len(names)} {what} names for {count} {what} columns")
    if len(set(names)) != count:
        repeated = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: {what} name {shorten(repeated)} occurs more than once")
    return names


def check_labels(
    labels: np.ndarray, names: Sequence[str], where: str, locate: Callable[[int], str]
) -> None:
    wrong = ~((labels == 0) | (labels == 1))
    if wrong.any():
        row, column = divmod(int(np.argmax(wrong)), wrong.shape[1])
        raise DataError(
            f"{where}, {locate(row)}, label {shorten(names[column])}: "
            f"{labels[row, column]} is not 0 or 1"
        )


def check_finite(
    inputs: np.ndarray, names: Sequence[str] | None, where: str, locate: Callable[[int], str]
) -> None:
    if inputs.dtype.kind != "f" or np.isfinite(inputs).all():
        return
    row, *place = map(int, np.unravel_index(np.argmin(np.isfinite(inputs)), inputs.shape))
    column = f"feature {shorten(names[place[0]])}" if names else f"pixel {tuple(place)}"
    value = inputs[(row, *place)]
    problem = "is not a number" if np.isnan(value) else f"is outside the range of {inputs.dtype}"
    raise DataError(f"{where}, {locate(row)}, {column}: {value} {problem}")


def check_ids(ids: Any, count: int, where: str) -> np.ndarray:
    ids = check_numbers(ids, f"{where}, ids")
    if ids.shape != (count,) or ids.dtype.kind not in "iu":
        raise DataError(
            f"{where}: ids have type {ids.dtype} and shape {ids.shape}; "
            f"expected {count} whole numbers"
        )
    if ids.min() < 0 or ids.max() >= 2**31:
        raise DataError(
            f"{where}: ids must be from 0 to 2147483647, found {ids.min()}...{ids.max()}"
        )
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < count:
        raise DataError(f"{where}: id {values[counts > 1][0]} occurs more than once")
    return ids.astype(np.int32)
