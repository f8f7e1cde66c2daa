"""Image files with labels: what every format becomes once its annotations are read."""

from __future__ import annotations

import abc
import copy
import hashlib
import json
import os
import posixpath
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, SupportsIndex

import numpy as np

from jaxmlcl.data._checks import check_ids, check_names, shorten
from jaxmlcl.data.source import SourceMetadata, checked_index
from jaxmlcl.errors import DataError

# An encoded image, or one that is pixels already: uint8 [H, W, 3] or [H, W, 1].
Stored = bytes | np.ndarray


class Names:
    """Many strings in two arrays, so that two million of them are small and quick to send.

    Example:
      >>> names = Names(["a.jpg", "b.jpg"])
      >>> len(names), names[1]
      (2, 'b.jpg')
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode() for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._text = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self._text[start : int(self._ends[index])].tobytes().decode()

    def take(self, rows: np.ndarray) -> Names:
        """Those of some rows."""
        return Names(self[int(row)] for row in rows)

    def digest(self) -> bytes:
        """SHA-256 of all of them, in order."""
        found = hashlib.sha256(self._ends.astype("<i8").tobytes())
        found.update(self._text.data)
        return found.digest()


class Opened(threading.local):
    """What each thread has open, as attributes; a copy in another process has nothing open.

    Example:
      >>> import pickle
      >>> opened = Opened()
      >>> opened.file = 3
      >>> vars(pickle.loads(pickle.dumps(opened)))
      {}
    """

    def __reduce__(self) -> Any:
        return Opened, ()


class EncodedSource(abc.ABC):
    """Records that are encoded images of any size, read when they are asked for.

    `source[i]` is `{"inputs": bytes, "labels": uint8 [L], "id": int}`, with "label_mask" where some
    labels are unknown; inputs stored as pixels are uint8 [H, W, C]. Labels are kept as bits.

    Args:
      labels: `[n, L]`, 0 or 1.
      name: a short name for tables and reports.
      label_names: `L` different names.
      ids: `[n]` different whole numbers from 0 to 2**31 - 1; the row numbers if left out.
      where: what messages call the source; its name if left out.
      label_mask: `[n, L]`, True where the label is known; everywhere if left out.
      content: a digest of what the images are, for the fingerprint.

    Raises:
      DataError: no rows or labels, or arrays that do not fit together.
    """

    left_out: int = 0
    """How many images were listed, but left out because their files are not there."""

    def __init__(
        self,
        labels: Any,
        *,
        name: str,
        label_names: Iterable[str],
        ids: Any,
        where: str | None,
        label_mask: Any,
        content: bytes,
    ) -> None:
        self._where = name if where is None else where
        labels = np.asarray(labels, np.uint8)
        if labels.ndim != 2 or 0 in labels.shape:
            raise DataError(
                f"{self._where}: labels have shape {labels.shape}; expected a row for each image, "
                "and at least one image and one label"
            )
        label_names = check_names(label_names, labels.shape[1], "label", self._where)
        known = None if label_mask is None else np.asarray(label_mask, bool)
        if known is not None and known.all():
            known = None
        if known is not None:
            labels = np.where(known, labels, 0)
        self._count = labels.shape[1]
        self._labels = np.packbits(labels, axis=1)
        self._known = None if known is None else np.packbits(known, axis=1)
        given = None if ids is None else check_ids(ids, len(labels), self._where)
        self.ids: np.ndarray = np.arange(len(labels), dtype=np.int32) if given is None else given
        digest = hashlib.sha256(content)
        for bits in (self._labels, self._known, self.ids.astype("<i4")):
            digest.update(b"" if bits is None else bits.tobytes())
        digest.update(json.dumps(label_names).encode())
        self._metadata = SourceMetadata(
            name=name,
            label_names=label_names,
            input_shape=(),
            input_dtype="bytes",
            kind="encoded",
            fingerprint=digest.hexdigest(),
            unknown_labels=known is not None,
        )

    @property
    def metadata(self) -> SourceMetadata:
        """Name, labels and fingerprint; images have sizes of their own."""
        return self._metadata

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        row = checked_index(index, len(self))
        record: dict[str, Any] = {
            "inputs": self.read(row),
            "labels": self._unpacked(self._labels[row]),
            "id": int(self.ids[row]),
        }
        if self._known is not None:
            record["label_mask"] = self._unpacked(self._known[row]).astype(bool)
        return record

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._metadata.name!r}, n={len(self)}, labels={self._count}, "
            f"fingerprint={self._metadata.fingerprint[:12]})"
        )

    @abc.abstractmethod
    def read(self, row: int) -> Stored:
        """The bytes of a row's image, or its pixels where they are stored as such.

        Raises:
          DataError: they cannot be read.
        """

    @abc.abstractmethod
    def place(self, row: int) -> str:
        """Where a row's image lies, for messages."""

    @abc.abstractmethod
    def subset(self, rows: np.ndarray, name: str) -> EncodedSource:
        """Some rows, with their ids, under another name."""

    def missing(self) -> np.ndarray:
        """The rows whose images are known not to be there, ascending."""
        return np.zeros(0, np.int64)

    def annotations(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Labels uint8 [n, L], ids and, where some are unknown, label_mask [n, L] of some rows."""
        found = {"labels": self._unpacked(self._labels[rows]), "ids": self.ids[rows]}
        if self._known is not None:
            found["label_mask"] = self._unpacked(self._known[rows]).astype(bool)
        return found

    def without_labels(self) -> Self:
        """The same images for a process that only reads them."""
        bare = copy.copy(self)
        bare._labels = np.zeros((0, 0), np.uint8)
        bare._known = None
        return bare

    def labels(self) -> np.ndarray:
        """All labels, uint8 [n, L], without opening an image; 0 where unknown."""
        return self._unpacked(self._labels)

    def label_mask(self) -> np.ndarray | None:
        """Where labels are known, bool [n, L]; None where all are."""
        return None if self._known is None else self._unpacked(self._known).astype(bool)

    def _unpacked(self, bits: np.ndarray) -> np.ndarray:
        return np.unpackbits(bits, axis=-1, count=self._count)

    def _settings(self, rows: np.ndarray, name: str) -> dict[str, Any]:
        """What a subset has of this one."""
        mask = self.label_mask()
        return {
            "labels": self.labels()[rows],
            "name": name,
            "label_names": self._metadata.label_names,
            "ids": self.ids[rows],
            "where": self._where,
            "label_mask": None if mask is None else mask[rows],
        }


class FileSource(EncodedSource):
    """Encoded images that are files of a folder.

    The fingerprint is that of names, labels and ids; the files' contents have no part in it, for
    they would all have to be read.

    Args:
      folder: below which the files lie.
      files: `n` different names relative to it, with "/" between folders.
      labels: `[n, L]`, 0 or 1.
      **settings: as in `EncodedSource`.

    Raises:
      DataError: as `EncodedSource`; names that leave the folder or occur twice.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "a.jpg").write_bytes(b"...")
      >>> source = FileSource(folder, ["a.jpg"], [[1, 0]], name="tiny", label_names="ab")
      >>> source[0]["inputs"], source[0]["labels"]
      (b'...', array([1, 0], dtype=uint8))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        files: Sequence[str] | Names,
        labels: Any,
        *,
        name: str,
        label_names: Iterable[str],
        ids: Any = None,
        where: str | None = None,
        label_mask: Any = None,
    ) -> None:
        self._folder = os.fspath(folder)
        if not isinstance(files, Names):
            check_files(files, name if where is None else where)
            files = Names(files)
        self._files = files
        super().__init__(
            labels,
            name=name,
            label_names=label_names,
            ids=ids,
            where=where,
            label_mask=label_mask,
            content=files.digest(),
        )
        if len(files) != len(self):
            raise DataError(f"{self._where}: {len(files)} images, but {len(self)} rows of labels")

    def read(self, row: int) -> bytes:
        """The bytes of a row's file.

        Raises:
          DataError: it is not there, or cannot be read.
        """
        try:
            with open(self.place(row), "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise DataError(
                f"{self._where}: {self.place(row)} is listed but not there; fetch it, or leave out "
                "what is missing with ?missing=drop"
            ) from None
        except OSError as error:
            raise DataError(
                f"{self.place(row)}: cannot be read: {error.strerror or error}"
            ) from None

    def place(self, row: int) -> str:
        """The path of a row's file."""
        return os.path.join(self._folder, self._files[row])

    def subset(self, rows: np.ndarray, name: str) -> FileSource:
        """Some rows, with their ids, under another name."""
        return FileSource(self._folder, self._files.take(rows), **self._settings(rows, name))

    def missing(self) -> np.ndarray:
        """The rows whose files are not there, ascending; folders are listed once each."""
        listed: dict[str, set[str]] = {}
        rows = []
        for row in range(len(self)):
            folder, name = posixpath.split(self._files[row])
            if folder not in listed:
                try:
                    with os.scandir(os.path.join(self._folder, folder)) as entries:
                        listed[folder] = {entry.name for entry in entries}
                except OSError:
                    listed[folder] = set()
            if name not in listed[folder]:
                rows.append(row)
        return np.array(rows, np.int64)


