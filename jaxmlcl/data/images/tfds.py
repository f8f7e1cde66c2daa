"""Data sets of TensorFlow Datasets, prepared as ArrayRecord; TensorFlow itself is not needed.

Labels stand in the records beside the images, so they are read once, when a split is first opened,
and remembered in the user's cache folder. Images are read when they are asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlcl.data._checks import shorten
from jaxmlcl.data.images._source import EncodedSource, Opened, choice, finish
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.io import write_atomic

_INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# Raised when what is remembered is read in another way.
_INDEX_VERSION = 1
_BLOCK = 512


def open_tfds(body: str, options: Mapping[str, str], places: Sequence[Path]) -> EncodedSource:
    """Open one split of a prepared data set, such as `coco/2017` or `voc/2007`.

    Labels are those of the feature `labels` (a sequence of classes), or of the objects
    (`objects/label`), in the order that the data set has. Ids are `image/id` where there is one,
    else places in the split.

    Args:
      body: the name of the data set, with its configuration and perhaps its version, below
        TFDS_DATA_DIR, `~/tensorflow_datasets` or one of the places; or the prepared folder.
      options: `split` (`train` if left out). `labels`, the feature to take instead. `crowd`, `drop`
        to leave out objects that are marked as a crowd. `difficult`, what an image with difficult
        objects of a class alone has, where `labels_no_difficult` tells: `unknown`, `positive` or
        `negative`. `empty`: see `finish`.
      places: folders in which the data set is sought.

    Returns:
      The images in the order of the records.

    Raises:
      DataError: no such data set, split or feature, or one that is not stored as ArrayRecord.
      ConfigError: tensorflow-datasets is not installed.
    """
    where = f"tfds:{body}"
    folder = _find(body, places, where)
    builder = _builder(folder, where)
    split = options.get("split", "train")
    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits)) or "none"
        raise DataError(f"{where}: no split {shorten(split)}; there are {known}")
    info = builder.info.splits[split]
    if "array_record" not in str(builder.info.file_format.value):
        raise DataError(
            f"{where}: stored as {builder.info.file_format.value}, which has no random access; "
            "prepare it again with file_format='array_record'"
        )
    feature = options.get("labels") or _feature(builder.info.features, where)
    names = _class_names(builder.info.features, feature, where)
    files = [folder / name for name in info.filenames]
    digest = _digest(files, split, where)
    found = _remembered(digest, feature) or _scanned(folder, split, feature, len(names), where)
    _remember(found, digest, feature)
    labels, mask = found.labels, None
    if choice(options, "crowd", ("keep", "drop"), where) == "drop":
        labels = found.without_crowds
    difficult = choice(options, "difficult", ("unknown", "positive", "negative"), where)
    if found.certain is not None and difficult != "positive":
        only_difficult = (labels > 0) & (found.certain == 0)
        labels = np.where(only_difficult, 0, labels)
        mask = ~only_difficult if difficult == "unknown" else None
    source = TfdsImages(
        folder,
        split,
        np.arange(len(labels)),
        labels=labels,
        name=builder.info.full_name.replace("/", "-"),
        label_names=names,
        ids=found.ids,
        where=where,
        label_mask=mask,
        content=bytes.fromhex(digest),
    )
    return finish(source, options, where)


class TfdsImages(EncodedSource):
    """Encoded images of a split of a prepared data set.

    Args:
      folder: the prepared folder.
      split: its split.
      records: [n], which records of it.
      **settings: as in `EncodedSource`.
    """

    def __init__(self, folder: Path, split: str, records: np.ndarray, **settings: Any) -> None:
        super().__init__(**settings)
        self._folder, self._split, self._records = folder, split, records
        self._content = settings["content"]
        self._open = Opened()

    def read(self, row: int) -> bytes:
        """The bytes of a row's image.

        Raises:
          DataError: the record cannot be read.
        """
        opened = vars(self._open)
        with _as_errors(self.place(row)):
            if "records" not in opened:
                opened["records"] = _records(self._folder, self._split)
            image: bytes = opened["records"][int(self._records[row])]["image"]
        return image

    def place(self, row: int) -> str:
        """The folder and split, and which of its records the row is."""
        return f"{self._folder}, {self._split}, record {self._records[row]}"

    def subset(self, rows: np.ndarray, name: str) -> TfdsImages:
        """Some rows, with their ids, under another name."""
        return TfdsImages(
            self._folder,
            self._split,
            self._records[rows],
            **self._settings(rows, name),
            content=self._content,
        )


class _Index(NamedTuple):
    """What a scan of a split finds."""

    ids: np.ndarray | None
    labels: np.ndarray
    """[n, L]."""
    without_crowds: np.ndarray
    """[n, L]; the labels where nothing is marked as a crowd."""
    certain: np.ndarray | None
    """[n, L] labels that some object has which is not difficult; None where that is not told."""


def _find(body: str, places: Sequence[Path], where: str) -> Path:
    expanded = Path(os.path.expanduser(body))
    own = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    roots = [*places, Path(os.path.expanduser(own))]
    tried = [expanded] if expanded.is_absolute() else [root / body for root in roots]
    for place in tried:
        if (place / _INFO).is_file():
            return place
        versions = [path for path in place.glob("*.*.*") if _VERSION.fullmatch(path.name)]
        versions = [path for path in versions if (path / _INFO).is_file()]
        if versions:
            return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    raise DataError(
        f"{where}: no prepared data set; tried {', '.join(map(str, tried))}; prepare it with "
        "tensorflow_datasets and file_format='array_record', or set TFDS_DATA_DIR"
    )


def _library() -> Any:
    try:
        import tensorflow_datasets
    except ModuleNotFoundError:
        raise ConfigError(
            "data sets of TFDS need tensorflow-datasets, which is not installed: run pip install "
            '"jaxmlcl[images]"'
        ) from None
    return tensorflow_datasets


@contextlib.contextmanager
def _as_errors(where: str) -> Iterator[None]:
    """Whatever a damaged data set makes the library raise, in one line."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:
        told = str(error).splitlines()[:1] or [type(error).__name__]
        raise DataError(f"{where}: cannot be read as a data set of TFDS: {told[0]}") from None


