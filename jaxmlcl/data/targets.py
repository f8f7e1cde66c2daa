"""What is learnt in the place of 0/1 labels: label distributions from a file beside a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlcl.data._checks import check_ids, check_numbers, shorten
from jaxmlcl.data.distributions import DEGREES, NAMES
from jaxmlcl.data.source import ArraySource, Source, read_text
from jaxmlcl.errors import DataError

_ID = "id"


class _Targets(NamedTuple):
    degrees: np.ndarray
    """[n, L]"""
    names: Sequence[str] | None
    """The labels of the columns; None where the file does not say."""
    ids: np.ndarray | None
    """[n]; None where rows are in the order of the source."""


def with_targets(source: Source, path: Path, where: str) -> ArraySource:
    """The source with targets from a file, as `open_source`'s option `targets` asks for.

    Labels are found by name where the file has names, rows by id where it has ids; a file may have
    rows and columns beyond those of the source.

    Args:
      source: a source in memory.
      path: `.csv`, with a column for each label and perhaps `id`; `.npz` or `.mat`, with
        `distributions` (or `labelDistribution`), [n, L], perhaps `label_names` and `ids`.
      where: the URI, for messages.

    Raises:
      DataError: the source is not in memory; the file is not as described, lacks a label or a row
        of the source, or holds a number outside [0, 1].

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "enhanced.csv"
      >>> _ = path.write_text("id,sky,sea\\n1,.2,.8\\n0,.9,.1\\n")
      >>> names = ["sea", "sky"]
      >>> source = ArraySource([[1.0], [2.0]], [[0, 1], [1, 0]], name="t", label_names=names)
      >>> with_targets(source, path, "t").arrays()["targets"]
      array([[0.1, 0.9],
             [0.8, 0.2]], dtype=float32)
    """
    arrays: Any = getattr(source, "arrays", None)
    if arrays is None:
        raise DataError(f"{where}: targets belong to sources that fit in memory")
    whole, labels = arrays(), source.metadata.label_names
    ending = path.suffix.lower()
    if ending == ".csv":
        found = _of_csv(path, labels)
    elif ending in (".npz", ".mat"):
        found = _of_fields(path, ending)
    else:
        raise DataError(f"{path}: targets are read from .csv, .npz and .mat")
    columns = _columns(found, labels, path)
    rows = _rows(found, whole["ids"], path, where)
    return ArraySource(
        whole["inputs"],
        whole["labels"],
        name=source.metadata.name,
        label_names=labels,
        feature_names=getattr(source, "feature_names", None),
        ids=whole["ids"],
        where=str(path),
        locate=lambda row: f"id {whole['ids'][row]}",
        label_mask=whole.get("label_mask"),
        targets=found.degrees[rows][:, columns],
        # Ids are given here also where the source made them itself, which its fingerprint knows.
        rows_fingerprint=source.metadata.fingerprint,
    )


def _of_csv(path: Path, labels: Sequence[str]) -> _Targets:
    from jaxmlcl.data.table import csv_numbers, csv_rows

    (header, _), *rest = csv_rows(read_text(path).split("\n"), str(path))
    missing = [name for name in labels if name not in header]
    if missing:
        raise DataError(f"{path}: no column {shorten(missing[0])}, which is a label of the source")
    # Other columns may hold anything.
    wanted = [*labels, *([_ID] if _ID in header and _ID not in labels else [])]
    places = [header.index(name) for name in wanted]
    cells = [[row[place] for place in places] for row, _ in rest]
    numbers = csv_numbers(str(path), wanted, cells, [line for _, line in rest])
    ids = numbers[:, len(labels)] if len(wanted) > len(labels) else None
    if ids is not None and (ids == np.floor(ids)).all():
        ids = ids.astype(np.int64)
    return _Targets(numbers[:, : len(labels)], labels, ids)


def _of_fields(path: Path, ending: str) -> _Targets:
    if ending == ".mat":
        from jaxmlcl.data.matlab import read_mat

        fields, held = read_mat(path, (*DEGREES, "ids"), NAMES)
        read: dict[str, Any] = dict(fields)
        if "ids" in read:
            # MATLAB has no vectors, and counts in floating point.
            read["ids"] = np.ravel(read["ids"]).astype(np.int64)
    else:
        from jaxmlcl.data.numpy_files import npz_array, npz_names, strings

        held = npz_names(path)
        read = {n: npz_array(path, n) for n in (*DEGREES, *NAMES, "ids") if n in held}
        read |= {name: strings(read[name], path) for name in NAMES if name in read}
    degrees = [read[name] for name in DEGREES if name in read]
    if len(degrees) != 1:
        listed = ", ".join(held[:8]) or "nothing"
        raise DataError(
            f"{path}: targets are one field {' or '.join(DEGREES)}; the file holds {listed}"
        )
    array = check_numbers(degrees[0], f"{path}, targets")
    if array.ndim != 2:
        raise DataError(f"{path}: targets have shape {array.shape}, expected [n, L]")
    names = next((read[name] for name in NAMES if name in read), None)
    if names is not None and len(names) != array.shape[1]:
        raise DataError(f"{path}: {len(names)} label names for {array.shape[1]} columns of targets")
    return _Targets(array, names, read.get("ids"))


def _columns(found: _Targets, labels: Sequence[str], path: Path) -> list[int]:
    if found.names is None:
        if found.degrees.shape[1] != len(labels):
            raise DataError(
                f"{path}: {found.degrees.shape[1]} columns of targets for {len(labels)} labels"
            )
        return list(range(len(labels)))
    names = list(found.names)
    missing = [name for name in labels if name not in names]
    if missing:
        raise DataError(f"{path}: no label {shorten(missing[0])}, which is one of the source")
    return [names.index(name) for name in labels]


def _rows(found: _Targets, wanted: np.ndarray, path: Path, where: str) -> np.ndarray:
    if found.ids is None:
        if len(found.degrees) != len(wanted):
            raise DataError(
                f"{path}: {len(found.degrees)} rows of targets without ids for the {len(wanted)} "
                f"rows of {where}"
            )
        return np.arange(len(wanted))
    ids = check_ids(found.ids, len(found.degrees), str(path))
    order = np.argsort(ids)
    places = np.searchsorted(ids[order], wanted)
    missing = (places == len(ids)) | (ids[order][np.minimum(places, len(ids) - 1)] != wanted)
    if missing.any():
        raise DataError(
            f"{path}: no row with id {wanted[np.argmax(missing)]}, which is one of {where}"
        )
    return order[places]
