"""Mulan data sets: rows in an ARFF file, the labels among its columns listed in an XML file."""

from __future__ import annotations

import csv
import difflib
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arff
import numpy as np

from jaxmlcl.data._checks import MISSING, beside, fill_with_means, wants_mask, wants_means
from jaxmlcl.data.source import ArraySource, find_file, read_text, shorten
from jaxmlcl.errors import DataError

_QUOTED = r"'(?:[^'\\]|\\.)*'" + "|" + r'"(?:[^"\\]|\\.)*"'
_ATTRIBUTE = re.compile(rf"""({_QUOTED}|[^\s{{'"][^\s{{]*)\s*(.*)""")
_NOMINAL = re.compile(rf"""\s*({_QUOTED}|[^\s,'"{{}}]+)\s*(,|$)""")


def open_arff(path: Path, options: Mapping[str, str], places: Sequence[Path]) -> ArraySource:
    """Open an ARFF file with the XML list of its labels; see `open_source`.

    Which columns are labels is said by the XML alone. Labels keep the order of their columns in the
    ARFF file, as in Mulan. Features are the other columns: numeric ones and nominal {0,1} as they
    are, any other nominal one as one column per value, named `attribute=value`. They are float32.

    Args:
      path: the ARFF file; its rows are all dense or all sparse.
      options: `xml`, the list of labels. Left out, it is the XML file beside the ARFF file whose
        name is the same or begins it up to "-" or "_" (yeast.xml for yeast-train.arff), or else the
        only one there. `missing`, "mean" to put the mean of the known values of its column in the
        place of a missing feature; `unknown`, "mask" to take a missing label as unknown; left out,
        missing values are refused.
      places: where a relative `xml` is sought after the folder of the ARFF file.

    Returns:
      The rows in the order of the file.

    Raises:
      DataError: either file is not what it should be; the message names the line.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "tiny.xml").write_text('<labels><label name="sea"/></labels>')
      >>> _ = (folder / "tiny.arff").write_text('''@relation tiny
      ... @attribute sea {0,1}
      ... @attribute depth numeric
      ... @attribute colour {red,'dark blue'}
      ... @data
      ... 1,0.5,'dark blue'
      ... 0,2,red
      ... ''')
      >>> source = open_arff(folder / "tiny.arff", {}, [])
      >>> source.feature_names
      ('depth', 'colour=red', 'colour=dark blue')
      >>> source[0]["inputs"], source[0]["labels"]
      (array([0.5, 0. , 1. ], dtype=float32), array([1], dtype=uint8))

    Source: G. Tsoumakas et al., Mulan: A Java Library for Multi-Label Learning, JMLR 12, 2011.
    """
    lines = read_text(path).split("\n")
    attributes, start = _header(path, lines)
    label_list = _find_xml(path, options, places)
    labels = _label_columns(path, attributes, label_list)
    features = sorted(set(range(len(attributes))) - set(labels))
    if not features:
        raise DataError(f"{path}: every attribute is a label of {label_list}; no feature is left")
    fills = wants_means(options, str(path))
    masks = wants_mask(options, str(path))
    gaps = [*(features if fills else ()), *(labels if masks else ())]
    table, line_numbers = _table(path, lines, start, attributes, gaps)
    inputs, feature_names = _encode(table, attributes, features)
    if fills:
        inputs = fill_with_means(inputs, feature_names, str(path))
    return ArraySource(
        inputs,
        table[:, labels],
        name=path.stem,
        label_names=[attributes[column].name for column in labels],
        feature_names=feature_names,
        where=str(path),
        locate=lambda row: f"line {line_numbers[row]}",
        label_mask=~np.isnan(table[:, labels]) if masks else None,
    )


