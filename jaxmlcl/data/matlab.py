"""MATLAB files, of version 5 to 7 and 7.3: arrays and lists of names, by name."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxmlcl.data._checks import as_float32, shorten
from jaxmlcl.data.source import ArraySource
from jaxmlcl.errors import DataError, UserError

# Bytes of an element of the classes that hold numbers.
_CLASSES = {
    "double": 8,
    "single": 4,
    "logical": 1,
    **{f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
# DEFLATE makes data at most 1032 times smaller.
_DENSEST = 1100
# Type codes and classes of version 5.
_COMPRESSED, _UTF8, _UTF16, _UTF32 = 15, 16, 17, 18
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_COMPLEX = 0x100
_KINDS_5 = {
    1: "cell",
    2: "struct",
    3: "an object",
    4: "char",
    5: "sparse",
    6: "double",
    7: "single",
    8: "int8",
    9: "uint8",
    10: "int16",
    11: "uint16",
    12: "int32",
    13: "uint32",
    14: "int64",
    15: "uint64",
    16: "a function",
    6 | _COMPLEX: "complex",
    7 | _COMPLEX: "complex",
}
# Longer than any name; a damaged length would ask for more.
_LONGEST_NAME = 4096


def open_mat(path: Path, options: Mapping[str, str], places: Sequence[Path]) -> ArraySource:
    """Open a `.mat` file of vectors with 0/1 labels; see `open_source`.

    The fields are those of `jaxmlcl.data.open_distributions`. Labels are `logicalLabel`; or
    `labels`, if they are 0 and 1; or what the distributions stand for by the cumulative rule.

    Returns:
      The rows in the order of the file; features are float32.

    Raises:
      DataError: not a MATLAB file, damaged, or without these fields.

    Example:
      >>> import tempfile
      >>> from scipy.io import savemat
      >>> path = Path(tempfile.mkdtemp()) / "tiny.mat"
      >>> savemat(path, {"features": [[0.5, 1.0]], "labelDistribution": [[0.3, 0.6, 0.1]]})
      >>> open_mat(path, {}, [])[0]["labels"]
      array([0, 1, 0], dtype=uint8)
    """
    from jaxmlcl.data.distributions import open_distributions

    del options, places
    found = open_distributions(path)
    return ArraySource(
        as_float32(found.features),
        found.labels,
        name=found.name,
        label_names=found.label_names,
        where=str(path),
    )


def read_mat(
    path: Path, numbers: Iterable[str], names: Iterable[str] = ()
) -> tuple[dict[str, np.ndarray | list[str]], list[str]]:
    """The fields of a MATLAB file that are asked for and there, and the names of all its fields.

    No object is made of what the file holds: structures, classes and functions are not read.

    Args:
      path: the file.
      numbers: fields that are matrices of numbers, [n, m].
      names: fields that are lists of strings: cells, or rows of characters.

    Returns:
      Arrays [n, m] and lists of strings by name; all names, sorted.

    Raises:
      DataError: not a MATLAB file, damaged, or a field of another kind.

    Example:
      >>> import tempfile
      >>> from scipy.io import savemat
      >>> path = Path(tempfile.mkdtemp()) / "tiny.mat"
      >>> savemat(path, {"features": [[0.5, 1.0]], "label_names": ["sea", "sky"]})
      >>> fields, held = read_mat(path, ["features", "labels"], ["label_names"])
      >>> fields["features"], fields["label_names"], held
      (array([[0.5, 1. ]]), ['sea', 'sky'], ['features', 'label_names'])
    """
    import h5py

    wanted = {**dict.fromkeys(numbers, True), **dict.fromkeys(names, False)}
    try:
        # MATLAB puts 512 bytes of its own before the HDF5 of version 7.3.
        read = _read_hdf5 if h5py.is_hdf5(path) else _read_5
        return read(path, wanted)
    except UserError:
        raise
    except Exception as error:
        # A damaged file raises almost anything.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"{path}: cannot be read as a MATLAB file, it is damaged or something else: {reason}"
        ) from None


class _Element(NamedTuple):
    # A variable of version 5, not yet read beyond its name.
    kind: int
    shape: tuple[int, ...]
    name: str
    rest: memoryview
    order: Literal["<", ">"]


def _read_5(
    path: Path, wanted: Mapping[str, bool]
) -> tuple[dict[str, np.ndarray | list[str]], list[str]]:
    """Version 5: MathWorks, MAT-File Format, chapter 1.

    Not by SciPy, whose reader trusts the type codes in the file: a flipped bit ends the process.
    """
    content = path.read_bytes()
    orders: dict[bytes, Literal["<", ">"]] = {b"IM": "<", b"MI": ">"}
    order = orders.get(content[126:128])
    if order is None or len(content) < 136:
        raise ValueError("no header of version 5 or 7.3; save it again with -v7")
    held: list[str] = []
    read: dict[str, np.ndarray | list[str]] = {}
    for kind, data in _elements(memoryview(content)[128:], order):
        # Only as much is unpacked as is looked at.
        element = _element(_unpacked(data, 4096) if kind == _COMPRESSED else data, order)
        if not element.name:
            continue  # what MATLAB keeps of its own objects
        held.append(element.name)
        if element.name in wanted:
            limit = _DENSEST * len(content)
            whole = _element(_unpacked(data, limit), order) if kind == _COMPRESSED else element
            read[element.name] = _value_5(whole, wanted[element.name], path)
    return read, sorted(held)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and data of the elements that follow each other."""
    while len(data) >= 8:
        kind, size = struct.unpack(f"{order}II", data[:8])
        if kind >> 16:
            # Up to four bytes stand in the tag itself.
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError(f"{size} bytes in a tag that holds 4")
            start, step = 4, 8
        else:
            start = 8
            step = 8 + size + (0 if kind == _COMPRESSED else -size % 8)
        yield kind, data[start : start + size]
        data = data[step:]


