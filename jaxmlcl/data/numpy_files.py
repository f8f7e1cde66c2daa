"""NumPy files: arrays by name in `.npz`, and rows of one array in `.npy` as MPVAE stores them."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from jaxmlcl.data._checks import as_float32, channels_last, wants_mask
from jaxmlcl.data.source import ArraySource, find_file, integer_option
from jaxmlcl.errors import DataError

INPUTS = ("features", "inputs", "x", "representation")
_LABELS = ("labels", "targets", "y")


def open_npz(path: Path, options: Mapping[str, str], places: Sequence[Path]) -> ArraySource:
    """Open a `.npz` file; see `open_source`.

    `features` (or `inputs`, or `x`, or `representation`, as `jaxmlcl embed` has it) are vectors
    [n, d], which become float32, or uint8 images [n, height, width, channels] or
    [n, channels, height, width] with 1 or 3 channels. `labels` (or `targets`, or `y`) are [n, L], 0
    or 1. `label_names` may hold `L` strings of fixed length, and `label_mask` [n, L] may say which
    labels are known (1, or True) and which are not (0).

    Returns:
      The rows in the order of the file.

    Raises:
      DataError: not a `.npz` file, damaged, or without these arrays.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.npz"
      >>> np.savez(path, features=[[0.5, 1.0]], labels=[[1]], label_names=["sea"])
      >>> source = open_npz(path, {}, [])
      >>> source[0]["inputs"], source.metadata.label_names
      (array([0.5, 1. ], dtype=float32), ('sea',))
    """
    del options, places
    try:
        with zipfile.ZipFile(path) as archive:
            held = _held(archive)
            inputs = _member(archive, held, INPUTS, path)
            labels = _member(archive, held, _LABELS, path)
            names = mask = None
            if "label_mask" in held:
                mask = _member(archive, held, ("label_mask",), path)
            if "label_names" in held:
                names = strings(_member(archive, held, ("label_names",), path), path)
    except DataError:
        raise
    except Exception as error:
        # A damaged archive raises BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, ...
        raise _unreadable(path, "npz", error) from None
    inputs = channels_last(inputs, str(path)) if inputs.ndim == 4 else _vectors(inputs, path)
    return ArraySource(
        inputs, labels, name=path.stem, label_names=names, where=str(path), label_mask=mask
    )


def open_npy(path: Path, options: Mapping[str, str], places: Sequence[Path]) -> ArraySource:
    """Open a `.npy` file with rows [meta | labels | features]; see `open_source`.

    Args:
      path: one array, [N, M + L + d].
      options: `labels`, the number of label columns, L; `meta`, that of meta columns, M (0 if left
        out); `indices`, a `.npy` file with the numbers of the rows that make up the split;
        `unknown`, "mask" to take a label that is NaN as unknown.
      places: where a relative `indices` is sought after the folder of `path`.

    Returns:
      The rows that the indices name, in their order, or all. Inputs are [features | meta], float32;
      ids are the row numbers in the file.

    Raises:
      DataError: either file is not what it should be.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> np.save(folder / "data.npy", [[9.0, 1, 0, 0.5, 2.5], [8.0, 0, 1, 0.25, 1.5]])
      >>> np.save(folder / "train_idx.npy", [1])
      >>> options = {"labels": "2", "meta": "1", "indices": "train_idx.npy"}
      >>> record = open_npy(folder / "data.npy", options, [])[0]
      >>> record["inputs"], record["labels"], record["id"]
      (array([0.25, 1.5 , 8.  ], dtype=float32), array([0, 1], dtype=uint8), 1)

    Source: J. Bai, S. Kong, C. Gomes, Disentangled Variational Autoencoder based Multi-Label
    Classification with Covariance-Aware Multivariate Probit Model, IJCAI 2020, the released data.
    """
    if "labels" not in options:
        raise DataError(f"{path}: how many columns are labels? write '?labels=NUMBER'")
    limit = 2**31 - 1
    width = integer_option(options, "labels", default=0, low=1, high=limit, where=str(path))
    meta = integer_option(options, "meta", default=0, low=0, high=limit, where=str(path))
    table = read_npy(path)
    if table.ndim != 2 or table.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: type {table.dtype} and shape {table.shape}; expected numbers, "
            "[rows, meta + labels + features]"
        )
    if table.shape[1] <= meta + width:
        raise DataError(
            f"{path}: {table.shape[1]} columns; {meta} of meta data and {width} labels leave no "
            "feature"
        )
    masks = wants_mask(options, str(path))
    rows = np.arange(len(table))
    if "indices" in options:
        index = find_file(options["indices"], [path.parent, *places], hint=False)
        rows = _indices(index, len(table), path)
    chosen = np.asarray(table[rows])
    labels = chosen[:, meta : meta + width]
    return ArraySource(
        as_float32(np.hstack([chosen[:, meta + width :], chosen[:, :meta]])),
        labels,
        name=path.stem if "indices" not in options else f"{path.stem}-{index.stem}",
        feature_names=[
            *(f"feature_{i}" for i in range(table.shape[1] - meta - width)),
            *(f"meta_{i}" for i in range(meta)),
        ],
        ids=rows,
        where=str(path),
        locate=lambda row: f"row {rows[row]} (counted from 0)",
        label_mask=~np.isnan(labels) if masks else None,
    )


def _indices(path: Path, count: int, table: Path) -> np.ndarray:
    rows = np.asarray(read_npy(path))
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise DataError(
            f"{path}: type {rows.dtype} and shape {rows.shape}; expected whole numbers, [rows]"
        )
    outside = (rows < 0) | (rows >= count)
    if outside.any():
        raise DataError(f"{path}: row {rows[outside][0]} is not in {table}, which has {count} rows")
    return rows.astype(np.int64)


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, mapped into memory: a damaged size asks for nothing.

    Raises:
      DataError: not a `.npy` file, or a damaged one.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.npy"
      >>> np.save(path, [1, 2])
      >>> read_npy(path).tolist()
      [1, 2]
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        # A damaged file raises ValueError, OSError, EOFError, SyntaxError, tokenize errors, ...
        raise _unreadable(path, "npy", error) from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is an archive, one array is expected; name it .npz")
    return array


@contextlib.contextmanager
def npz_rows(path: Path) -> Iterator[tuple[tuple[int, ...], np.dtype, Callable[[int], np.ndarray]]]:
    """The inputs of a `.npz` file, read in order and some rows at a time.

    Yields:
      Their shape and type, and a function that reads so many of the next rows.

    Raises:
      DataError: not a `.npz` file, damaged, or without inputs; also inside the block.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.npz"
      >>> np.savez_compressed(path, features=[[0.5, 1.0], [2.0, 3.0]])
      >>> with npz_rows(path) as (shape, dtype, read):
      ...     print(shape, read(1), read(1))
      (2, 2) [[0.5 1. ]] [[2. 3.]]
    """
    try:
        with zipfile.ZipFile(path) as archive:
            info = _info(archive, _held(archive), INPUTS, path)
            with archive.open(info) as member:
                shape, fortran, dtype = _array_header(member, f"{path}, {info.filename}")
                stream: IO[bytes] = member
                if fortran:
                    # Its rows do not lie together.
                    whole = _member(archive, _held(archive), INPUTS, path)
                    stream = io.BytesIO(np.ascontiguousarray(whole).tobytes())
                size = math.prod(shape[1:]) * dtype.itemsize

                def read(rows: int) -> np.ndarray:
                    return np.frombuffer(stream.read(rows * size), dtype).reshape(-1, *shape[1:])

                yield shape, dtype, read
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(path, "npz", error) from None


def npz_array(path: Path, name: str) -> np.ndarray | None:
    """The array `name` of a `.npz` file, or None if it has none.

    Raises:
      DataError: not a `.npz` file, or a damaged one.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.npz"
      >>> np.savez(path, ids=[7, 9])
      >>> npz_array(path, "ids").tolist(), npz_array(path, "names")
      ([7, 9], None)
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = _held(archive)
            return _member(archive, held, (name,), path) if name in held else None
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(path, "npz", error) from None


