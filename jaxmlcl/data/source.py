"""Sources: random-access sequences of labelled records, and how they are found and checked."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, SupportsIndex, runtime_checkable
from urllib.parse import unquote

import numpy as np

from jaxmlcl.data._checks import (
    check_finite,
    check_ids,
    check_labels,
    check_mask,
    check_names,
    check_numbers,
    check_shapes,
    check_targets,
    shorten,
)
from jaxmlcl.errors import DataError

Kind = Literal["vector", "image", "encoded"]


@dataclass(frozen=True)
class SourceMetadata:
    """What is known about a source without reading its records.

    Args:
      name: a short name for tables and reports.
      label_names: the `L` label names, in the order of the label columns.
      input_shape: the shape of one record's inputs: `(d,)`, or `(height, width, channels)`; `()`
        for encoded images, each of a size of its own.
      input_dtype: the NumPy name of the inputs' type, or "bytes".
      kind: "vector", "image", or "encoded", image files as they are.
      fingerprint: SHA-256, hexadecimal, of the content or of the recipe that makes it.
      unknown_labels: whether some labels may be unknown; records and arrays then have a
        "label_mask".
      soft_labels: whether records and arrays also have "targets", what a stage is trained on in
        the place of the 0/1 labels.
      rows_fingerprint: the fingerprint of the same rows without targets, where there are targets.

    Example:
      >>> metadata = SourceMetadata("tiny", ("sea", "sky"), (3,), "float32", "vector", "0" * 64)
      >>> metadata.num_labels, metadata.num_features, metadata.image_size
      (2, 3, None)
    """

    name: str
    label_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    input_dtype: str
    kind: Kind
    fingerprint: str
    unknown_labels: bool = False
    soft_labels: bool = False
    rows_fingerprint: str | None = None

    @property
    def fingerprint_of_rows(self) -> str:
        """By which sources of the same rows are told, whatever is learnt from them."""
        return self.rows_fingerprint or self.fingerprint

    @property
    def num_labels(self) -> int:
        """The number of labels, `L`."""
        return len(self.label_names)

    @property
    def num_features(self) -> int | None:
        """The length of a vector record; None for images."""
        return self.input_shape[0] if self.kind == "vector" else None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels; None for vectors and for files of any size."""
        return (self.input_shape[0], self.input_shape[1]) if self.kind == "image" else None


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of records.

    `source[i]` is `{"inputs": np.ndarray, "labels": uint8 [L], "id": int}`. The identifier is the
    record's row number in its file, at most 2**31 - 1. Sources that fit in memory also have
    `arrays()`, which returns `{"inputs": [n, ...], "labels": uint8 [n, L], "ids": int32 [n]}`.

    Where `metadata.unknown_labels` is true, records also have "label_mask" (bool [L], True where
    the label is known), and arrays likewise ([n, L]); unknown labels are 0 in "labels". Where
    `metadata.soft_labels` is true, both have "targets", float32 in [0, 1], of the labels' shape.
    """

    @property
    def metadata(self) -> SourceMetadata:
        """What is known about the source without reading its records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]: ...