def _unpacked(data: memoryview, limit: int) -> memoryview:
    return memoryview(zlib.decompressobj().decompress(data, limit))[8:]


def _element(data: memoryview, order: Literal["<", ">"]) -> _Element:
    """The head of a matrix: its class, shape and name."""
    parts = _elements(data, order)
    (_, flags), (_, shape), (_, name) = (next(parts) for _ in range(3))
    sizes = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if len(flags) != 8 or min(sizes, default=-1) < 0:
        raise ValueError("a matrix without a class or shape")
    (first,) = struct.unpack(f"{order}I", flags[:4])
    # The parts are contiguous, so the rest begins where the name ends.
    head = sum(_length(part) for part in (flags, shape)) + _length(name)
    complex_ = _COMPLEX if first & 0x0800 else 0
    return _Element(first & 0xFF | complex_, sizes, bytes(name).decode(), data[head:], order)


def _length(part: memoryview) -> int:
    # Of an element with its tag.
    return 8 if 0 < len(part) <= 4 else 8 + len(part) + -len(part) % 8


def _value_5(element: _Element, number: bool, path: Path) -> np.ndarray | list[str]:
    kind = _KINDS_5.get(element.kind, "an object")
    if number:
        _check_numbers(element.name, kind, element.shape, path)
        return _matrix_5(element)
    if kind == "char":
        return [text.rstrip() for text in _rows_of_text(element)]
    if kind != "cell":
        raise DataError(f"{path}: field {element.name!r} is {kind}, expected a cell of strings")
    names = []
    for _, data in _elements(element.rest, element.order):
        cell = _element(data, element.order)
        rows = _rows_of_text(cell) if _KINDS_5.get(cell.kind) == "char" else []
        if len(rows) != 1:
            raise DataError(f"{path}: field {element.name!r} must hold strings, one a label")
        names.append(rows[0].rstrip())
    if len(names) != math.prod(element.shape):
        raise ValueError("cells are missing")
    return names


def _matrix_5(element: _Element) -> np.ndarray:
    kind, data = next(_elements(element.rest, element.order))
    # Numbers may be stored in a smaller type than that of their class.
    values = np.frombuffer(data, np.dtype(_STORED[kind]).newbyteorder(element.order))
    dtype = {"double": "f8", "single": "f4"}.get(_KINDS_5[element.kind], _KINDS_5[element.kind])
    return values.reshape(element.shape, order="F").astype(dtype, order="C")