def npz_names(path: Path) -> list[str]:
    """The names of the arrays of a `.npz` file, sorted.

    Raises:
      DataError: not a `.npz` file, or a damaged one.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.npz"
      >>> np.savez(path, ids=[7, 9], labels=[[1], [0]])
      >>> npz_names(path)
      ['ids', 'labels']
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(_held(archive))
    except Exception as error:
        raise _unreadable(path, "npz", error) from None


def _held(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    # The arrays by their names.
    return {
        info.filename.removesuffix(".npy"): info
        for info in archive.infolist()
        if info.filename.endswith(".npy")
    }


def _member(
    archive: zipfile.ZipFile,
    held: Mapping[str, zipfile.ZipInfo],
    names: Sequence[str],
    path: Path,
) -> np.ndarray:
    with archive.open(_info(archive, held, names, path)) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _info(
    archive: zipfile.ZipFile,
    held: Mapping[str, zipfile.ZipInfo],
    names: Sequence[str],
    path: Path,
) -> zipfile.ZipInfo:
    # The one of the arrays that is there, its size believable.
    found = [name for name in names if name in held]
    if not found:
        holds = ", ".join(sorted(held)[:8]) or "nothing"
        raise DataError(f"{path}: no array {' or '.join(names)}; the file holds {holds}")
    if len(found) > 1:
        raise DataError(f"{path}: holds both {' and '.join(found)}; keep one of them")
    info = held[found[0]]
    with archive.open(info) as stream:
        shape, _, dtype = _array_header(stream, f"{path}, {found[0]}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > info.file_size or info.file_size > 1100 * path.stat().st_size:
        # DEFLATE makes data at most 1032 times smaller; anything beyond would only fill memory.
        raise DataError(
            f"{path}: array {found[0]} claims {max(claimed, info.file_size)} bytes in a file of "
            f"{path.stat().st_size}, it is damaged"
        )
    return info


def _array_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    # Shape, whether columns come first, and type.
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise DataError(f"{where}: version {version} of the format cannot be read; store it again")
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(f"{where}: Python objects; store numbers or strings of fixed length")
    return shape, fortran, dtype


def strings(names: np.ndarray, path: Path) -> list[str]:
    """Label names, stored as text or as UTF-8 bytes."""
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8")
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(
            f"{path}: label_names have type {names.dtype} and shape {names.shape}; "
            "expected strings, [L]"
        )
    return names.tolist()


def _vectors(inputs: np.ndarray, path: Path) -> np.ndarray:
    if inputs.dtype.kind not in "biuf":
        raise DataError(f"{path}: inputs have type {inputs.dtype}, expected numbers")
    return as_float32(inputs)


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return DataError(f"{path}: cannot be read as {kind}, it is damaged or something else: {reason}")