def check_files(files: Sequence[str], where: str) -> None:
    """Refuse file names that leave their folder, or occur twice.

    Raises:
      DataError: naming the first.

    Example:
      >>> check_files(["a.jpg", "../b.jpg"], "tiny")
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: tiny: the file name '../b.jpg' leaves the folder of the images
    """
    seen: set[str] = set()
    for name in files:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise DataError(
                f"{where}: the file name {shorten(name)} leaves the folder of the images"
            )
        # "./a.jpg" and "a//b.jpg" would be second names of a file.
        if "" in parts or "." in parts or "\0" in name or not name.isprintable():
            raise DataError(f"{where}: {shorten(name)} cannot be the name of a file")
        if name in seen:
            raise DataError(f"{where}: the file {shorten(name)} is listed twice")
        seen.add(name)


def finish(source: EncodedSource, options: Mapping[str, str], where: str) -> EncodedSource:
    """A source as the options `empty` and `missing` ask for.

    `empty=drop` leaves out images without a label, `missing=drop` those whose file is not there.

    Raises:
      DataError: an option has another value, or nothing is left.
    """
    keep, gone = np.ones(len(source), bool), 0
    if choice(options, "empty", ("keep", "drop"), where) == "drop":
        keep &= source.labels().any(axis=1)
    if choice(options, "missing", ("refuse", "drop"), where) == "drop":
        missing = source.missing()
        keep[missing], gone = False, len(missing)
    if keep.all():
        return source
    if not keep.any():
        raise DataError(f"{where}: no image is left")
    found = source.subset(np.flatnonzero(keep), source.metadata.name)
    found.left_out = gone
    return found


def choice(options: Mapping[str, str], name: str, values: Sequence[str], where: str) -> str:
    """The value of an option that is one of some words; the first if it is left out.

    Raises:
      DataError: it is none of them.

    Example:
      >>> choice({}, "empty", ("keep", "drop"), "coco")
      'keep'
    """
    found = options.get(name, values[0])
    if found not in values:
        words = " or ".join(f"{name}={value}" for value in values)
        raise DataError(f"{where}: option {name}={shorten(found)}; write {words}")
    return found


def find_folder(path: str, places: Sequence[Path], where: str) -> Path:
    """The first folder called `path` in `places`.

    Raises:
      DataError: there is none.

    Example:
      >>> find_folder("none", [Path("/nowhere")], "voc:none")
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: voc:none: no folder none; tried /nowhere/none
    """
    expanded = os.path.expanduser(path)
    tried = [Path(expanded)] if os.path.isabs(expanded) else [place / path for place in places]
    for candidate in tried:
        if candidate.is_dir():
            return candidate
    raise DataError(f"{where}: no folder {path}; tried {', '.join(map(str, tried))}")
