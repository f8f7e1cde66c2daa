"""Packed image sets: ArrayRecord shards with an index and a manifest, as `data pack` writes them.

A record is self-contained: MessagePack of image bytes, labels as bits, id and original size. The
index holds labels and ids of all records, so that a set of millions opens at once; the manifest
labels and shards with their sizes and checksums, and says how the set was made.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.data._checks import shorten
from jaxmlcl.data.images._source import EncodedSource, Opened, choice, find_folder
from jaxmlcl.errors import ConfigError, DataError

MANIFEST, INDEX = "manifest.json", "index.npz"
# Raised when older programs cannot read what is written.
VERSION = 1
_BLOCK = 1 << 22


def open_shards(body: str, options: Mapping[str, str], places: Sequence[Path]) -> EncodedSource:
    """Open what `jaxmlcl data pack` wrote.

    The sizes of all shards are compared with the manifest, and the index with its checksum. Every
    chunk of a shard carries a checksum of its own, which is compared whenever it is read.

    Args:
      body: the folder.
      options: `empty=drop` leaves out images without a label.
      places: folders in which a relative path is sought.

    Returns:
      The images in the order in which they were packed.

    Raises:
      DataError: no manifest, one of another version, or a file that is absent or damaged; it is
        named.
      ConfigError: the extra `images` is not installed.
    """
    where = f"shards:{body}"
    folder = find_folder(body, places, where)
    manifest = _manifest(folder)
    files = [one["file"] for one in manifest["shards"]]
    for one in manifest["shards"]:
        _check_size(folder / one["file"], one["bytes"])
    content = _read_whole(folder / INDEX)
    if hashlib.sha256(content).hexdigest() != manifest["index_sha256"]:
        raise DataError(f"{folder / INDEX}: damaged: its checksum is another; pack the set again")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        index = {name: stored[name] for name in stored.files}
    names = manifest["label_names"]
    labels = np.unpackbits(index["labels"], axis=1, count=len(names))
    known = None
    if "known" in index:
        known = np.unpackbits(index["known"], axis=1, count=len(names)).astype(bool)
    starts = np.cumsum([0, *(one["rows"] for one in manifest["shards"])])
    source = ShardSource(
        folder,
        files,
        starts,
        np.arange(starts[-1]),
        labels=labels,
        name=manifest["name"],
        label_names=names,
        ids=index["ids"],
        where=where,
        label_mask=known,
        checksums=[one["sha256"] for one in manifest["shards"]],
    )
    if choice(options, "empty", ("keep", "drop"), where) == "drop":
        rows = np.flatnonzero(labels.any(axis=1))
        if len(rows) == 0:
            raise DataError(f"{where}: no image is left")
        return source.subset(rows, source.metadata.name)
    return source


class ShardSource(EncodedSource):
    """Encoded images in ArrayRecord shards.

    Args:
      folder: where the shards lie.
      files: their names, S.
      starts: [S + 1], the number of records before each shard, and of all.
      records: [n], which of all records each row is.
      labels: [n, L].
      checksums: SHA-256 of each shard, hexadecimal.
      **settings: as in `EncodedSource`.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        starts: np.ndarray,
        records: np.ndarray,
        *,
        checksums: Sequence[str],
        **settings: Any,
    ) -> None:
        digest = hashlib.sha256("".join(checksums).encode())
        digest.update(records.astype("<i8").tobytes())
        super().__init__(**settings, content=digest.digest())
        self._folder, self._files, self._starts = folder, list(files), starts
        self._records, self._checksums = records, list(checksums)
        self._open = Opened()

    def read(self, row: int) -> bytes:
        """The bytes of a row's image.

        Raises:
          DataError: the shard is damaged; it is named.
        """
        record = self._record(row)
        image: bytes = record["image"]
        return image

    def original_size(self, row: int) -> tuple[int, int]:
        """Width and height in pixels before the image was packed."""
        width, height = self._record(row)["size"]
        return int(width), int(height)

    def place(self, row: int) -> str:
        """The shard, and which of its records the row is."""
        shard, within = self._at(row)
        return f"{self._folder / self._files[shard]}, record {within}"

    def subset(self, rows: np.ndarray, name: str) -> ShardSource:
        """Some rows, with their ids, under another name."""
        return ShardSource(
            self._folder,
            self._files,
            self._starts,
            self._records[rows],
            checksums=self._checksums,
            **self._settings(rows, name),
        )

    def verify(self) -> None:
        """Read all shards and compare their checksums.

        Raises:
          DataError: one is another; it is named.
        """
        for name, expected in zip(self._files, self._checksums, strict=True):
            if file_sha256(self._folder / name) != expected:
                raise DataError(
                    f"{self._folder / name}: damaged: its checksum is another; pack the set again"
                )

    def _at(self, row: int) -> tuple[int, int]:
        record = int(self._records[row])
        shard = int(np.searchsorted(self._starts, record, side="right")) - 1
        return shard, record - int(self._starts[shard])

    def _record(self, row: int) -> dict[str, Any]:
        shard, within = self._at(row)
        path = self._folder / self._files[shard]
        readers = vars(self._open).setdefault("readers", {})
        try:
            if shard not in readers:
                readers[shard] = array_record().ArrayRecordReader(str(path))
            (content,) = readers[shard].read([within])
            found: dict[str, Any] = msgpack().decode(content, type=dict)
        except (RuntimeError, IndexError, ValueError) as error:
            told = str(error).splitlines()[0]
            raise DataError(
                f"{path}: damaged, record {within} cannot be read ({shorten(told)}); pack the set "
                "again"
            ) from None
        return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, a block at a time.

    Raises:
      DataError: it cannot be read.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a"
      >>> _ = path.write_bytes(b"")
      >>> file_sha256(path)[:8]
      'e3b0c442'
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def array_record() -> Any:
    """The library of ArrayRecord.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        from array_record.python import array_record_module
    except ModuleNotFoundError:
        raise _lacking("array-record") from None
    return array_record_module


def msgpack() -> Any:
    """The library of MessagePack.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import msgspec
    except ModuleNotFoundError:
        raise _lacking("msgspec") from None
    return msgspec.msgpack


def _lacking(library: str) -> ConfigError:
    return ConfigError(
        f'packed images need {library}, which is not installed: run pip install "jaxmlcl[images]"'
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(_read_whole(path))
        version = found["version"]
        if version == VERSION:
            for name in ("name", "label_names", "shards", "index_sha256"):
                found[name]
            for one in found["shards"]:
                if "/" in one["file"] or one["file"].startswith("."):
                    raise ValueError(f"shard {one['file']}")
                _ = int(one["rows"]), int(one["bytes"]), str(one["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the manifest of a packed set ({error})") from None
    if version != VERSION:
        raise DataError(
            f"{path}: version {version} of packed sets, this program reads {VERSION}; pack again"
        )
    result: dict[str, Any] = found
    return result


def _read_whole(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; was the set packed to its end?") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_size(path: Path, expected: int) -> None:
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise DataError(f"{path}: a shard that cannot be read: {error.strerror}") from None
    if size != expected:
        raise DataError(
            f"{path}: damaged: {size} bytes, the manifest says {expected}; copy it again, or pack "
            "the set again"
        )
