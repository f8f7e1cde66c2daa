"""What arrays must fulfil to be records, and how messages quote."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.errors import DataError

MISSING = (
    "missing value; fill it in, leave the row out, or write '?missing=mean' if it is a feature, "
    "'?unknown=mask' if it is a label"
)


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
    labels: np.ndarray,
    names: Sequence[str],
    where: str,
    locate: Callable[[int], str],
    known: np.ndarray | None = None,
) -> None:
    wrong = ~((labels == 0) | (labels == 1))
    if known is not None:
        wrong &= known
    if wrong.any():
        row, column = divmod(int(np.argmax(wrong)), wrong.shape[1])
        raise DataError(
            f"{where}, {locate(row)}, label {shorten(names[column])}: "
            f"{labels[row, column]} is not 0 or 1"
        )


def check_mask(mask: Any, shape: tuple[int, ...], where: str) -> np.ndarray | None:
    # Bool [n, L], or None where everything is known: then nobody has to look at it.
    mask = check_numbers(mask, f"{where}, label_mask")
    if mask.shape != shape:
        raise DataError(f"{where}: label_mask has shape {mask.shape}, labels have {shape}")
    wrong = (mask != 0) & (mask != 1)
    if wrong.any():
        raise DataError(
            f"{where}: label_mask holds {mask[wrong][0]}; it is 1 where the label is known, else 0"
        )
    known = mask.astype(bool)
    if not known.any():
        raise DataError(f"{where}: no label is known in any row; there is nothing to learn from")
    return None if known.all() else known


def check_targets(
    targets: Any,
    shape: tuple[int, ...],
    names: Sequence[str],
    where: str,
    locate: Callable[[int], str],
) -> np.ndarray:
    targets = check_numbers(targets, f"{where}, targets")
    if targets.shape != shape:
        raise DataError(f"{where}: targets have shape {targets.shape}, labels have {shape}")
    wrong = ~((targets >= 0) & (targets <= 1))
    if wrong.any():
        row, column = divmod(int(np.argmax(wrong)), wrong.shape[1])
        raise DataError(
            f"{where}, {locate(row)}, label {shorten(names[column])}: the target "
            f"{targets[row, column]:.6g} is not in [0, 1]"
        )
    return targets


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


def wants_means(options: Mapping[str, str], where: str) -> bool:
    # Whether the option `missing` asks for means; there is nothing else it could ask for.
    choice = options.get("missing", "mean")
    if choice != "mean":
        raise DataError(
            f"{where}: option missing={shorten(choice)}; write missing=mean, or leave it out to "
            "refuse missing values"
        )
    return "missing" in options


def wants_mask(options: Mapping[str, str], where: str) -> bool:
    # Whether the option `unknown` asks for a mask; there is nothing else it could ask for.
    choice = options.get("unknown", "mask")
    if choice != "mask":
        raise DataError(
            f"{where}: option unknown={shorten(choice)}; write unknown=mask, or leave it out to "
            "refuse unknown labels"
        )
    return "unknown" in options


def fill_with_means(inputs: np.ndarray, names: Sequence[str], where: str) -> np.ndarray:
    """NaN becomes the mean of its column over the values that are known."""
    missing = np.isnan(inputs)
    known = (~missing).sum(axis=0)
    if not known.all():
        name = names[int(np.argmin(known))]
        raise DataError(f"{where}: feature {shorten(name)} has no value in any row; leave it out")
    means = np.where(missing, 0, inputs).sum(axis=0, dtype=np.float64) / known
    return np.where(missing, means.astype(inputs.dtype), inputs)


def beside(path: Path, ending: str) -> tuple[Path | None, int]:
    """The file with the ending that belongs to `path`, and how many have that ending.

    It has the same name or one that begins it up to "-" or "_" (birds.xml for birds-train.arff), or
    it is the only one.
    """
    try:
        files = sorted(file for file in path.parent.iterdir() if file.name.lower().endswith(ending))
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be listed: {error.strerror or error}") from None
    stems = {file.name[: -len(ending)]: file for file in files}
    named = [stem for stem in stems if re.match(re.escape(stem) + r"([-_]|$)", path.stem)]
    if named:
        return stems[max(named, key=len)], len(files)
    return (files[0] if len(files) == 1 else None), len(files)


def columns_of(pattern: str, names: Sequence[str], where: str) -> list[int]:
    """The columns that `a,b,prefix*` means, in the order of the columns."""
    chosen: set[int] = set()
    for part in pattern.split(","):
        part = part.strip()
        if part.endswith("*"):
            found = [i for i, name in enumerate(names) if name.startswith(part[:-1])]
        else:
            found = [i for i, name in enumerate(names) if name == part]
        if not found:
            near = difflib.get_close_matches(part, names, n=1)
            hint = f" (did you mean {shorten(near[0])}?)" if near else ""
            raise DataError(f"{where}: no column {shorten(part)}{hint}")
        chosen.update(found)
    return sorted(chosen)


def channels_last(images: np.ndarray, where: str) -> np.ndarray:
    """Images as [n, height, width, channels]; 1 or 3 channels may be the second axis instead."""
    if images.ndim != 4 or images.dtype != np.uint8:
        raise DataError(
            f"{where}: images have type {images.dtype} and shape {images.shape}; expected uint8 "
            "[n, height, width, channels] or [n, channels, height, width]"
        )
    if images.shape[3] in (1, 3):
        return images
    if images.shape[1] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    raise DataError(f"{where}: images of shape {images.shape}; neither axis 1 nor 3 is 1 or 3 long")


def as_float32(values: np.ndarray) -> np.ndarray:
    # What does not fit becomes infinite or stays NaN, which the source refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)