class ArraySource:
    """Records that are rows of two arrays in memory, checked once when the source is made.

    Args:
      inputs: `[n, d]` for vectors or `[n, height, width, channels]` for images; numbers, finite.
      labels: `[n, L]`, 0 or 1.
      name: a short name for tables and reports.
      label_names: `L` different names; `label_0`, `label_1`, ... if left out.
      feature_names: `d` names of the columns of vectors, used in messages; may be left out.
      ids: `[n]` different whole numbers from 0 to 2**31 - 1; the row numbers if left out.
      where: what messages call the source, such as its file; the name if left out.
      locate: turns a row number into words for messages, such as "line 12".
      label_mask: `[n, L]`, 1 or True where the label is known; everywhere if left out. Where it is
        not, `labels` may hold anything, and the source says 0.
      targets: `[n, L]` in [0, 1], what is learnt in the place of the labels, such as enhanced ones.
      rows_fingerprint: the fingerprint of the source without targets; worked out if left out.

    Raises:
      DataError: no rows, arrays that do not fit together, a label that is not 0 or 1, or an input
        that is not finite; the message names the source, the row and the column.

    Example:
      >>> source = ArraySource([[0.5, 1.0], [2.0, 3.0]], [[1, 0], [1, 1]], name="tiny")
      >>> len(source), source[1]["labels"], source.metadata.label_names
      (2, array([1, 1], dtype=uint8), ('label_0', 'label_1'))
      >>> ArraySource([[0.5, 1.0]], [[1, 2]], name="tiny")
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: tiny, row 0 (counted from 0), label 'label_1': 2 is not 0 or 1
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any,
        *,
        name: str,
        label_names: Iterable[str] | None = None,
        feature_names: Iterable[str] | None = None,
        ids: Any = None,
        where: str | None = None,
        locate: Callable[[int], str] | None = None,
        label_mask: Any = None,
        targets: Any = None,
        rows_fingerprint: str | None = None,
    ) -> None:
        where = name if where is None else where
        locate = locate or (lambda row: f"row {row} (counted from 0)")
        inputs = check_numbers(inputs, f"{where}, inputs")
        labels = check_numbers(labels, f"{where}, labels")
        check_shapes(inputs, labels, where)
        label_names = check_names(label_names, labels.shape[1], "label", where)
        if inputs.ndim == 2:
            feature_names = check_names(feature_names, inputs.shape[1], "feature", where)
        elif feature_names is not None:
            raise DataError(f"{where}: feature names belong to vectors, not to images")
        known = None if label_mask is None else check_mask(label_mask, labels.shape, where)
        check_labels(labels, label_names, where, locate, known)
        check_finite(inputs, feature_names, where, locate)
        if targets is not None:
            targets = check_targets(targets, labels.shape, label_names, where, locate)

        self._inputs = _frozen(inputs, inputs.dtype.newbyteorder("="))
        self._mask = None if known is None else _frozen(known, np.dtype(bool))
        labels = labels if known is None else np.where(known, labels, 0)
        self._labels = _frozen(labels, np.dtype(np.uint8))
        self._targets = None if targets is None else _frozen(targets, np.dtype(np.float32))
        given = None if ids is None else check_ids(ids, len(inputs), where)
        self._ids = np.arange(len(inputs), dtype=np.int32) if given is None else given
        self._ids.flags.writeable = False
        self.feature_names: tuple[str, ...] | None = feature_names
        rows = fingerprint = _fingerprint(
            self._inputs, self._labels, label_names, given, self._mask
        )
        if self._targets is not None:
            digest = hashlib.sha256(rows.encode())
            digest.update(self._targets.astype("<f4", copy=False).data)
            fingerprint = digest.hexdigest()
        self._metadata = SourceMetadata(
            name=name,
            label_names=label_names,
            input_shape=inputs.shape[1:],
            input_dtype=str(self._inputs.dtype),
            kind="vector" if inputs.ndim == 2 else "image",
            fingerprint=fingerprint,
            unknown_labels=self._mask is not None,
            soft_labels=self._targets is not None,
            rows_fingerprint=None if self._targets is None else rows_fingerprint or rows,
        )

    @property
    def metadata(self) -> SourceMetadata:
        """Name, labels, shape and fingerprint."""
        return self._metadata

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        row = checked_index(index, len(self))
        record = {"inputs": self._inputs[row], "labels": self._labels[row]}
        record["id"] = int(self._ids[row])
        return {**record, **{name: array[row] for name, array in self._more().items()}}

    def __repr__(self) -> str:
        return (
            f"ArraySource({self._metadata.name!r}, n={len(self)}, "
            f"inputs={self._metadata.input_shape}, labels={self._metadata.num_labels}, "
            f"fingerprint={self._metadata.fingerprint[:12]})"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All records at once, read-only: `inputs` [n, ...], `labels` uint8 [n, L], `ids` [n].

        Where some labels are unknown, also `label_mask`, bool [n, L]; where others are learnt than
        the labels, `targets`, float32 [n, L].
        """
        arrays = {"inputs": self._inputs, "labels": self._labels, "ids": self._ids}
        return {**arrays, **self._more()}

    def _more(self) -> dict[str, np.ndarray]:
        more = {"label_mask": self._mask, "targets": self._targets}
        return {name: array for name, array in more.items() if array is not None}