def read_features(
    path: Path, label_names: Collection[str]
) -> tuple[np.ndarray, list[str], list[int]]:
    """The features of an ARFF file, with or without labels, and without an XML file.

    Args:
      path: the file.
      label_names: attributes that are left out; their values do not matter.

    Returns:
      float32 [n, d], the `d` names, and the line of each row.

    Raises:
      DataError: the file is not what it should be; the message names the line.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "tiny.arff"
      >>> _ = path.write_text('@attribute sea {0,1}\\n@attribute depth real\\n@data\\n?,0.5')
      >>> read_features(path, {"sea"})
      (array([[0.5]], dtype=float32), ['depth'], [4])
    """
    lines = read_text(path).split("\n")
    attributes, start = _header(path, lines)
    labels = [j for j, attribute in enumerate(attributes) if attribute.name in label_names]
    features = sorted(set(range(len(attributes))) - set(labels))
    if not features:
        raise DataError(f"{path}: every attribute is a label; no feature is left")
    table, line_numbers = _table(path, lines, start, attributes, labels)
    return *_encode(table, attributes, features), line_numbers


def read_label_names(path: Path) -> list[str]:
    """The names in a Mulan XML file of labels, nested ones too, in the order of the file.

    Raises:
      DataError: the file is not XML, holds anything but labels, or names a label twice.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "labels.xml"
      >>> _ = path.write_text('''<labels xmlns="http://mulan.sourceforge.net/labels">
      ... <label name="animal"><label name="cat"/></label><label name="sky"/></labels>''')
      >>> read_label_names(path)
      ['animal', 'cat', 'sky']
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}, line {error.position[0]}: not well-formed XML: {error}") from None
    except (LookupError, ValueError) as error:  # the declared encoding
        raise DataError(f"{path}: not readable XML: {error}") from None
    names: list[str] = []
    for number, element in enumerate(root.iter()):
        tag = element.tag.rpartition("}")[2]
        # A misspelt element must not turn its label into a feature.
        if tag != ("label" if number else "labels"):
            raise DataError(
                f"{path}: element <{shorten(tag)[1:-1]}> found; a list of labels is <labels> "
                "with nothing but <label name=...> in it"
            )
        if number:
            name = element.get("name")
            if not name:
                raise DataError(f"{path}: label number {number} has no name")
            names.append(name)
    if not names:
        raise DataError(f"{path}: lists no labels")
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: label {shorten(repeated)} is listed more than once")
    return names


@dataclass(frozen=True)
class _Attribute:
    name: str
    values: tuple[str, ...] | None  # None: numeric
    line: int

    @property
    def is_category(self) -> bool:
        # Nominal {0,1} stands for its own number.
        return self.values is not None and not set(self.values) <= {"0", "1"}


# liac-arff reads the data section only. Its header patterns take exponential time on a damaged
# nominal declaration (22 values without the closing brace: 0.6 s, 30: minutes), it refuses tabs
# between the words of a declaration, and it does not say which attribute a bad value belongs to.
def _header(path: Path, lines: Sequence[str]) -> tuple[list[_Attribute], int]:
    # The attributes, and how many lines the header has.
    attributes: dict[str, _Attribute] = {}
    for number, line in enumerate(lines, start=1):
        keyword, _, rest = line.strip().replace("\t", " ").partition(" ")
        if not keyword or keyword.startswith("%"):
            continue
        if keyword.lower() == "@data":
            if not attributes:
                raise DataError(f"{path}, line {number}: @data before any @attribute")
            return list(attributes.values()), number
        if keyword.lower() == "@attribute":
            attribute = _attribute(rest.strip(), number, f"{path}, line {number}")
            first = attributes.setdefault(attribute.name, attribute)
            if first is not attribute:
                raise DataError(
                    f"{path}, line {number}: attribute {shorten(attribute.name)} is already "
                    f"declared on line {first.line}"
                )
        elif keyword.lower() != "@relation":
            raise DataError(
                f"{path}, line {number}: @relation, @attribute or @data expected, "
                f"found {shorten(keyword)}"
            )
    raise DataError(f"{path}: no @data line; the file is cut off or is not ARFF")


def _attribute(text: str, line: int, where: str) -> _Attribute:
    match = _ATTRIBUTE.fullmatch(text)
    if not match or not match[2]:
        raise DataError(f"{where}: expected '@attribute NAME TYPE', found {shorten(text)}")
    name, kind = _unquote(match[1]), match[2]
    if kind.lower() in ("numeric", "real", "integer"):
        return _Attribute(name, None, line)
    if not (kind.startswith("{") and kind.endswith("}")):
        raise DataError(
            f"{where}: attribute {shorten(name)} has type {shorten(kind)}; "
            "numeric and nominal {a,b,...} ones can be used"
        )
    values: list[str] = []
    body, position, comma = kind[1:-1], 0, ","
    while comma:
        value = _NOMINAL.match(body, position)
        if not value:
            raise DataError(
                f"{where}: the values of attribute {shorten(name)} cannot be read "
                f"at {shorten(body[position:], 20)}"
            )
        values.append(_unquote(value[1]))
        position, comma = value.end(), value[2]
    if len(set(values)) != len(values):
        raise DataError(f"{where}: attribute {shorten(name)} declares a value twice")
    return _Attribute(name, tuple(values), line)


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text[:1] in ("'", '"') else text


def _find_xml(path: Path, options: Mapping[str, str], places: Sequence[Path]) -> Path:
    if "xml" in options:
        return find_file(options["xml"], [path.parent, *places], hint=False)
    found, count = beside(path, ".xml")
    if found is not None:
        return found
    problem = "several XML files" if count else "no XML file with the list of labels"
    raise DataError(f"{path}: {problem} beside it; name one with '?xml=PATH'")


def _label_columns(path: Path, attributes: Sequence[_Attribute], label_list: Path) -> list[int]:
    column_of = {attribute.name: column for column, attribute in enumerate(attributes)}
    columns: list[int] = []
    absent: list[str] = []
    for name in read_label_names(label_list):
        # Some lists hold names as the ARFF file writes them, with quotes.
        column = column_of.get(name, column_of.get(_unquote(name)))
        if column is None:
            absent.append(name)
        else:
            columns.append(column)
    if absent:
        near = difflib.get_close_matches(absent[0], column_of, n=1)
        raise DataError(
            f"{label_list}: {len(absent)} label(s) are not attributes of {path}, the first is "
            f"{shorten(absent[0])}" + (f" (did you mean {shorten(near[0])}?)" if near else "")
        )
    for column in columns:
        label = attributes[column]
        if label.is_category:
            raise DataError(
                f"{path}, line {label.line}: label {shorten(label.name)} has the values "
                f"{shorten(','.join(label.values or ()))}; labels are {{0,1}}"
            )
    return sorted(set(columns))


def _table(
    path: Path,
    lines: Sequence[str],
    start: int,
    attributes: Sequence[_Attribute],
    may_miss: Sequence[int],
) -> tuple[np.ndarray, list[int]]:
    # All columns as numbers, categories by their position: [n, columns], and the line of each row.
    # What is missing in the columns `may_miss` is NaN.
    gaps = frozenset(may_miss)
    categories = {
        column: {value: float(code) for code, value in enumerate(attribute.values or ())}
        for column, attribute in enumerate(attributes)
        if attribute.is_category
    }
    # What a sparse row leaves out is 0, or the first value that is declared.
    left_out = np.zeros(len(attributes), np.float32)
    for column, attribute in enumerate(attributes):
        if attribute.values and not attribute.is_category:
            left_out[column] = float(attribute.values[0])
    table: list[np.ndarray] = []
    numbers: list[int] = []
    for number, columns, cells in _cells(path, lines, start, len(attributes)):
        if gaps and None in cells:
            cells = [
                math.nan if cell is None and column in gaps else cell
                for column, cell in zip(columns, cells, strict=True)
            ]
        for column, codes in categories.items():
            if column in columns:
                place = columns.index(column)
                if isinstance(cells[place], float):  # missing
                    continue
                code = codes.get(cells[place])
                if code is None:
                    raise _bad_cell(path, number, attributes[column], cells[place])
                cells[place] = code
        row = left_out.copy()
        try:
            values = [float(cell) for cell in cells]
        except (TypeError, ValueError):
            place = next(place for place, cell in enumerate(cells) if not _is_number(cell))
            raise _bad_cell(path, number, attributes[columns[place]], cells[place]) from None
        with np.errstate(over="ignore"):  # too large becomes infinite, which is refused later
            row[slice(None) if isinstance(columns, range) else columns] = values
        table.append(row)
        numbers.append(number)
    if not table:
        raise DataError(f"{path}: no rows after @data on line {start}")
    result = np.stack(table)
    _check_binary(path, result, numbers, attributes)
    return result, numbers


def _cells(
    path: Path, lines: Sequence[str], start: int, count: int
) -> Iterator[tuple[int, Sequence[int], list[Any]]]:
    # For each row its line number, the columns it names, and their texts (None: missing).
    body = enumerate(lines[start:], start=start + 1)
    rows = [(number, row) for number, line in body if (row := line.strip()) and row[0] != "%"]
    sparse = bool(rows) and rows[0][1].startswith("{")
    number, row = start, ""

    def declared() -> Iterator[str]:
        # Every column as text, so that this module says what is wrong with a cell, and where.
        nonlocal number, row
        yield "@relation rows"
        yield from (f"@attribute a{column} string" for column in range(count))
        yield "@data"
        for number, row in rows:
            if row.startswith("{") is not sparse:
                raise DataError(f"{path}, line {number}: sparse {{...}} and dense rows are mixed")
            yield row

    try:
        decoded = arff.load(declared(), return_type=arff.LOD_GEN if sparse else arff.DENSE_GEN)
        for values in decoded["data"]:
            if not sparse:
                yield number, range(count), values
                continue
            if values and len(values) != row.count(",") + 1 and not re.search("['\"]", row):
                raise DataError(f"{path}, line {number}: a column is given twice")
            yield number, list(values), list(values.values())
    except arff.BadDataFormat:
        wanted = f"column numbers below {count}" if sparse else f"{count} values"
        raise DataError(f"{path}, line {number}: expected {wanted}: {shorten(row, 40)}") from None
    except (arff.ArffException, ValueError, csv.Error):
        raise DataError(f"{path}, line {number}: not an ARFF row: {shorten(row, 40)}") from None


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _bad_cell(path: Path, number: int, attribute: _Attribute, cell: Any) -> DataError:
    where = f"{path}, line {number}, attribute {shorten(attribute.name)}"
    if cell is None:
        return DataError(f"{where}: {MISSING}")
    if attribute.values is None:
        return DataError(f"{where}: {shorten(str(cell))} is not a number")
    values = shorten(",".join(attribute.values))[1:-1]
    return DataError(f"{where}: {shorten(str(cell))} is not one of {{{values}}}")


def _check_binary(
    path: Path, table: np.ndarray, numbers: Sequence[int], attributes: Sequence[_Attribute]
) -> None:
    # Nominal {0,1} was read as numbers; labels among them are checked with the others.
    binary = [j for j, attribute in enumerate(attributes) if attribute.values is not None]
    binary = [j for j in binary if not attributes[j].is_category]
    wrong = ~np.isin(table[:, binary], (0, 1)) & ~np.isnan(table[:, binary])
    if wrong.any():
        row, place = divmod(int(np.argmax(wrong)), wrong.shape[1])
        column = binary[place]
        raise _bad_cell(path, numbers[row], attributes[column], f"{table[row, column]:g}")


def _encode(
    table: np.ndarray, attributes: Sequence[_Attribute], columns: Sequence[int]
) -> tuple[np.ndarray, list[str]]:
    # Feature columns and their names, categories as one column per value.
    parts: list[np.ndarray] = []
    names: list[str] = []
    for column in columns:
        attribute = attributes[column]
        part = table[:, column : column + 1]
        if attribute.is_category and attribute.values:
            names += [f"{attribute.name}={value}" for value in attribute.values]
            known = (part == np.arange(len(attribute.values))).astype(table.dtype)
            part = np.where(np.isnan(part), part, known)
        else:
            names.append(attribute.name)
        parts.append(part)
    return np.hstack(parts), names