def _builder(folder: Path, where: str) -> Any:
    library = _library()
    with _as_errors(where):
        return library.builder_from_directory(str(folder))


def _records(folder: Path, split: str) -> Any:
    """The records of a split as a sequence, with images as they are stored."""
    library = _library()
    builder = library.builder_from_directory(str(folder))
    stored = {"image": library.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=stored)


def _feature(features: Any, where: str) -> str:
    for path in ("labels", "objects/label"):
        with contextlib.suppress(KeyError, TypeError, DataError):
            _class_names(features, path, where)
            return path
    raise DataError(
        f"{where}: neither labels nor objects/label are classes; name another feature with "
        f"?labels=NAME; there are {', '.join(sorted(features))}"
    )


def _class_names(features: Any, path: str, where: str) -> list[str]:
    found = features
    for part in path.split("/"):
        found = getattr(found, "feature", found)
        try:
            found = found[part]
        except (KeyError, TypeError):
            raise DataError(f"{where}: no feature {shorten(path)}") from None
    found = getattr(found, "feature", found)
    names = getattr(found, "names", None)
    if not names:
        raise DataError(f"{where}: feature {shorten(path)} has no names of classes")
    if "image" not in features:
        raise DataError(f"{where}: no feature image; there are {', '.join(sorted(features))}")
    return list(names)


def _digest(files: Sequence[Path], split: str, where: str) -> str:
    """Of the files' names, sizes and times: what is remembered is of these and no others."""
    digest = hashlib.sha256(f"{_INDEX_VERSION} {split}".encode())
    for path in files:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"{where}: {path}: {error.strerror}; prepare it again") from None
        digest.update(f"{path.name} {found.st_size}\n".encode())
    return digest.hexdigest()


