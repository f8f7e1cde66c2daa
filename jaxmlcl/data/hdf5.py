"""HDF5 files with `feature` or `Image`, and `target`, as the authors of MulSupCon store data.

Images of a large file are photographs: they stay in the file and are read one by one, to be cropped
and resized like those that are files of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxmlcl.data._checks import (
    as_float32,
    channels_last,
    check_labels,
    check_mask,
    check_names,
    check_numbers,
)
from jaxmlcl.data.images._source import EncodedSource, Opened, choice
from jaxmlcl.data.source import ArraySource
from jaxmlcl.errors import DataError, UserError

# DEFLATE, the strongest of the common filters, makes data at most 1032 times smaller.
_DENSEST = 1100


# Images of files up to this size are held in memory, unless asked otherwise.
_IN_MEMORY = 2**30


def open_hdf5(
    path: Path, options: Mapping[str, str], places: Sequence[Path]
) -> ArraySource | EncodedSource:
    """Open an HDF5 file of vectors or images; see `open_source`.

    `feature` is [n, d], numbers; in its place `Image` may be uint8 [n, height, width, channels] or
    [n, channels, height, width] with 1 or 3 channels. `target` is [n, L], 0 or 1. Label names are a
    dataset `label_names` or an attribute of that name on `target` or on the file, UTF-8 strings of
    fixed length; without one they are `label_0`, `label_1`, ... A dataset `label_mask` [n, L] may
    say which labels are known (1, or True) and which are not (0). Features become float32, images
    stay uint8.

    The option `images` says whether images are held in `memory`, as arrays of their size, or are
    `photographs`, which are read one by one and cut and resized like image files; if it is left
    out, those of more than 1 GiB are photographs.

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
    del places
    kept = None
    if "images" in options:
        kept = choice(options, "images", ("memory", "photographs"), str(path))
    with _opened(path) as file:
        held = _inputs(file, path)
        if held == "Image":
            images = _dataset(file, held, path, 4)
            if kept == "photographs" or (kept is None and images.nbytes > _IN_MEMORY):
                return _photographs(path, file, images)
        elif kept:
            raise DataError(f"{path}: option images={kept}, but the file holds feature, no Image")
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


def _photographs(path: Path, file: h5py.File, images: h5py.Dataset) -> EncodedSource:
    labels = check_numbers(_dataset(file, "target", path)[()], f"{path}, target")
    found = _label_names(file, labels.shape[1], path)
    label_names = check_names(found, labels.shape[1], "label", str(path))
    mask = _dataset(file, "label_mask", path)[()] if "label_mask" in file else None
    known = None if mask is None else check_mask(mask, labels.shape, str(path))
    check_labels(labels, label_names, str(path), lambda row: f"row {row} (counted from 0)", known)
    if len(images) != len(labels):
        raise DataError(f"{path}: Image has {len(images)} rows, target has {len(labels)}")
    # The layout and the type, by a row of it.
    channels_last(images[:1], f"{path}, Image")
    # All of it would be long to read, so the fingerprint is that of some rows.
    content = hashlib.sha256(str((images.shape, images.dtype)).encode())
    for row in np.linspace(0, len(images) - 1, 16, dtype=int).tolist():
        content.update(images[row].tobytes())
    return Hdf5Images(
        path,
        np.arange(len(images)),
        labels=labels,
        name=path.stem,
        label_names=label_names,
        ids=None,
        where=str(path),
        label_mask=known,
        content=content.digest(),
    )


class Hdf5Images(EncodedSource):
    """Images of an HDF5 file that stay there until they are asked for.

    Args:
      path: the file.
      rows: [n], which rows of it.
      **settings: as in `EncodedSource`.
    """

    def __init__(self, path: Path, rows: np.ndarray, **settings: Any) -> None:
        super().__init__(**settings)
        self._path, self._rows, self._content = path, rows, settings["content"]
        self._open = Opened()

    def read(self, row: int) -> np.ndarray:
        """A row's pixels, uint8 [H, W, 1 or 3].

        Raises:
          DataError: they cannot be read.
        """
        opened = vars(self._open)
        try:
            if "images" not in opened:
                opened["images"] = h5py.File(self._path, "r")["Image"]
            pixels = opened["images"][int(self._rows[row])]
        except Exception as error:
            raise DataError(
                f"{self.place(row)}: cannot be read: " + str(error).strip("'\"")
            ) from None
        return channels_last(pixels[None], f"{self._path}, Image")[0]

    def place(self, row: int) -> str:
        """The file, and which of its rows the row is."""
        return f"{self._path}, row {self._rows[row]}"

    def subset(self, rows: np.ndarray, name: str) -> Hdf5Images:
        """Some rows, with their ids, under another name."""
        return Hdf5Images(
            self._path, self._rows[rows], **self._settings(rows, name), content=self._content
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