def _rows_of_text(element: _Element) -> list[str]:
    kind, data = next(_elements(element.rest, element.order))
    endian = {"<": "le", ">": "be"}[element.order]
    encoding = {_UTF8: "utf-8", _UTF32: f"utf-32-{endian}"}.get(kind)
    if encoding is None:
        # Codes of 16 bits, or of 8 where all are small.
        encoding = (
            f"utf-16-{endian}" if np.dtype(_STORED.get(kind, "u2")).itemsize == 2 else "latin-1"
        )
    letters = np.array(list(bytes(data).decode(encoding)), "U1")
    if 0 in element.shape:
        return [""]
    return ["".join(row) for row in letters.reshape(element.shape, order="F")]


def _read_hdf5(
    path: Path, wanted: Mapping[str, bool]
) -> tuple[dict[str, np.ndarray | list[str]], list[str]]:
    import h5py

    with h5py.File(path, "r") as file:
        held = sorted(name for name in file if not name.startswith("#"))
        read: dict[str, np.ndarray | list[str]] = {}
        for name, number in wanted.items():
            if name not in held:
                continue
            value = file[name]
            if not isinstance(value, h5py.Dataset) or value.attrs.get("MATLAB_sparse") is not None:
                kind = "sparse" if "MATLAB_sparse" in value.attrs else "a structure"
                raise DataError(f"{path}: field {name!r} is {kind}, expected a full matrix")
            kind = _matlab_class(value)
            if not number:
                read[name] = _names_of(file, value, kind, name, path)
                continue
            if value.dtype.kind not in "biuf":
                kind = kind if kind not in _CLASSES else str(value.dtype)
            _check_numbers(name, kind, value.shape, path)
            # MATLAB writes by columns what HDF5 reads by rows.
            read[name] = np.ascontiguousarray(value[()].T)
    return read, held


def _matlab_class(value: Any) -> str:
    # MATLAB says it in an attribute; what imitates MATLAB may not.
    held = value.attrs.get("MATLAB_class")
    if held is None:
        plain = {"float64": "double", "float32": "single", "bool": "logical", "object": "cell"}
        return plain.get(str(value.dtype), str(value.dtype))
    return held.decode() if isinstance(held, bytes) else str(held)


def _names_of(file: Any, value: Any, kind: str, name: str, path: Path) -> list[str]:
    import h5py

    if kind in ("char", "uint16"):
        return [_decoded(row, name, path) for row in _codes(value, name, path).T]
    if kind != "cell" or h5py.check_ref_dtype(value.dtype) is not h5py.Reference:
        raise DataError(f"{path}: field {name!r} is {kind}, expected a cell of strings")
    _check_length(value.shape, name, path)
    # A column of cells is one row of references.
    cells = [file[reference] for reference in value[()].T.ravel()]
    return [_decoded(_codes(cell, name, path).T.ravel(), name, path) for cell in cells]


def _codes(value: Any, name: str, path: Path) -> np.ndarray:
    if value.dtype.kind != "u" or _matlab_class(value) not in ("char", "uint16") or value.ndim != 2:
        raise DataError(f"{path}: field {name!r} must hold strings, one a label")
    _check_length(value.shape, name, path)
    return value[()]


def _check_length(shape: tuple[int, ...], name: str, path: Path) -> None:
    if math.prod(shape) > min(path.stat().st_size * _DENSEST, _LONGEST_NAME**2):
        raise DataError(f"{path}: field {name!r} claims {math.prod(shape)} entries, it is damaged")


def _decoded(codes: np.ndarray, name: str, path: Path) -> str:
    if len(codes) > _LONGEST_NAME:
        raise DataError(f"{path}: field {name!r} holds a string of {len(codes)} characters")
    return codes.astype("<u2").tobytes().decode("utf-16-le").rstrip("\0 ")


def _check_numbers(name: str, kind: str, shape: tuple[int, ...], path: Path) -> None:
    if kind not in _CLASSES:
        raise DataError(
            f"{path}: field {name!r} is {shorten(kind, 20)}, expected a full matrix of numbers"
        )
    if len(shape) != 2:
        raise DataError(f"{path}: field {name!r} has shape {tuple(shape)}, expected two axes")
    claimed, size = math.prod(shape) * _CLASSES[kind], path.stat().st_size
    if claimed > _DENSEST * size:
        raise DataError(
            f"{path}: field {name!r} claims {claimed} bytes in a file of {size}, it is damaged"
        )