def _scanned(folder: Path, split: str, feature: str, count: int, where: str) -> _Index:
    """Labels and ids of all records, by as many threads as there are cores."""
    features = _builder(folder, where).info.features
    certain = feature == "labels" and "labels_no_difficult" in features
    opened = threading.local()

    def read(start: int) -> tuple[np.ndarray, ...]:
        if not hasattr(opened, "records"):
            opened.records = _records(folder, split)
        rows = range(start, min(start + _BLOCK, total))
        found = np.zeros((3, len(rows), count), np.uint8)
        ids = np.full(len(rows), -1, np.int64)
        for place, row in enumerate(rows):
            record = opened.records[row]
            classes, crowds = _classes(record, feature)
            found[0, place, classes] = 1
            found[1, place, classes[~crowds]] = 1
            if certain:
                found[2, place, np.asarray(record["labels_no_difficult"], int)] = 1
            ids[place] = record.get("image/id", -1)
        return found, ids

    with _as_errors(where):
        total = len(_records(folder, split))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = list(pool.map(read, range(0, total, _BLOCK)))
    if not parts:
        raise DataError(f"{where}: the split {split} is empty")
    found = np.concatenate([part for part, _ in parts], axis=1)
    ids = np.concatenate([ids for _, ids in parts])
    usable = ids.min() >= 0 and ids.max() < 2**31 and len(np.unique(ids)) == len(ids)
    return _Index(ids if usable else None, found[0], found[1], found[2] if certain else None)


def _classes(record: Mapping[str, Any], feature: str) -> tuple[np.ndarray, np.ndarray]:
    """The classes of a record's objects or labels, and which of them are crowds."""
    found: Any = record
    for part in feature.split("/"):
        owner, found = found, found[part]
    # Splits without annotations have -1 there.
    classes = np.atleast_1d(np.asarray(found, int))
    classes = classes[classes >= 0]
    crowds = np.zeros(len(classes), bool)
    if isinstance(owner, Mapping) and owner is not record and "is_crowd" in owner:
        crowds = np.asarray(owner["is_crowd"], bool)
    return classes, crowds


def _cache_file(digest: str, feature: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(f"{digest} {feature}".encode()).hexdigest()
    return Path(root) / "jaxmlcl" / f"tfds-{name[:24]}.npz"


def _remembered(digest: str, feature: str) -> _Index | None:
    # What cannot be read is found out anew.
    unreadable = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    file = _cache_file(digest, feature)
    with contextlib.suppress(*unreadable), np.load(file, allow_pickle=False) as stored:
        about = json.loads(str(stored["about"]))
        if about != {"digest": digest, "feature": feature}:
            return None
        count = int(stored["count"])

        def unpacked(name: str) -> np.ndarray | None:
            return np.unpackbits(stored[name], axis=1, count=count) if name in stored else None

        labels, without = unpacked("labels"), unpacked("without_crowds")
        if labels is not None and without is not None:
            ids = stored.get("ids")
            return _Index(ids, labels, without, unpacked("certain"))
    return None


def _remember(found: _Index, digest: str, feature: str) -> None:
    path = _cache_file(digest, feature)
    if path.exists():
        return
    bits = {
        name: np.packbits(array, axis=1)
        for name, array in (
            ("labels", found.labels),
            ("without_crowds", found.without_crowds),
            ("certain", found.certain),
        )
        if array is not None
    }
    if found.ids is not None:
        bits["ids"] = found.ids
    about = json.dumps({"digest": digest, "feature": feature})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, about=np.array(about), count=found.labels.shape[1], **bits)
    # A cache that cannot be written only costs time.
    with contextlib.suppress(OSError):
        write_atomic(path, buffer.getvalue())
