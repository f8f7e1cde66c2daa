"""Data sets of label distributions: features, degrees, 0/1 labels, or what there is of them."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxmlcl.data._checks import (
    check_finite,
    check_ids,
    check_labels,
    check_names,
    check_numbers,
    check_shapes,
    shorten,
)
from jaxmlcl.data.binarise import logical_labels
from jaxmlcl.data.source import find_file, open_source, search_places
from jaxmlcl.errors import DataError
from jaxmlcl.io import writing

# How far the degrees of a row may be from 1 together: float32 and printed digits stay below it.
SUM_TOLERANCE = 1e-3

# Of the files that `write_distributions` writes.
ENDINGS = (".csv", ".npz", ".mat")

FEATURES = ("features",)
DEGREES = ("labelDistribution", "distributions")
LOGICAL = ("logicalLabel",)
EITHER = ("labels",)
NAMES = ("label_names", "labelNames", "labelName")
_UNKNOWN = "some labels are unknown; label enhancement needs all of them"


@dataclass(frozen=True)
class DistributionData:
    """Rows of a data set for label enhancement.

    Args:
      name: a short name for tables.
      features: [n, q], float32 or float64, finite.
      labels: uint8 [n, L].
      distributions: float64 [n, L], rows that sum to 1; None where only labels are known.
      label_names: the L names.
      feature_names: the q names; None where the file has none.
      ids: int32 [n].
      labels_derived: whether the file had distributions only, and the labels follow from them by
        the cumulative rule.
    """

    name: str
    features: np.ndarray
    labels: np.ndarray
    distributions: np.ndarray | None
    label_names: tuple[str, ...]
    feature_names: tuple[str, ...] | None
    ids: np.ndarray
    labels_derived: bool = False

    def __len__(self) -> int:
        return len(self.features)


def open_distributions(
    uri: str | os.PathLike[str],
    *,
    labels: str | None = None,
    root: str | os.PathLike[str] | None = None,
) -> DistributionData:
    """Open features with label distributions, 0/1 labels, or both.

    `.mat` (version 5 to 7.3) and `.npz` hold `features` [n, q] and at least one of
    `labelDistribution` (or `distributions`), the degrees; `logicalLabel`, 0/1; and `labels`, which
    may be either. `label_names` may name the labels, `ids` (`.npz`) the rows. A CSV file has a
    column for each label, its numbers degrees or 0/1. Anything else that `open_source` knows has
    0/1 labels.

    Where there are distributions and no labels, those follow by the cumulative rule of
    `logical_labels`. Where all numbers of `labels` are 0 or 1 they are labels.

    Args:
      uri: the file or source, with its options behind a question mark.
      labels: of a CSV file, the label columns as `a,b` or `prefix*`; the option `labels`.
      root: the folder in which relative paths are sought first, as for `open_source`.

    Returns:
      The rows in the order of the file.

    Raises:
      DataError: a field is missing or of the wrong shape; a degree is negative or not a number; the
        degrees of a row do not sum to 1 (within 1e-3). The message names row and column.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.npz"
      >>> np.savez(path, features=[[0.5, 1.0]], distributions=[[0.3, 0.6, 0.1]])
      >>> data = open_distributions(path)
      >>> data.labels, data.labels_derived
      (array([[0, 1, 0]], dtype=uint8), True)
    """
    text = os.fspath(uri)
    location, _, query = text.partition("?")
    ending = os.path.splitext(location)[1].lower()
    if labels is not None:
        if ending != ".csv" or query.startswith("labels=") or "&labels=" in query:
            raise DataError(
                f"{text}: label columns are named once, and for CSV; leave out labels={labels}"
            )
        option = f"labels={quote(labels, safe=',*')}"
        query = f"{query}&{option}" if query else option
    if ending in (".mat", ".npz") and not query:
        path = find_file(location, search_places(root))
        return (_of_mat if ending == ".mat" else _of_npz)(path)
    if ending == ".csv":
        return _of_csv(f"{location}?{query}" if query else location, root)
    return _of_source(text, root)


def _of_mat(path: Path) -> DistributionData:
    from jaxmlcl.data.matlab import read_mat

    fields, held = read_mat(path, (*FEATURES, *DEGREES, *LOGICAL, *EITHER), NAMES)
    return _of_fields(path, fields, held)


def _of_npz(path: Path) -> DistributionData:
    from jaxmlcl.data.numpy_files import npz_array, npz_names, strings

    held = npz_names(path)
    wanted = (*FEATURES, *DEGREES, *LOGICAL, *EITHER, *NAMES, "ids")
    fields: dict[str, Any] = {
        name: npz_array(path, name) for name in dict.fromkeys(wanted) if name in held
    }
    if "label_mask" in held and not np.asarray(npz_array(path, "label_mask")).all():
        raise DataError(f"{path}: {_UNKNOWN}")
    for name in NAMES:
        if name in fields:
            fields[name] = strings(fields[name], path)
    return _of_fields(path, fields, held)


def _of_fields(path: Path, fields: Mapping[str, Any], held: Sequence[str]) -> DistributionData:
    features = _one(fields, FEATURES, path)
    if features is None:
        raise DataError(f"{path}: no field features; the file holds {_listed(held)}")
    degrees, logical = _one(fields, DEGREES, path), _one(fields, LOGICAL, path)
    either = _one(fields, EITHER, path)
    if either is not None:
        either = check_numbers(either, f"{path}, labels")
        if ((either == 0) | (either == 1)).all():
            if logical is not None:
                raise DataError(f"{path}: holds both labels and logicalLabel; keep one of them")
            logical = either
        elif degrees is not None:
            name = next(name for name in DEGREES if name in fields)
            raise DataError(
                f"{path}: labels are not 0 or 1 throughout, so they and {name} would both be "
                "distributions; keep one of them"
            )
        else:
            degrees = either
    if degrees is None and logical is None:
        raise DataError(
            f"{path}: no field labels, logicalLabel or labelDistribution; the file holds "
            f"{_listed(held)}"
        )
    return _checked(
        path.stem,
        str(path),
        features,
        degrees,
        logical,
        _one(fields, NAMES, path),
        ids=fields.get("ids"),
    )


def _one(fields: Mapping[str, Any], names: Sequence[str], path: Path) -> Any:
    found = [name for name in names if name in fields]
    if len(found) > 1:
        raise DataError(f"{path}: holds both {' and '.join(found)}; keep one of them")
    return fields[found[0]] if found else None


def _listed(held: Sequence[str]) -> str:
    return ", ".join(held[:8]) or "nothing"


def _of_csv(uri: str, root: str | os.PathLike[str] | None) -> DistributionData:
    from jaxmlcl.data.source import source_options
    from jaxmlcl.data.table import read_table

    location, options = source_options(uri)
    if set(options) - {"labels", "id", "missing"}:
        return _of_source(uri, root)
    path = find_file(location, search_places(root))
    table = read_table(path, options)
    binary = ((table.labels == 0) | (table.labels == 1)).all()
    return _checked(
        path.stem,
        str(path),
        table.features,
        None if binary else table.labels,
        table.labels if binary else None,
        table.label_names,
        feature_names=table.feature_names,
        ids=table.ids,
        locate=table.locate,
    )


def _of_source(uri: str, root: str | os.PathLike[str] | None) -> DistributionData:
    source = open_source(uri, root=root)
    arrays: Any = getattr(source, "arrays", None)
    if source.metadata.kind != "vector" or arrays is None:
        raise DataError(
            f"{uri}: label enhancement takes vectors in memory, this source holds "
            f"{source.metadata.kind}s"
        )
    if source.metadata.unknown_labels:
        raise DataError(f"{uri}: {_UNKNOWN}")
    found = arrays()
    return DistributionData(
        source.metadata.name,
        found["inputs"],
        found["labels"],
        None,
        source.metadata.label_names,
        getattr(source, "feature_names", None),
        found["ids"],
    )


def _checked(
    name: str,
    where: str,
    features: Any,
    degrees: Any,
    logical: Any,
    label_names: Sequence[str] | None,
    *,
    feature_names: Sequence[str] | None = None,
    ids: Any = None,
    locate: Callable[[int], str] = lambda row: f"row {row} (counted from 0)",
) -> DistributionData:
    features = check_numbers(features, f"{where}, features")
    if features.ndim != 2:
        raise DataError(f"{where}: features have shape {features.shape}; expected vectors [n, q]")
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float64)
    for array, what in ((degrees, "distributions"), (logical, "labels")):
        if array is not None:
            check_shapes(features, check_numbers(array, f"{where}, {what}"), where)
    if degrees is not None and logical is not None and np.shape(degrees) != np.shape(logical):
        raise DataError(
            f"{where}: distributions have shape {np.shape(degrees)}, labels {np.shape(logical)}"
        )
    count = np.shape(logical if degrees is None else degrees)[1]
    names = check_names(label_names, count, "label", where)
    check_finite(features, feature_names, where, locate)
    distributions = None
    if degrees is not None:
        distributions = np.asarray(degrees, np.float64)
        check_degrees(distributions, names, where, locate)
    if logical is not None:
        logical = np.asarray(logical)
        check_labels(logical, names, where, locate)
        labels = logical.astype(np.uint8)
    else:
        labels = logical_labels(np.asarray(distributions))
    rows = np.arange(len(features), dtype=np.int32)
    return DistributionData(
        name,
        features,
        labels,
        distributions,
        names,
        None if feature_names is None else tuple(feature_names),
        rows if ids is None else check_ids(ids, len(features), where),
        labels_derived=logical is None,
    )


def write_distributions(
    path: Path, data: DistributionData, distributions: np.ndarray, *, keep_features: bool = False
) -> None:
    """Write label distributions of the rows of a data set, whole or not at all.

    `.csv`: `id`, a column for each label and, with `keep_features`, for each feature. `.npz`:
    `features`, `labels` (0/1), `distributions`, `label_names` and `ids`. `.mat` (version 5):
    `features`, `logicalLabel`, `labelDistribution`, `label_names` and `ids`. `open_distributions`
    reads all of them.

    Args:
      path: the file; its folder is created.
      data: the rows.
      distributions: [n, L], what is written in the place of the distributions of `data`.
      keep_features: whether `.csv` has the features.

    Raises:
      DataError: the file's ending is another; two columns of `.csv` would have one name; the
        features are too large for `.mat`.
      OSError: it cannot be written.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> np.savez(folder / "a.npz", features=[[0.5]], labels=[[1, 0]], label_names=["sea", "sky"])
      >>> data = open_distributions(folder / "a.npz")
      >>> write_distributions(folder / "b.csv", data, np.array([[0.75, 0.25]]))
      >>> (folder / "b.csv").read_text()
      'id,sea,sky\\n0,0.75,0.25\\n'
    """
    ending = path.suffix.lower()
    arrays: dict[str, Any] = {
        "features": data.features,
        "distributions": distributions,
        "ids": data.ids,
    }
    names = list(data.label_names)
    if ending == ".npz":
        with writing(path) as file:
            np.savez_compressed(file, labels=data.labels, label_names=np.array(names), **arrays)
    elif ending == ".mat":
        from scipy.io import savemat

        if data.features.nbytes >= 2**31:
            raise DataError(f"{path}: features of 2 GB and more do not fit into .mat; write .npz")
        fields = {
            "features": data.features,
            "logicalLabel": data.labels,
            "labelDistribution": distributions,
            "label_names": np.array(names, object),
            "ids": data.ids[:, None],
        }
        with writing(path) as file:
            savemat(file, fields, do_compression=True)
    elif ending == ".csv":
        _write_csv(path, data, distributions, keep_features)
    else:
        raise DataError(f"{path}: its form is told by its ending: {', '.join(ENDINGS)}")


def _write_csv(
    path: Path, data: DistributionData, distributions: np.ndarray, keep_features: bool
) -> None:
    header, columns = ["id", *data.label_names], [distributions.tolist()]
    if keep_features:
        width = data.features.shape[1]
        header += data.feature_names or [f"feature_{i}" for i in range(width)]
        # The shortest texts that come back as the same numbers.
        columns.append(data.features.astype("U32").tolist())
    repeated = next((name for name in header if header.count(name) > 1), None)
    if repeated is not None:
        raise DataError(
            f"{path}: two columns would be called {shorten(repeated)}; write .npz instead"
        )
    with writing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(header)
        for identity, *cells in zip(data.ids.tolist(), *columns, strict=True):
            rows.writerow([identity, *itertools.chain(*cells)])
        text.flush()
        text.detach()


def check_degrees(
    degrees: np.ndarray, names: Sequence[str], where: str, locate: Callable[[int], str]
) -> None:
    """Refuse degrees that are no distributions.

    Raises:
      DataError: naming the row and, where one is to blame, the label.

    Example:
      >>> check_degrees(np.array([[0.5, 0.4]]), ["a", "b"], "tiny.csv", lambda row: f"row {row}")
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: tiny.csv, row 0: the degrees sum to 0.9, not to 1 (within 0.001)
    """
    bad = ~(degrees >= 0)
    if bad.any():
        row, label = divmod(int(np.argmax(bad)), degrees.shape[1])
        value = degrees[row, label]
        problem = "is not a number" if np.isnan(value) else "is negative"
        raise DataError(
            f"{where}, {locate(row)}, label {shorten(names[label])}: the degree {value:.6g} "
            f"{problem}"
        )
    sums = degrees.sum(axis=1)
    off = ~(np.abs(sums - 1) <= SUM_TOLERANCE)
    if off.any():
        row = int(np.argmax(off))
        raise DataError(
            f"{where}, {locate(row)}: the degrees sum to {sums[row]:.6g}, not to 1 "
            f"(within {SUM_TOLERANCE:g})"
        )
