"""State dicts of PyTorch, read without PyTorch, and without being unpickled.

Such a file holds the contents of arrays, and a program for a stack machine that puts them together.
That program is read here, a few of its words, and never run: what is more than arrays in
dictionaries is refused.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxmlcl.errors import DataError
from jaxmlcl.io import UNREADABLE_ARCHIVE

# Types of PyTorch's storages.
_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


# Words that stand for a text or a number.
_PLAIN = frozenset(
    (
        *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    )
)
# How a file begins that torch.save wrote before PyTorch 1.6: torchvision's of the time are still
# handed out.
_EARLIER = 0x1950A86A20F9469CFC6C


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    """An array before its storage is read; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# What damaged files make zipfile raise, and what is put together from them.
_UNREADABLE = (*UNREADABLE_ARCHIVE, TypeError, AttributeError, OverflowError, MemoryError)


class _Mark:
    """Where a group of values on the stack begins."""


def read_state_dict(path: Path) -> dict[str, Any]:
    """The dictionary that `torch.save` wrote, with arrays in it.

    Raises:
      DataError: the file cannot be read, or holds more than dictionaries, texts and arrays.
    """
    try:
        with path.open("rb") as file:
            found = (_of_archive if zipfile.is_zipfile(file) else _of_sequence)(path)
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: neither safetensors nor a state dict as torch.save writes it: {error}"
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: it holds no dictionary of weights")
    return found


def _of_archive(path: Path) -> Any:
    """What `torch.save` wrote since PyTorch 1.6: an archive with a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = program[: -len("data.pkl")]
        if archive.testzip() is not None:
            raise DataError(f"{path}: damaged: {archive.testzip()}")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise DataError(f"{path}: written on a machine of another byte order")
        found = _Machine(path).run(io.BytesIO(archive.read(program)))
        return _filled(found, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def _of_sequence(path: Path) -> Any:
    """What it wrote before: five pickles, then for each storage its length and its content."""
    with path.open("rb") as file:
        try:
            known = _Machine(path).run(file) == _EARLIER
        except DataError:
            known = False
        if not known:
            raise ValueError("it begins as none of its forms; PyTorch may read it and save it anew")
        _Machine(path).run(file)  # the version of this form
        if _Machine(path).run(file).get("little_endian") is not True:
            raise DataError(f"{path}: written on a machine of another byte order")
        machine = _Machine(path)
        found = machine.run(file)
        places = {}
        for key in _Machine(path).run(file):
            size = int.from_bytes(file.read(8), "little") * machine.storages[key].itemsize
            places[key] = (file.tell(), size)
            file.seek(size, os.SEEK_CUR)

        def read(storage: _Storage) -> bytes:
            start, size = places[storage.key]
            file.seek(start)
            content = file.read(size)
            if len(content) != size:
                raise ValueError("it ends before its time")
            return content

        return _filled(found, read)


def _filled(found: Any, read: Callable[[_Storage], bytes]) -> Any:
    """Dictionaries, at any depth, with arrays in place of what is said of them."""
    if isinstance(found, dict):
        return {name: _filled(value, read) for name, value in found.items()}
    if not isinstance(found, _Tensor):
        return found
    storage, offset, shape, strides = found
    flat = np.frombuffer(read(storage), storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = int(np.prod(shape, dtype=np.int64))
    if min((*shape, *strides, offset)) < 0 or (size and last >= len(flat)):
        raise ValueError(f"an array of shape {shape} beyond its storage")
    steps = tuple(step * storage.dtype.itemsize for step in strides)
    view = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
    return view.copy()


class _Machine:
    """Reads the words of a state dict's program: dictionaries, tuples, numbers, texts, arrays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.storages: dict[str, np.dtype] = {}
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def run(self, program: BinaryIO) -> Any:
        """What the program puts together; the file is left where it ends.

        Raises:
          DataError: a word that state dicts do not need.
        """
        stack, memory = self._stack, self._memory
        try:
            for opcode, found, _ in pickletools.genops(program):
                argument: Any = found
                word = opcode.name
                if word in ("PROTO", "FRAME"):
                    continue
                if word == "STOP":
                    return stack.pop()
                if word in _PLAIN:
                    stack.append(argument)
                elif word in ("NEWTRUE", "NEWFALSE", "NONE"):
                    stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[word])
                elif word in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
                    stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list}.get(word, tuple)())
                elif word == "MARK":
                    stack.append(_Mark())
                elif word in ("TUPLE1", "TUPLE2", "TUPLE3"):
                    count = int(word[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                elif word == "TUPLE":
                    stack.append(tuple(self._group()))
                elif word in ("APPEND", "APPENDS"):
                    values = self._group() if word == "APPENDS" else [stack.pop()]
                    self._of(list).extend(values)
                elif word == "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    self._of(dict)[key] = value
                elif word == "SETITEMS":
                    values = self._group()
                    self._of(dict).update(zip(values[::2], values[1::2], strict=True))
                elif word in ("BINPUT", "LONG_BINPUT"):
                    memory[argument] = stack[-1]
                elif word == "MEMOIZE":
                    memory[len(memory)] = stack[-1]
                elif word in ("BINGET", "LONG_BINGET"):
                    stack.append(memory[argument])
                elif word == "GLOBAL":
                    stack.append(_Global(argument.replace(" ", ".")))
                elif word == "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                elif word == "REDUCE":
                    values, function = stack.pop(), stack.pop()
                    stack.append(self._made(function, values))
                elif word == "BUILD":
                    # The state of an ordered dictionary: versions of modules.
                    stack.pop()
                    self._of(dict)
                else:
                    raise self._refused(word)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{self._path}: damaged state dict: {error}") from None
        raise DataError(f"{self._path}: the state dict ends before its time")

    def _refused(self, what: str) -> DataError:
        return DataError(
            f"{self._path}: it holds more than weights ({what[:60]}), and nothing is unpickled; "
            "save model.state_dict(), or safetensors"
        )

    def _group(self) -> list[Any]:
        place = max(i for i, value in enumerate(self._stack) if isinstance(value, _Mark))
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _of(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise self._refused(type(self._stack[-1]).__name__)
        return self._stack[-1]

    def _storage(self, identity: Any) -> _Storage:
        kind, storage, key = identity[:3]
        name = storage.name.rpartition(".")[2] if isinstance(storage, _Global) else ""
        if kind != "storage" or name not in _STORAGES or not re.fullmatch(r"\w+", str(key)):
            raise self._refused(name or str(kind))
        if len(identity) > 5 and identity[5] is not None:
            raise self._refused("a view of a storage")
        self.storages[str(key)] = _STORAGES[name]
        return _Storage(_STORAGES[name], str(key))

    def _made(self, function: Any, values: Any) -> Any:
        name = function.name if isinstance(function, _Global) else type(function).__name__
        if name == "collections.OrderedDict":
            # Python 2 gave it its pairs, later ones add them.
            return dict(*values)
        if name == "torch._utils._rebuild_parameter":
            return values[0]
        rebuild = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
        if name in rebuild and isinstance(values[0], _Storage):
            return _Tensor(*values[:4])
        raise self._refused(name)