def checked_index(index: SupportsIndex, size: int) -> int:
    """The row number that `index` means in a source of `size` rows; negative counts from the end.

    Raises:
      IndexError: there is no such row.

    Example:
      >>> checked_index(-1, 5)
      4
    """
    row = operator.index(index)
    if not -size <= row < size:
        raise IndexError(f"record {row} of a source with {size} records")
    return row % size


def _frozen(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    # A writeable array may change under the fingerprint, so it is copied.
    result = np.array(array, dtype=dtype, order="C", copy=True if array.flags.writeable else None)
    result.flags.writeable = False
    return result


def _fingerprint(
    inputs: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    ids: np.ndarray | None,
    mask: np.ndarray | None,
) -> str:
    digest = hashlib.sha256()
    for array in (inputs, labels, ids, mask):
        if array is None:
            continue
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(json.dumps([little.dtype.str, little.shape]).encode())
        digest.update(little.reshape(-1).data)
    digest.update(json.dumps(list(label_names)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Opener:
    target: str | Callable[..., Source]  # "module:function", so that listing it imports nothing
    options: tuple[str, ...]
    # The options, with their defaults, that say which row an id means; None: every option does.
    identity: Mapping[str, str] | None = None

    def __call__(self, *arguments: Any) -> Source:
        if not isinstance(self.target, str):
            return self.target(*arguments)
        module, _, function = self.target.partition(":")
        return getattr(importlib.import_module(module), function)(*arguments)


_SCHEMES = {
    "digits": _Opener(
        "jaxmlcl.data.digits:open_digits",
        ("size", "seed", "unknown", "unknown_seed"),
        identity={"seed": "0"},
    ),
    "openml": _Opener(
        "jaxmlcl.data.openml:open_openml",
        ("labels", "version", "missing", "unknown"),
        identity={"version": ""},
    ),
    "coco": _Opener(
        "jaxmlcl.data.images.coco:open_coco",
        ("images", "crowd", "empty", "missing", "unknown"),
        identity={},
    ),
    "voc": _Opener(
        "jaxmlcl.data.images.voc:open_voc",
        ("set", "difficult", "from", "empty", "missing"),
        identity={"set": "trainval"},
    ),
    "nuswide": _Opener(
        "jaxmlcl.data.images.nuswide:open_nuswide",
        ("split", "images", "empty", "missing"),
        identity={"split": "all"},
    ),
    "mirflickr": _Opener(
        "jaxmlcl.data.images.mirflickr:open_mirflickr",
        ("labels", "empty", "missing"),
        identity={},
    ),
    "tfds": _Opener(
        "jaxmlcl.data.images.tfds:open_tfds",
        ("split", "labels", "crowd", "difficult", "empty"),
        identity={"split": "train"},
    ),
    "shards": _Opener("jaxmlcl.data.images.shards:open_shards", ("empty",), identity={}),
    "folder": _Opener(
        "jaxmlcl.data.images.folder:open_folder",
        ("split", "unknown", "empty", "missing"),
        identity={},
    ),
}
_ENDINGS = {
    ".arff": _Opener("jaxmlcl.data.arff:open_arff", ("xml", "missing", "unknown"), identity={}),
    ".csv": _Opener(
        "jaxmlcl.data.table:open_csv", ("labels", "id", "missing", "unknown"), identity={"id": ""}
    ),
    ".h5": _Opener("jaxmlcl.data.hdf5:open_hdf5", ("images",), identity={}),
    ".hdf5": _Opener("jaxmlcl.data.hdf5:open_hdf5", ("images",), identity={}),
    ".mat": _Opener("jaxmlcl.data.matlab:open_mat", (), identity={}),
    ".npy": _Opener(
        "jaxmlcl.data.numpy_files:open_npy", ("labels", "meta", "indices", "unknown"), identity={}
    ),
    ".npz": _Opener("jaxmlcl.data.numpy_files:open_npz", (), identity={}),
}


# Understood by every source in memory, whatever else its URI may carry.
_PART_OPTIONS = ("part", "fraction", "test_fraction", "split_seed", "share")
_COMMON_OPTIONS = (*_PART_OPTIONS, "and", "targets")


def register_source(
    key: str, opener: Callable[..., Source] | str, options: Sequence[str] = ()
) -> None:
    """Teach `open_source` a new scheme or file ending.

    Args:
      key: a file ending with its dot (".npz"), or a scheme of two letters or more ("digits").
      opener: the function, or "module:function" to import it when it is needed. It is called with
        the path of the file that was found (for a scheme: the text behind the colon), the options
        of the URI as a dictionary of strings, and the folders in which relative paths are sought.
      options: the names the URI may carry behind its question mark.

    Raises:
      ValueError: the key is neither a file ending nor a scheme, or an option is one of those that
        `open_source` understands itself.

    Example:
      >>> def ones(body, options, places):
      ...     return ArraySource(np.ones((int(body), 2)), np.ones((int(body), 1)), name="ones")
      >>> register_source("ones", ones)
      >>> len(open_source("ones:3"))
      3
    """
    if not re.fullmatch(r"\.\w+|[A-Za-z]\w+", key):
        raise ValueError(f"key {key!r} is neither a file ending such as '.npz' nor a scheme")
    if reserved := sorted(set(options) & set(_COMMON_OPTIONS)):
        raise ValueError(f"option {reserved[0]!r} belongs to open_source, choose another name")
    registry = _ENDINGS if key.startswith(".") else _SCHEMES
    registry[key.lower()] = _Opener(opener, tuple(options))


def open_source(
    uri: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> Source:
    """Open a source by URI or path.

    `digits:train?size=4000&seed=0` are the embedded images (splits train, validation, test);
    a path that ends in `.arff` is a Mulan data set, whose labels are listed by the XML file beside
    it or by `?xml=PATH`; `.h5` and `.hdf5` hold the arrays `feature` (or `Image`) and `target`;
    `.npz` holds `features` and `labels`; `.mat` holds `features` and `logicalLabel`, `labels` or
    `labelDistribution`; `.csv` needs `?labels=a,b`; `.npy` are MPVAE's rows;
    `openml:NAME?labels=a,b` is fetched.

    Of every source in memory `part=held-out` opens the share `fraction` (0.2) of the rows, taken by
    stratification with `split_seed` (0), and `part=rest` the other rows; `part=train`,
    `part=validation` and `part=test` are three such parts, the last two of the share `fraction`
    (0.1) each, or test of `test_fraction`; `share=0.1` takes a tenth of what there is then, in the
    same way. `and=FILE` appends the rows of another file of that kind before anything is taken,
    with ids that go on where those of the first end. Ids stay those of the whole. `targets=FILE`
    adds what is learnt in the place of the labels: label distributions in a `.csv`, `.npz` or
    `.mat` file, as `jaxmlcl enhance` writes them.

    Args:
      uri: what to open. Characters of an option's value may be written as `%XX`.
      root: the folder in which relative paths are sought first; then come the folder named by the
        environment variable JAXMLCL_DATA and the working directory.

    Returns:
      The source, checked.

    Raises:
      DataError: `root` is no folder, nothing there, a kind of data or an option that is not
        known, an address in object storage, or bad content.

    Example:
      >>> source = open_source("digits:test?size=8&seed=3")
      >>> source[7]["inputs"].shape, source[7]["labels"].shape
      ((48, 48, 1), (10,))
      >>> open_source("digits:test?sise=8")
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: digits:test?sise=8: unknown option 'sise' (did you mean 'size'?)
    """
    text = os.fspath(uri)
    address = _address(text)
    opener, options, places = address.opener, dict(address.options), search_places(root)
    part = {name: options.pop(name) for name in _PART_OPTIONS if name in options}
    targets, more = options.pop("targets", None), options.pop("and", None)
    # A scheme needs no folder, and a run may carry the name of one that is no longer there.
    if not address.scheme and root is not None:
        _refuse_buckets(os.fspath(root))
    if not address.scheme and root is not None and not os.path.isdir(os.path.expanduser(root)):
        raise DataError(f"{os.fspath(root)}: data.root is not a folder; name the one with the data")
    body = address.body if address.scheme else find_file(address.body, places)
    source = opener(body, options, places)
    beside = [Path(body).parent] if not address.scheme else []
    if more is not None:
        from jaxmlcl.data.append import appended

        if address.scheme:
            raise DataError(f"{text}: option 'and' names a second file, so the first is one, too")
        file = find_file(more, [*beside, *places])
        source = appended(source, opener(file, options, places), text)
    if targets is not None:
        from jaxmlcl.data.targets import with_targets

        source = with_targets(source, find_file(targets, [*beside, *places]), text)
    if not part:
        return source
    from jaxmlcl.data.stratify import take_part

    return take_part(source, part, text)


def row_origin(
    uri: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> tuple[str, ...]:
    """What the ids of a source count: sources of one origin have the rows with equal ids in common.

    Args:
      uri: what `open_source` takes; a file must exist.
      root: as `open_source` takes it.

    Returns:
      The file, or the scheme and what follows it, and the options that say which row an id means.
      Parts of a file, and ways to read it, have the origin of the file.

    Raises:
      DataError: a kind of data or an option that is not known, or no such file.

    Example:
      >>> row_origin("digits:train?size=40&part=rest") == row_origin("digits:train?seed=0")
      True
      >>> row_origin("digits:train?seed=1") == row_origin("digits:train")
      False
    """
    address = _address(os.fspath(uri))
    options = address.options
    if address.opener.identity is None:
        chosen = {name: options[name] for name in sorted(options) if name not in _COMMON_OPTIONS}
    else:
        chosen = {
            name: options.get(name, default) for name, default in address.opener.identity.items()
        }
    place = address.body
    if not address.scheme:
        found = find_file(address.body, search_places(root))
        place = os.path.realpath(found)
        if "and" in options:
            more = find_file(options["and"], [found.parent, *search_places(root)])
            chosen["and"] = os.path.realpath(more)
    return (address.scheme, place, *(f"{name}={value}" for name, value in chosen.items()))


def source_options(uri: str) -> tuple[str, dict[str, str]]:
    """The path, or what follows the scheme, and the options of a URI; both are checked.

    Raises:
      DataError: a kind of data or an option that is not known.

    Example:
      >>> source_options("birds.csv?labels=is_*&id=number")
      ('birds.csv', {'labels': 'is_*', 'id': 'number'})
    """
    address = _address(uri)
    return address.body, dict(address.options)


def find_file(path: str, places: Sequence[Path], hint: bool = True) -> Path:
    """The first file called `path` in `places`; an absolute path or one with `~` stands by itself.

    Raises:
      DataError: there is none; the message lists where it was sought.

    Example:
      >>> find_file("none.arff", [Path("/nowhere")], hint=False)
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: none.arff: no such file; tried /nowhere/none.arff
    """
    _refuse_buckets(path)
    expanded = os.path.expanduser(path)
    tried = [Path(expanded)] if os.path.isabs(expanded) else [place / path for place in places]
    for candidate in tried:
        if os.path.isfile(candidate):
            return candidate
        if os.path.isdir(candidate):
            raise DataError(f"{candidate}: is a folder, a file is expected")
    advice = "; set --data.root or JAXMLCL_DATA to the folder that holds it" if hint else ""
    raise DataError(f"{path}: no such file; tried {', '.join(map(str, tried))}{advice}")


def read_text(path: Path) -> str:
    """A file's text, UTF-8 with or without a byte order mark; line ends become newlines.

    Raises:
      DataError: the file cannot be read or is not UTF-8.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "names.txt"
      >>> _ = path.write_bytes(b"sea" + bytes([13, 10]) + b"sky")
      >>> read_text(path).split()
      ['sea', 'sky']
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fraction_option(options: Mapping[str, str], name: str, *, default: str, where: str) -> float:
    """The number between 0 and 1 that option `name` holds, or `default`.

    Raises:
      DataError: it is not such a number.

    Example:
      >>> fraction_option({"fraction": ".25"}, "fraction", default="0.2", where="birds.csv")
      0.25
    """
    text = options.get(name, default)
    if not re.fullmatch(r"0?\.[0-9]{1,15}", text) or not 0 < float(text) < 1:
        raise DataError(f"{where}: option {name}={shorten(text)} must be a number between 0 and 1")
    return float(text)


def integer_option(
    options: Mapping[str, str], name: str, *, default: int, low: int, high: int, where: str
) -> int:
    """The whole number that option `name` holds, or `default`.

    Raises:
      DataError: it is not a whole number from `low` to `high`.

    Example:
      >>> integer_option({"size": "40"}, "size", default=10, low=1, high=100, where="digits:train")
      40
    """
    text = options.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise DataError(
            f"{where}: option {name}={shorten(text)} must be a whole number from {low} to {high}"
        )
    return int(text)


class _Address(NamedTuple):
    # A URI taken apart: the scheme, or "" for a file; what follows it, or the path; the options.
    scheme: str
    body: str
    opener: _Opener
    options: dict[str, str]


# Where nothing can be read row by row, so that the bucket has to look like a folder.
_BUCKET = re.compile(r"(gs|gcs|s3|s3a|az|abfss?|hdfs)://", re.IGNORECASE)


def _refuse_buckets(text: str) -> None:
    """Refuse an address in object storage, whatever kind of data it is of."""
    found = _BUCKET.match(text)
    if found is not None and found[1].lower() not in _SCHEMES:
        raise DataError(
            f"{text}: data are not read from object storage (of ArrayRecord, its own library reads "
            "local files only); mount the bucket (gcsfuse, mountpoint-s3) or copy the data to a "
            "local disk, and give that path; see docs/scale.md"
        )


def _address(text: str) -> _Address:
    _refuse_buckets(text)
    location, _, query = text.partition("?")
    scheme, colon, body = location.partition(":")
    ending = os.path.splitext(location)[1].lower()
    is_scheme = bool(colon) and scheme.lower() in _SCHEMES
    if not is_scheme and ending not in _ENDINGS:
        supported = ", ".join([*sorted(_ENDINGS), *(f"{name}:" for name in sorted(_SCHEMES))])
        raise DataError(
            f"{text}: unknown kind of source{_nearest(scheme, _SCHEMES)}; supported are {supported}"
        )
    opener = _SCHEMES[scheme.lower()] if is_scheme else _ENDINGS[ending]
    options = _options(query, (*opener.options, *_COMMON_OPTIONS), text)
    return _Address(
        scheme.lower() if is_scheme else "", body if is_scheme else location, opener, options
    )


def search_places(root: str | os.PathLike[str] | None) -> list[Path]:
    """The folders in which relative paths are sought: root, JAXMLCL_DATA, the working directory.

    Example:
      >>> search_places("/data")[0]
      PosixPath('/data')
    """
    named = [root, os.environ.get("JAXMLCL_DATA"), os.curdir]
    places = [Path(os.path.abspath(os.path.expanduser(place))) for place in named if place]
    return list(dict.fromkeys(places))


def _options(query: str, known: Sequence[str], uri: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        if name not in known:
            choice = _nearest(name, known) or (
                f"; known are {', '.join(known)}" if known else "; this kind of source takes none"
            )
            raise DataError(f"{uri}: unknown option {shorten(name)}{choice}")
        if name in options:
            raise DataError(f"{uri}: option {name!r} is given twice")
        if not equals or not value:
            raise DataError(f"{uri}: option {name!r} has no value; write {name}=VALUE")
        options[name] = unquote(value)
    return options


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
