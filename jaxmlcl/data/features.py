"""Inputs without labels: rows that a trained network is applied to, read some at a time."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxmlcl.data._checks import channels_last, check_finite
from jaxmlcl.data.images import EncodedSource, FileSource, Images, Photographs
from jaxmlcl.data.source import Source, find_file, open_source, search_places, shorten
from jaxmlcl.errors import DataError

STDIN = "-"
# Endings of files that are decoded as images.
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp"))
# Names that sources give to columns which have none.
_GENERATED = re.compile(r"(feature|meta)_\d+")


@dataclass(frozen=True)
class Expected:
    """What inputs must be like: those that a run was trained on.

    Args:
      input_shape: `(d,)`, or `(height, width, channels)`.
      input_dtype: the NumPy name of the inputs' type.
      feature_names: the `d` names of the columns of vectors, if they are known.
      label_names: names of columns that are labels, where a file has them too.
      images: what photographs become, for a network of these.
    """

    input_shape: tuple[int, ...]
    input_dtype: str = "float32"
    feature_names: tuple[str, ...] | None = None
    label_names: tuple[str, ...] = ()
    images: Images | None = None

    @property
    def column_names(self) -> tuple[str, ...] | None:
        """The names by which columns are found; None if they were made up, or are not known."""
        names = self.feature_names
        return None if names is None or all(map(_GENERATED.fullmatch, names)) else names


class Rows(NamedTuple):
    """Some rows of a file."""

    ids: np.ndarray
    """[n], whole numbers, or texts as they stand in the file."""
    inputs: np.ndarray
    """[n, ...] in the expected shape and type, finite."""
    labels: np.ndarray | None
    """uint8 [n, L], if the source has labels."""
    label_mask: np.ndarray | None = None
    """bool [n, L], False for unknown labels, if the source knows such."""


@dataclass(frozen=True)
class Features:
    """Rows to apply a network to; they are checked as they are read.

    Args:
      where: what messages call them, such as their file.
      read: a function from a number of rows to an iterator of `Rows` of that number, the last of
        them smaller.
      label_names: the names of the labels, if the rows have labels.
    """

    where: str
    read: Callable[[int], Iterator[Rows]]
    label_names: tuple[str, ...] | None = None


def open_features(
    uri: str | os.PathLike[str],
    expected: Expected,
    *,
    root: str | os.PathLike[str] | None = None,
    id_column: str | None = None,
    stdin: BinaryIO | None = None,
) -> Features:
    """Open inputs for a trained network.

    Labels may be there or not; a file's are left aside. CSV and ARFF columns are found by name
    where the names of training are known, whatever their order, and by count otherwise; columns
    of other names are left aside. NPZ holds `features` (or `inputs`, or `x`) and may hold `ids`,
    NPY one array [n, d], HDF5 `feature` or `Image`. Anything with options behind a question mark,
    and anything else that `open_source` knows, is opened as a source, with its labels and ids. An
    image file, and all of those in a folder and below it, are cut centrally as evaluation does;
    their names are the ids.

    Args:
      uri: a file, a source, or "-" for CSV from `stdin`.
      expected: what the network was trained on.
      root: the folder in which relative paths are sought first, as for `open_source`.
      id_column: the column of a CSV file that names its rows; `id` if there is one, else rows are
        numbered from 0.
      stdin: what "-" is.

    Raises:
      DataError: nothing there, other inputs than expected, or bad content, some of it only when
        the rows are read; the message names file, row and column.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "new.csv"
      >>> _ = path.write_text('''id,sky,depth,sea
      ... a7,1,0.5,8
      ... ''')
      >>> expected = Expected((2,), feature_names=("sea", "depth"), label_names=("sky",))
      >>> next(open_features(path, expected).read(10))
      Rows(ids=array(['a7'], dtype='<U2'), inputs=array([[8. , 0.5]], dtype=float32), ...)
      >>> open_features(path, Expected((3,), feature_names=("sea", "depth", "hue")))
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: ...new.csv: no column 'hue', on which the run was trained
    """
    text = os.fspath(uri)
    ending = os.path.splitext(text)[1].lower()
    if ending in PICTURES or (places := _folders(text, root)):
        if id_column is not None:
            raise DataError(f"{text}: an id column belongs to CSV")
        found = find_file(text, search_places(root)) if ending in PICTURES else places[0]
        return _pictures(found, expected)
    if text != STDIN and ending not in _READERS:
        if id_column is not None:
            raise DataError(f"{text}: an id column belongs to CSV without options behind '?'")
        return source_features(open_source(text, root=root), text, expected)
    if id_column is not None and text != STDIN and ending != ".csv":
        raise DataError(f"{text}: an id column belongs to CSV")
    if text == STDIN:
        if stdin is None:
            raise ValueError("uri is '-', but stdin is None")
        return _csv(stdin, contextlib.nullcontext(), "stdin", expected, id_column)
    path = find_file(text, search_places(root))
    if ending == ".csv":
        try:
            file = open(path, "rb")  # noqa: SIM115 - open until its rows are read
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            return _csv(file, file, str(path), expected, id_column)
        except BaseException:
            file.close()
            raise
    return _READERS[ending](path, expected)


def source_features(source: Source, where: str, expected: Expected) -> Features:
    """The rows of a source, with its labels and ids.

    Raises:
      DataError: its inputs are not those that are expected.

    Example:
      >>> source = open_source("digits:test?size=3")
      >>> features = source_features(source, "digits", Expected((48, 48, 1), "uint8"))
      >>> [rows.ids.tolist() for rows in features.read(2)]
      [[0, 1], [2]]
    """
    if isinstance(source, EncodedSource):
        source = Photographs(source, expected.images)
    metadata = source.metadata
    names = getattr(source, "feature_names", None)
    columns = _columns(metadata.input_shape, names, where, expected)
    arrays: Any = getattr(source, "arrays", None)

    def read(rows: int) -> Iterator[Rows]:
        for start in range(0, len(source), rows):
            if arrays is not None:
                part = {name: array[start : start + rows] for name, array in arrays().items()}
            elif isinstance(source, Photographs):
                chosen = range(start, min(start + rows, len(source)))
                part = source.annotations(np.array(chosen))
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    part["inputs"] = source.inputs(chosen, pool)
            else:
                records = [source[i] for i in range(start, min(start + rows, len(source)))]
                part = {
                    "inputs": np.stack([record["inputs"] for record in records]),
                    "labels": np.stack([record["labels"] for record in records]),
                    "ids": np.asarray([record["id"] for record in records], np.int32),
                }
                if metadata.unknown_labels:
                    part["label_mask"] = np.stack([record["label_mask"] for record in records])
            inputs = _checked(part["inputs"], columns, start, where, expected)
            yield Rows(part["ids"], inputs, part["labels"], part.get("label_mask"))

    return Features(where, read, metadata.label_names)


def _folders(text: str, root: str | os.PathLike[str] | None) -> list[Path]:
    """The folders of that name, if it is one and no scheme."""
    expanded = Path(os.path.expanduser(text))
    tried = [expanded] if expanded.is_absolute() else [p / text for p in search_places(root)]
    return [place for place in tried if text and place.is_dir()]


def _pictures(path: Path, expected: Expected) -> Features:
    """Image files without labels; their names are the ids."""
    where, folder, names = str(path), path.parent, [path.name]
    if path.is_dir():
        folder = path
        files = (file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
        names = sorted(file.relative_to(path).as_posix() for file in files)
    if not names:
        raise DataError(f"{where}: no image file in it ({', '.join(sorted(PICTURES))})")
    source = FileSource(folder, names, np.ones((len(names), 1)), name=where, label_names=["none"])
    photographs = source_features(source, where, expected)

    def read(rows: int) -> Iterator[Rows]:
        start = 0
        for part in photographs.read(rows):
            ids = np.array(names[start : start + len(part.ids)], np.str_)
            yield Rows(ids, part.inputs, None)
            start += len(part.ids)

    return Features(where, read)


def _csv(
    file: BinaryIO,
    owned: contextlib.AbstractContextManager[Any],
    where: str,
    expected: Expected,
    id_column: str | None,
) -> Features:
    from jaxmlcl.data.table import csv_numbers, csv_rows

    table = csv_rows(_lines(file, where), where)
    header, _ = next(table)
    identity = _identity(header, where, expected, id_column)
    others = {*expected.label_names, *([] if identity is None else [header[identity]])}
    features = [j for j, name in enumerate(header) if name not in others]
    names = [header[j] for j in features]
    if expected.column_names is None and all(map(_is_number, header)):
        raise DataError(f"{where}: the first line holds numbers; it names the columns")
    columns = _columns((len(features),), names, where, expected)
    if columns is not None:
        features, names = [features[j] for j in columns], [names[j] for j in columns]

    def read(rows: int) -> Iterator[Rows]:
        start = 0
        with owned:
            while part := _take(table, rows):
                lines = [line for _, line in part]
                cells = [[row[j] for j in features] for row, _ in part]
                numbers = csv_numbers(where, names, cells, lines)
                ids = np.arange(start, start + len(part))
                if identity is not None:
                    ids = np.array([row[identity] for row, _ in part], np.str_)
                inputs = _checked(numbers, None, 0, where, expected, _line_of(lines))
                yield Rows(ids, inputs, None)
                start += len(part)
            if not start:
                raise DataError(f"{where}: no rows below the header")

    return Features(where, read)


def _npz(path: Path, expected: Expected) -> Features:
    from jaxmlcl.data.numpy_files import npz_array, npz_rows

    with npz_rows(path) as (shape, dtype, _):
        _check_array(shape, dtype, str(path), expected)
    ids = npz_array(path, "ids")
    if ids is not None and (ids.shape != shape[:1] or ids.dtype.kind not in "iuU"):
        raise DataError(
            f"{path}: ids have type {ids.dtype} and shape {ids.shape}; expected {shape[0]} whole "
            "numbers or strings"
        )

    def read(rows: int) -> Iterator[Rows]:
        with npz_rows(path) as (_, _, take):
            yield from _in_blocks(
                lambda start, stop: take(stop - start), shape[0], rows, str(path), expected, ids
            )

    return Features(str(path), read)


def _npy(path: Path, expected: Expected) -> Features:
    from jaxmlcl.data.numpy_files import read_npy

    array = read_npy(path)
    _check_array(array.shape, array.dtype, str(path), expected)
    return Features(
        str(path),
        lambda rows: _in_blocks(
            lambda start, stop: np.asarray(array[start:stop]),
            len(array),
            rows,
            str(path),
            expected,
        ),
    )


def _hdf5(path: Path, expected: Expected) -> Features:
    from jaxmlcl.data.hdf5 import hdf5_rows

    with hdf5_rows(path) as dataset:
        _check_array(dataset.shape, dataset.dtype, str(path), expected)

    def read(rows: int) -> Iterator[Rows]:
        with hdf5_rows(path) as dataset:
            yield from _in_blocks(
                lambda start, stop: dataset[start:stop], len(dataset), rows, str(path), expected
            )

    return Features(str(path), read)


def _arff(path: Path, expected: Expected) -> Features:
    from jaxmlcl.data.arff import read_features

    table, names, lines = read_features(path, set(expected.label_names))
    columns = _columns(table.shape[1:], names, str(path), expected)

    def read(rows: int) -> Iterator[Rows]:
        for start in range(0, len(table), rows):
            part = slice(start, start + rows)
            locate = _line_of(lines[part])
            inputs = _checked(table[part], columns, 0, str(path), expected, locate)
            yield Rows(np.arange(start, start + len(inputs)), inputs, None)

    return Features(str(path), read)


_READERS: dict[str, Any] = {
    ".arff": _arff,
    ".csv": None,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".npy": _npy,
    ".npz": _npz,
}


def _in_blocks(
    take: Callable[[int, int], np.ndarray],
    count: int,
    rows: int,
    where: str,
    expected: Expected,
    ids: np.ndarray | None = None,
) -> Iterator[Rows]:
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        inputs = take(start, stop)
        if len(inputs) < stop - start:
            raise DataError(f"{where}: {count} rows are announced, the file ends before; it is cut")
        names = np.arange(start, stop) if ids is None else ids[start:stop]
        yield Rows(names, _checked(inputs, None, start, where, expected), None)


def _take(table: Iterator[tuple[list[str], int]], rows: int) -> list[tuple[list[str], int]]:
    part = []
    for row in table:
        part.append(row)
        if len(part) == rows:
            break
    return part


def _lines(file: BinaryIO, where: str) -> Iterator[str]:
    # Decoded line by line, so that a message can say in which one the encoding breaks.
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            yield from text.replace("\r\n", "\n").rstrip("\n").split("\r")
    except UnicodeDecodeError:
        raise DataError(f"{where}, line {number}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}") from None


def _identity(
    header: Sequence[str], where: str, expected: Expected, wanted: str | None
) -> int | None:
    if wanted is not None:
        if wanted not in header:
            raise DataError(f"{where}: no column {shorten(wanted)}{_near(wanted, header)}")
        return header.index(wanted)
    trained = (*(expected.column_names or ()), *expected.label_names)
    return header.index("id") if "id" in header and "id" not in trained else None


def _check_array(shape: tuple[int, ...], dtype: np.dtype, where: str, expected: Expected) -> None:
    if dtype.kind not in "biuf":
        raise DataError(f"{where}: type {dtype} where numbers are expected")
    if len(shape) not in (2, 4):
        raise DataError(
            f"{where}: inputs have shape {shape}; vectors are [n, d], "
            "images are [n, height, width, channels]"
        )
    if shape[0] == 0:
        raise DataError(f"{where}: no rows; at least one is needed")
    if len(shape) == 4 and expected.input_dtype == "uint8":
        shape = channels_last(np.empty((0, *shape[1:]), dtype), where).shape
    _columns(shape[1:], None, where, expected)


def _columns(
    shape: tuple[int, ...], names: Sequence[str] | None, where: str, expected: Expected
) -> list[int] | None:
    # Which columns to take, in which order; None: all as they are.
    wanted = expected.column_names
    if names is not None and all(map(_GENERATED.fullmatch, names)):
        names = None
    if wanted is not None and names is not None:
        place = {name: j for j, name in enumerate(names)}
        absent = [name for name in wanted if name not in place]
        if absent:
            raise DataError(_absent(absent, names, where, wanted))
        columns = [place[name] for name in wanted]
        return None if columns == list(range(len(names))) else columns
    if shape == expected.input_shape:
        return None
    if len(shape) == len(expected.input_shape) == 1:
        found, trained = shape[0], expected.input_shape[0]
        raise DataError(
            f"{where}: {found} features, but the run was trained on {trained}; give the same "
            "columns in the same order"
        )
    raise DataError(
        f"{where}: inputs of shape {list(shape)}, but the run was trained on "
        f"{list(expected.input_shape)}"
    )


def _absent(absent: Sequence[str], names: Sequence[str], where: str, wanted: Sequence[str]) -> str:
    shown = ", ".join(map(shorten, absent[:3]))
    more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    columns = f"column {shown}{more}{_near(absent[0], [n for n in names if n not in wanted])}"
    if len(names) < len(wanted):
        found = f"{len(names)} features, but the run was trained on {len(wanted)}"
        return f"{where}: {found}: no {columns}"
    return f"{where}: no {columns}, on which the run was trained"


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {shorten(near[0])}?)" if near else ""


def _checked(
    inputs: np.ndarray,
    columns: list[int] | None,
    start: int,
    where: str,
    expected: Expected,
    locate: Callable[[int], str] | None = None,
) -> np.ndarray:
    # The rows in the shape and type of training, finite.
    if inputs.ndim == 4 and expected.input_dtype == "uint8":
        inputs = channels_last(inputs, where)
    if columns is not None:
        inputs = inputs[:, columns]
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite
        inputs = inputs.astype(expected.input_dtype)
    names = expected.feature_names
    if names is None and inputs.ndim == 2:
        names = tuple(f"feature_{j}" for j in range(inputs.shape[1]))
    check_finite(
        inputs,
        names,
        where,
        locate or (lambda row: f"row {start + row} (counted from 0)"),
    )
    return inputs


def _line_of(lines: Sequence[int]) -> Callable[[int], str]:
    return lambda row: f"line {lines[row]}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
