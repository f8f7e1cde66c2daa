"""Tables with a header, as CSV: label columns by name, all others features."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmlcl.data._checks import (
    MISSING,
    beside,
    columns_of,
    fill_with_means,
    wants_mask,
    wants_means,
)
from jaxmlcl.data.source import ArraySource, read_text, shorten
from jaxmlcl.errors import DataError

# Cells that stand for nothing, in lower case; "nan" is a number to Python.
_NOTHING = frozenset({"", "?", "na"})


def open_csv(path: Path, options: Mapping[str, str], places: Sequence[Path]) -> ArraySource:
    """Open a CSV file whose first line names the columns; see `open_source`.

    Args:
      path: the file; fields are separated by commas and may stand in double quotes.
      options: `labels`, the label columns as `a,b` or `prefix*`; left out, a JSON list of their
        names beside the file, `birds.labels.json` for `birds.csv` and `birds-train.csv`. `id`, a
        column of different whole numbers that become the ids. `missing`, "mean" to put the mean of
        the known values of its column in the place of a missing feature. `unknown`, "mask" to take
        a missing label as unknown. A cell is missing that is empty, `?`, `NA` or `NaN`.
      places: not used.

    Returns:
      The rows in the order of the file; features are float32.

    Raises:
      DataError: the file is not as described; the message names line and column.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.csv"
      >>> _ = path.write_text('''number,depth,"is sea","is sky"
      ... 7,0.5,1,0
      ... 9,2,1,1
      ... ''')
      >>> source = open_csv(path, {"labels": "is*", "id": "number"}, [])
      >>> source.metadata.label_names, source.feature_names
      (('is sea', 'is sky'), ('depth',))
      >>> source[1]["inputs"], source[1]["labels"], source[1]["id"]
      (array([2.], dtype=float32), array([1, 1], dtype=uint8), 9)
    """
    del places
    table = read_table(path, options)
    return ArraySource(
        table.features,
        table.labels,
        name=path.stem,
        label_names=table.label_names,
        feature_names=table.feature_names,
        ids=table.ids,
        where=str(path),
        locate=table.locate,
        label_mask=table.label_mask,
    )


class Table(NamedTuple):
    """A CSV file taken apart; nothing is known yet of what its labels may be."""

    features: np.ndarray
    """float32 [n, d]"""
    labels: np.ndarray
    """float64 [n, L], NaN where unknown"""
    label_names: list[str]
    feature_names: list[str]
    ids: np.ndarray | None
    label_mask: np.ndarray | None
    lines: list[int]

    def locate(self, row: int) -> str:
        """A row in words."""
        return f"line {self.lines[row]}"


def read_table(path: Path, options: Mapping[str, str]) -> Table:
    """The columns of a CSV file; arguments and errors are those of `open_csv`."""
    where = str(path)
    header, rows, lines = _rows(path)
    labels = _label_columns(path, header, options)
    identity = columns_of(options["id"], header, where) if "id" in options else []
    if len(identity) > 1 or set(identity) & set(labels):
        raise DataError(f"{path}: option id={shorten(options['id'])} must be one column, no label")
    features = sorted(set(range(len(header))) - {*labels, *identity})
    if not features:
        raise DataError(f"{path}: every column is a label or the id; no feature is left")
    fills = wants_means(options, where)
    masks = wants_mask(options, where)
    gaps = frozenset([*(features if fills else ()), *(labels if masks else ())])
    table = csv_numbers(where, header, rows, lines, gaps)
    names = [header[column] for column in features]
    with np.errstate(over="ignore"):  # too large becomes infinite, which the source refuses
        inputs = table[:, features].astype(np.float32)
    return Table(
        fill_with_means(inputs, names, where) if fills else inputs,
        table[:, labels],
        [header[column] for column in labels],
        names,
        _ids(path, header[identity[0]], table[:, identity[0]], lines) if identity else None,
        ~np.isnan(table[:, labels]) if masks else None,
        lines,
    )


def csv_rows(lines: Iterable[str], where: str) -> Iterator[tuple[list[str], int]]:
    """The header of a CSV text, then its rows, each with the line on which it ends.

    Args:
      lines: the text's lines.
      where: what messages call it, such as the file.

    Raises:
      DataError: not CSV, a column without a name or with another's, or a row of another length.

    Example:
      >>> list(csv_rows(["a,b", "", "1,2"], "tiny.csv"))
      [(['a', 'b'], 1), (['1', '2'], 3)]
    """
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    try:
        for row in reader:
            if not row:
                continue
            if not header:
                header = _header(row, where)
                yield header, reader.line_num
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}, line {reader.line_num}: {len(row)} fields, the header has "
                    f"{len(header)} columns"
                )
            yield row, reader.line_num
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}: not CSV: {error}") from None
    if not header:
        raise DataError(f"{where}: is empty; the first line names the columns")


def _header(row: Sequence[str], where: str) -> list[str]:
    header = [name.strip() for name in row]
    seen: set[str] = set()
    for column, name in enumerate(header):
        if not name:
            raise DataError(f"{where}, line 1: column {column + 1} has no name")
        if name in seen:
            raise DataError(f"{where}, line 1: column {shorten(name)} occurs more than once")
        seen.add(name)
    return header


def _rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    # Header, rows, and the line on which each row ends.
    (header, _), *rest = csv_rows(read_text(path).split("\n"), str(path))
    if not rest:
        raise DataError(f"{path}: no rows below the header")
    return header, [row for row, _ in rest], [line for _, line in rest]


def _label_columns(path: Path, header: Sequence[str], options: Mapping[str, str]) -> list[int]:
    if "labels" in options:
        return columns_of(options["labels"], header, str(path))
    listed, count = beside(path, ".labels.json")
    if listed is None:
        problem = "several files" if count else "no file"
        raise DataError(
            f"{path}: which columns are labels? {problem} *.labels.json beside it; write "
            "'?labels=a,b' or '?labels=prefix*'"
        )
    try:
        names = json.loads(read_text(listed))
    except ValueError as error:
        raise DataError(f"{listed}: not JSON: {error}") from None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise DataError(f'{listed}: expected a list of column names such as ["sea", "sky"]')
    columns: list[int] = []
    for name in names:
        if name not in header:
            raise DataError(f"{listed}: {shorten(name)} is not a column of {path}")
        columns.append(list(header).index(name))
    return sorted(set(columns))


def csv_numbers(
    where: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    lines: Sequence[int],
    may_miss: frozenset[int] = frozenset(),
) -> np.ndarray:
    """The numbers in the cells of rows, float64 [n, columns].

    Args:
      where: what messages call the text, such as the file.
      header: the names of the columns.
      rows: the cells of each row.
      lines: the line of each row.
      may_miss: the columns in which a missing cell is NaN.

    Raises:
      DataError: a cell is not a number; the message names line and column.

    Example:
      >>> csv_numbers("tiny.csv", ["a", "b"], [["1", "2e3"]], [2])
      array([[1.e+00, 2.e+03]])
    """
    table = np.empty((len(rows), len(header)))
    for row, (cells, line) in enumerate(zip(rows, lines, strict=True)):
        try:
            table[row] = [float(cell) for cell in cells]
        except ValueError:
            for column, cell in enumerate(cells):
                table[row, column] = _number(cell, column in may_miss, where, line, header[column])
    return table


def _number(cell: str, may_miss: bool, where: str, line: int, name: str) -> float:
    where = f"{where}, line {line}, column {shorten(name)}"
    if cell.strip().lower() in _NOTHING:
        if may_miss:
            return math.nan
        raise DataError(f"{where}: {MISSING}")
    try:
        return float(cell)
    except ValueError:
        raise DataError(f"{where}: {shorten(cell)} is not a number") from None


def _ids(path: Path, name: str, values: np.ndarray, lines: Sequence[int]) -> np.ndarray:
    wrong = ~((values >= 0) & (values < 2**31) & (values == np.floor(values)))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{path}, line {lines[row]}, column {shorten(name)}: {values[row]:g} is not an id, a "
            "whole number from 0 to 2147483647"
        )
    return values.astype(np.int64)
