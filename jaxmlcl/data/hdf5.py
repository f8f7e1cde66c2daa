"""HDF5 files with `feature` or `Image`, and `target`, as the authors of MulSupCon store data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxmlcl.data._checks import as_float32, channels_last
from jaxmlcl.data.source import ArraySource
from jaxmlcl.errors import DataError, UserError

# DEFLATE, the strongest of the common filters, makes data at most 1032 times smaller.
_DENSEST = 1100


def open_hdf5(path: Path, options: Mapping[str, str], places: Sequence[Path]) -> ArraySource:
    """Open an HDF5 file of vectors or images; see `open_source`.

    `feature` is [n, d], numbers; in its place `Image` may be uint8 [n, height, width, channels] or
    [n, channels, height, width] with 1 or 3 channels. `target` is [n, L], 0 or 1. Label names are a
    dataset `label_names` or an attribute of that name on `target` or on the file, UTF-8 strings of
    fixed length; without one they are `label_0`, `label_1`, ... A dataset `label_mask` [n, L] may
    say which labels are known (1, or True) and which are not (0). Features become float32, images
    stay uint8.

    Returns:
      The rows in the order of the file.

    Raises:
      DataError: not an HDF5 file, damaged, or without these arrays.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.h5"
      >>> with h5py.File(path, "w") as file:
      ...     file["feature"] = [[0.5, 1.0], [2.0, 3.0]]
      ...     file["target"] = [[1], [0]]
      ...     file["target"].attrs["label_names"] = np.char.encode(["sea"], "utf-8")
      >>> open_hdf5(path, {}, []).metadata.label_names
      ('sea',)
    """
    del options, places
    with _opened(path) as file:
        held = _inputs(file, path)
        inputs = _dataset(file, held, path, 4 if held == "Image" else 2)[()]
        labels = _dataset(file, "target", path)[()]
        mask = _dataset(file, "label_mask", path)[()] if "label_mask" in file else None
        label_names = _label_names(file, labels.shape[1], path)
    if len(inputs) != len(labels):
        raise DataError(f"{path}: {held} has {len(inputs)} rows, target has {len(labels)}")
    is_image = held == "Image"
    inputs = channels_last(inputs, f"{path}, Image") if is_image else as_float32(inputs)
    return ArraySource(
        inputs, labels, name=path.stem, label_names=label_names, where=str(path), label_mask=mask
    )


@contextlib.contextmanager
def hdf5_rows(path: Path) -> Iterator[h5py.Dataset]:
    """The inputs of an HDF5 file, `feature` or `Image`, to be read by slices inside the block.

    Raises:
      DataError: not an HDF5 file, damaged, or without inputs; also inside the block.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.h5"
      >>> with h5py.File(path, "w") as file:
      ...     file["feature"] = [[0.5, 1.0], [2.0, 3.0]]
      >>> with hdf5_rows(path) as rows:
      ...     print(rows.shape, rows[1:])
      (2, 2) [[2. 3.]]
    """
    with _opened(path) as file:
        held = _inputs(file, path)
        yield _dataset(file, held, path, 4 if held == "Image" else 2)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except Exception as error:
        # A damaged file makes h5py raise almost anything: OSError, RuntimeError, KeyError, ...
        raise DataError(
            f"{path}: cannot be read as HDF5, it is damaged or something else: "
            + str(error).strip("'\"")
        ) from None


def _inputs(file: h5py.File, path: Path) -> str:
    # Which of the two the file holds.
    if "Image" in file and "feature" in file:
        raise DataError(f"{path}: holds both feature and Image; keep one of them")
    return "Image" if "Image" in file else "feature"


def _dataset(file: h5py.File, name: str, path: Path, axes: int = 2) -> h5py.Dataset:
    if name not in file:
        held = ", ".join(sorted(file)[:8]) or "nothing"
        raise DataError(f"{path}: no dataset {name!r}; the file holds {held}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {name!r} is a group, an array is expected")
    if dataset.shape is None or len(dataset.shape) != axes:
        wanted = "two" if axes == 2 else "four"
        raise DataError(
            f"{path}: dataset {name!r} has shape {dataset.shape}, expected {wanted} axes"
        )
    if dataset.dtype.kind not in "biuf":
        raise DataError(f"{path}: dataset {name!r} has type {dataset.dtype}, expected numbers")
    _check_size(dataset, path)
    return dataset


def _label_names(file: h5py.File, count: int, path: Path) -> list[str] | None:
    held: Any = None
    if isinstance(file.get("label_names"), h5py.Dataset):
        held = file["label_names"]
    for owner in (file["target"], file):
        if held is None and "label_names" in owner.attrs:
            held = owner.attrs.get_id("label_names")
    if held is None:
        return None
    # Strings of variable length lie in a heap of pointers that libhdf5 (2.0 and before) follows
    # unchecked: one flipped byte there makes it loop without end or crash the process.
    if held.dtype.kind != "S":
        raise DataError(
            f"{path}: label_names are not strings of fixed length; "
            "store numpy.char.encode(names, 'utf-8')"
        )
    if held.shape != (count,):
        raise DataError(f"{path}: label_names has shape {held.shape} for {count} labels")
    _check_size(held, path)
    names = np.empty(held.shape, held.dtype)
    if isinstance(held, h5py.Dataset):
        held.read_direct(names)
    else:
        held.read(names)
    return [name.decode() for name in names.ravel().tolist()]


def _check_size(held: Any, path: Path) -> None:
    # A damaged size would ask for more memory than there is.
    claimed = math.prod(held.shape) * held.dtype.itemsize
    size = path.stat().st_size
    if claimed > _DENSEST * size:
        raise DataError(
            f"{path}: claims {claimed} bytes of data in a file of {size}, it is damaged"
        )
