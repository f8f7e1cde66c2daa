"""A folder of images with `labels.csv` or `labels.jsonl`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlcl.data._checks import shorten
from jaxmlcl.data.images._source import EncodedSource, FileSource, choice, find_folder, finish
from jaxmlcl.data.source import read_text
from jaxmlcl.errors import DataError

_FILE, _LABELS, _UNKNOWN, _SPLIT = "file", "labels", "unknown", "split"
_NOTHING = frozenset({"", "?", "na", "nan"})


class _Row(NamedTuple):
    place: str
    file: str
    positive: tuple[str, ...]
    unknown: tuple[str, ...]
    split: str | None


def open_folder(body: str, options: Mapping[str, str], places: Sequence[Path]) -> EncodedSource:
    """Open the images that a folder's `labels.csv` or `labels.jsonl` lists.

    The CSV has a column `file`, and either a column `labels` with names between semicolons, or a
    column of 0 and 1 for each label. Each line of the JSONL is an object with `file`, `labels`, a
    list of names, and perhaps `unknown`, another. Both may have `split`. Files are relative to the
    folder; ids are the places of the rows.

    Args:
      body: the folder.
      options: `split`, the rows to open, by their `split`; all if left out. Labels are those of all
        rows, so splits agree: in the order of the columns, or sorted by name. `unknown=mask` takes
        an empty cell as an unknown label. `empty` and `missing`: see `finish`.
      places: folders in which a relative path is sought.

    Returns:
      The images in the order of the file.

    Raises:
      DataError: folder or file that is not there or not as described; the message names the line.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "labels.csv").write_text("file,sea,sky\\na.jpg,1,0\\nb.jpg,1,1\\n")
      >>> source = open_folder(str(folder), {}, [])
      >>> source.metadata.label_names, source.labels().tolist()
      (('sea', 'sky'), [[1, 0], [1, 1]])
    """
    where = f"folder:{body}"
    folder = find_folder(body, places, where)
    table, lines = folder / "labels.csv", folder / "labels.jsonl"
    if table.is_file() and lines.is_file():
        raise DataError(f"{where}: both labels.csv and labels.jsonl are there; leave one")
    if not table.is_file() and not lines.is_file():
        raise DataError(f"{where}: neither labels.csv nor labels.jsonl is there")
    masked = "unknown" in options
    if masked:
        choice(options, "unknown", ("mask",), where)
    names, rows = _of_csv(table, masked) if table.is_file() else _of_jsonl(lines, masked)
    ids = np.arange(len(rows))
    if "split" in options:
        splits = sorted({row.split for row in rows if row.split is not None})
        ids = np.array([i for i, row in enumerate(rows) if row.split == options["split"]], int)
        if len(ids) == 0:
            told = f"; there are {', '.join(splits)}" if splits else "; no row has a split"
            raise DataError(f"{where}: no row of split {shorten(options['split'])}{told}")
    columns = {name: column for column, name in enumerate(names)}
    labels = np.zeros((len(ids), len(names)), np.uint8)
    known = np.ones(labels.shape, bool)
    for place, row in enumerate(ids):
        labels[place, [columns[name] for name in rows[row].positive]] = 1
        known[place, [columns[name] for name in rows[row].unknown]] = False
    source = FileSource(
        folder,
        [rows[row].file for row in ids],
        labels,
        name=folder.name if "split" not in options else f"{folder.name}-{options['split']}",
        label_names=names,
        ids=ids,
        where=where,
        label_mask=known,
    )
    return finish(source, options, where)


def _of_csv(path: Path, masked: bool) -> tuple[list[str], list[_Row]]:
    reader = csv.DictReader(read_text(path).splitlines(), strict=True)
    header = list(reader.fieldnames or ())
    if _FILE not in header:
        raise DataError(f"{path}: no column 'file' in its first line")
    if len(set(header)) < len(header):
        repeated = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}: the column {shorten(repeated)} occurs more than once")
    columns = [name for name in header if name not in (_FILE, _SPLIT, _LABELS)]
    listed = _LABELS in header
    if listed and columns:
        raise DataError(f"{path}: it has a column 'labels' and others, {shorten(columns[0])}")
    rows: list[_Row] = []
    for cells, place in _lines(reader, path):
        if listed:
            names = [name.strip() for name in cells[_LABELS].split(";")]
            found = _Row(place, cells[_FILE], tuple(filter(None, names)), (), cells.get(_SPLIT))
        else:
            positive = [name for name in columns if cells[name].strip() == "1"]
            empty = [name for name in columns if cells[name].strip().lower() in _NOTHING]
            for name in columns:
                if name not in empty and cells[name].strip() not in ("0", "1"):
                    told = shorten(cells[name])
                    raise DataError(f"{place}, label {shorten(name)}: {told} is not 0 or 1")
            if empty and not masked:
                raise DataError(
                    f"{place}, label {shorten(empty[0])}: no value; fill it in, or write "
                    "?unknown=mask"
                )
            row = (tuple(positive), tuple(empty))
            found = _Row(place, cells[_FILE], *row, cells.get(_SPLIT))
        rows.append(found)
    return _checked(columns or None, rows, path)


def _lines(reader: Any, path: Path) -> Iterator[tuple[dict[str, str], str]]:
    try:
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if None in cells or None in cells.values():
                raise DataError(f"{place}: another number of cells than in the first line")
            yield cells, place
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None


def _of_jsonl(path: Path, masked: bool) -> tuple[list[str], list[_Row]]:
    rows: list[_Row] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from None
        if not isinstance(found, dict) or not isinstance(found.get(_FILE), str):
            raise DataError(f"{place}: not an object with a text 'file'")
        for name in (_LABELS, _UNKNOWN):
            value = found.setdefault(name, [])
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise DataError(f"{place}: {name!r} is not a list of names")
        if found[_UNKNOWN] and not masked:
            raise DataError(f"{place}: it has unknown labels; write ?unknown=mask")
        split = found.get(_SPLIT)
        if split is not None and not isinstance(split, str):
            raise DataError(f"{place}: 'split' is not a text")
        rows.append(_Row(place, found[_FILE], tuple(found[_LABELS]), tuple(found[_UNKNOWN]), split))
    return _checked(None, rows, path)


def _checked(names: list[str] | None, rows: list[_Row], path: Path) -> tuple[list[str], list[_Row]]:
    """Names of the labels, sorted where no column says them, and the rows, no file twice."""
    if not rows:
        raise DataError(f"{path}: it lists no image")
    if names is None:
        names = sorted({name for row in rows for name in (*row.positive, *row.unknown)})
    if not names:
        raise DataError(f"{path}: no image has a label")
    seen: dict[str, str] = {}
    for row in rows:
        if row.file in seen:
            raise DataError(f"{row.place}: {shorten(row.file)} is listed twice")
        seen[row.file] = row.place
    return names, rows
