"""A study's results as tables: Markdown for reading, CSV for computing, LaTeX for papers."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmlcl.io import write_atomic
from jaxmlcl.studies._files import study_name
from jaxmlcl.studies._paired import against_best_baseline
from jaxmlcl.studies._runner import Cell, cells, told
from jaxmlcl.studies._sections import figure, replace_section, short
from jaxmlcl.studies._study import DataSet, Reference, Study, Table

_FREE = {"map": "mAP", "precision_at_1": "P@1"}
_CUT = {
    "hamming_accuracy": "HA",
    "example_f1": "ex-F1",
    "micro_f1": "mi-F1",
    "macro_f1": "ma-F1",
}
PROTOCOLS = {
    "best_on_val": "thresholds from validation",
    "fixed_0.5": "threshold 0.5",
    "paper": "paper protocol",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    values: dict[str, list[float]]
    """Measure, or PROTOCOL/MEASURE, to one value per seed."""
    seeds: tuple[int, ...] = ()
    """The seeds that the values are of; none for references."""
    trials: str = ""
    chosen: str = ""
    seconds: float | None = None
    source: str = ""
    note: str = ""
    scored: int | None = None
    """How many test rows, where it is not all of them."""


def write_tables(
    study: Study, name: str, folder: Path, document: Path, only: Sequence[str] = ()
) -> list[Path]:
    """Write what is known of a study: its part of a Markdown file, and CSV and LaTeX beside it.

    Args:
      study: the study.
      name: its name, or the path of its file, as it was asked for; the Markdown file holds one
        part for every name, and only that is replaced.
      folder: where its cells are.
      document: the Markdown file.
      only: TABLE, TABLE/SET or TABLE/SET/METHOD; everything if empty.

    Returns:
      The files that were written.
    """
    study = _part(study, folder, only)
    asked, name = name, study_name(name)
    values = document.parent / document.stem / f"{name}.csv"
    latex = values.with_suffix(".tex")
    checksums = values.with_name(f"{name}-data.csv")
    values.parent.mkdir(parents=True, exist_ok=True)
    text = _markdown(study, asked, folder, (values, checksums, latex), document.parent)
    replace_section(document, name, text)
    written = {
        values: _csv(study, folder),
        latex: _latex(study, folder),
        checksums: _data_csv(study, folder),
    }
    for path, content in written.items():
        write_atomic(path, content)
    return [document, *written]


def _part(study: Study, folder: Path, only: Sequence[str]) -> Study:
    """The tables, sets and methods that have a chosen cell."""
    chosen = cells(study, folder, only)
    tables = []
    for table in study.tables:
        here = [cell for cell in chosen if cell.table is table]
        sets = tuple(one for one in table.sets if any(cell.data is one for cell in here))
        methods = tuple(one for one in table.methods if any(cell.method is one for cell in here))
        if here:
            tables.append(dataclasses.replace(table, sets=sets, methods=methods))
    return dataclasses.replace(study, tables=tuple(tables))


def rows(table: Table, data: DataSet, folder: Path) -> Iterator[Row]:
    """A table's lines for one data set: references first, then methods as they stand in it."""
    for reference in table.references:
        if reference.data == data.name:
            yield _reference_row(reference)
    part = Study("", "", (dataclasses.replace(table, sets=(data,)),))
    for cell in cells(part, folder):
        yield from _rows_of(cell)


def unseen_rows(table: Table, data: DataSet, folder: Path) -> Iterator[Row]:
    """The lines of the test rows whose inputs do not occur in training, where they are wanted."""
    part = Study("", "", (dataclasses.replace(table, sets=(data,)),))
    for cell in cells(part, folder) if data.unseen else ():
        results = [result for result in cell.results() if "unseen" in result]
        if results:
            found = [result["unseen"] for result in results]
            seeds = tuple(result["seed"] for result in results)
            trials = str(len(cell.trials()))
            yield Row(
                cell.method.name, _values(found), seeds, trials=trials, scored=found[0]["rows"]
            )


def _reference_row(reference: Reference) -> Row:
    values = {name: [value] for name, value in reference.values.items()}
    return Row(reference.name, values, source=reference.source)


def _rows_of(cell: Cell) -> Iterator[Row]:
    reason = cell.method.leaves_out.get(cell.data.name)
    if reason:
        yield Row(cell.method.name, {}, note=f"not run: {reason}")
        return
    results = [result for result in cell.results() if "failed" not in result]
    trials = cell.trials()
    if not results:
        failed = len(trials) == len(cell.method.trials) and all("failed" in one for one in trials)
        yield Row(cell.method.name, {}, note="every trial failed" if failed else "not run")
        return
    seeds = tuple(result["seed"] for result in results)
    yield Row(
        cell.method.name,
        _values(results),
        seeds,
        trials=str(len(trials)),
        chosen=told({name: _tuple(value) for name, value in results[0]["choice"].items()}),
        seconds=sum(trial["seconds"] for trial in trials),
        note=""
        if len(results) == len(cell.seeds)
        else f"{len(results)} of {len(cell.seeds)} seeds",
    )
    for name in results[0].get("also", {}):
        values = _values([result["also"][name] for result in results])
        yield Row(name, values, seeds, trials="same run")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _values(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    # Records of an earlier version may lack a protocol that later ones have.
    protocols = list(dict.fromkeys(name for result in results for name in result["protocols"]))
    found: dict[str, list[float]] = {}
    for result in results:
        for name in _FREE:
            found.setdefault(name, []).append(_number(result["threshold_free"].get(name)))
        for protocol in protocols:
            measures = result["protocols"].get(protocol, {})
            for name in _CUT:
                key = f"{protocol}/{name}"
                found.setdefault(key, []).append(_number(measures.get(name)))
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def columns(table: Table) -> dict[str, str]:
    """Keys of the printed measures, with their headings."""
    found = dict(_FREE)
    for protocol in table.protocols:
        for name, heading in _CUT.items():
            found[f"{protocol}/{name}"] = heading
    return found


def _markdown(study: Study, name: str, folder: Path, files: Sequence[Path], base: Path) -> str:
    links = ", ".join(f"[{file.name}]({file.relative_to(base)})" for file in files)
    parts = [
        f"## {study.title}\n",
        study.text.strip() + "\n",
        f"Made by `jaxmlcl reproduce {name}`; the same figures by seed, and the data's checksums: "
        f"{links}.\n",
    ]
    for table in study.tables:
        parts += [f"### {table.title}\n", table.text.strip() + "\n"]
        parts.append(_conditions(table))
        for data in table.sets:
            parts += _set_part(table, data, folder)
    return "\n".join(parts) + "\n"


def _conditions(table: Table) -> str:
    seeds = ", ".join(map(str, table.seeds))
    told_of = "; ".join(f"{heading}: {PROTOCOLS[name]}" for name, heading in _groups(table).items())
    return (
        f"Seeds {seeds}; mean ± standard deviation over them where there are several. {told_of}. "
        "Under the paper protocol each threshold is chosen on the test rows themselves, as the "
        "published tables do; it is comparable with those and with nothing else.\n"
        if "paper" in table.protocols
        else f"Seeds {seeds}; mean ± standard deviation over them. {told_of}.\n"
    )


def _groups(table: Table) -> dict[str, str]:
    short = {"best_on_val": "val", "fixed_0.5": ".5", "paper": "paper"}
    return {name: f"({short[name]})" for name in table.protocols}


def _set_part(table: Table, data: DataSet, folder: Path) -> list[str]:
    lines = list(rows(table, data, folder))
    parts = [f"#### {table.title.split(':')[0]}: {data.name}\n"] if len(table.sets) > 1 else []
    if data.note:
        parts.append(data.note.strip() + "\n")
    if not any(line.values for line in lines if not line.source):
        return [*parts, "Not run: no results are at hand.\n"]
    parts.append(_lines_grid(table, lines))
    without = list(unseen_rows(table, data, folder))
    if without:
        parts.append(
            f"The same scores on the {without[0].scored} test rows whose inputs do not occur in "
            "training:\n"
        )
        parts.append(_lines_grid(table, without))
    sources: dict[str, list[str]] = {}
    for line in lines:
        if line.source:
            sources.setdefault(line.source, []).append(f"*{line.name}*")
    if sources:
        parts.append(
            "; ".join(f"{', '.join(names)}: {source}" for source, names in sources.items()) + ".\n"
        )
    chosen = [f"{line.name} {line.chosen}" for line in lines if line.chosen and line.trials != "1"]
    if chosen:
        parts.append("Chosen on validation: " + "; ".join(chosen) + ".\n")
    parts += [*_difference_lines(table, data, folder), _data_line(table, data, folder)]
    return parts


def _lines_grid(table: Table, lines: Sequence[Row]) -> str:
    keys = columns(table)
    group = _groups(table)
    headings = [
        f"{heading} {group[key.split('/')[0]]}" if "/" in key else heading
        for key, heading in keys.items()
    ]
    head = ["method", *headings, "trials", "seeds"]
    body = []
    for line in lines:
        count = max((len(values) for values in line.values.values()), default=0)
        name = f"*{line.name}*" if line.source else line.name
        if line.note:
            name += f" ({line.note})"
        own = ["", ""] if line.source else [line.trials, str(count or "")]
        body.append([name, *(figure(line.values.get(key)) for key in keys), *own])
    return _grid(head, body)


def _difference_lines(table: Table, data: DataSet, folder: Path) -> list[str]:
    part = Study("", "", (dataclasses.replace(table, sets=(data,)),))
    found = against_best_baseline(cells(part, folder))
    if found is None:
        return []
    baseline, differences = found
    told_of = (
        f"{one.method} {_signed(one.value)} [{_signed(one.low)}, {_signed(one.high)}], "
        f"p {one.p:.2g}"
        for one in differences
    )
    return [
        f"mAP less that of the best baseline on validation, {baseline}, with 95 % intervals and p "
        f"values of a paired bootstrap over the test rows: {'; '.join(told_of)}.\n"
    ]


def _signed(value: float) -> str:
    sign = "-" if value < 0 else "+"
    return sign + short(abs(value))


def _checksums(table: Table, data: DataSet, folder: Path) -> dict[str, Any]:
    """What is known of the splits: source, rows and SHA-256."""
    part = Study("", "", (dataclasses.replace(table, sets=(data,)),))
    for cell in cells(part, folder):
        for result in cell.results():
            if "data" in result:
                return result["data"]
    return {}


def _data_line(table: Table, data: DataSet, folder: Path) -> str:
    told_of = [
        f"{split} `{found['source']}` ({found['rows']} rows, sha256 {found['fingerprint'][:12]})"
        for split, found in _checksums(table, data, folder).items()
    ]
    return f"Data: {', '.join(told_of)}.\n" if told_of else ""


def _grid(head: list[str], body: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body)) + "\n"


def _csv(study: Study, folder: Path) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["table", "set", "method", "trials", "choice", "seed", "protocol", "measure", "value"]
    )
    for table in study.tables:
        for data in table.sets:
            lines = [(data.name, line) for line in rows(table, data, folder) if not line.source]
            lines += [(f"{data.name}, unseen", line) for line in unseen_rows(table, data, folder)]
            for where, line in lines:
                for key, values in line.values.items():
                    protocol, _, measure = key.rpartition("/")
                    for seed, value in zip(line.seeds, values, strict=True):
                        writer.writerow(
                            [
                                table.name,
                                where,
                                line.name,
                                line.trials,
                                line.chosen,
                                seed,
                                protocol,
                                measure,
                                "" if math.isnan(value) else f"{value:.6f}",
                            ]
                        )
    return buffer.getvalue()


def _data_csv(study: Study, folder: Path) -> str:
    """Source, rows and SHA-256 of every split."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "set", "split", "source", "rows", "sha256"])
    for table in study.tables:
        for data in table.sets:
            for split, found in _checksums(table, data, folder).items():
                told_of = [found["source"], found["rows"], found["fingerprint"]]
                writer.writerow([table.name, data.name, split, *told_of])
    return buffer.getvalue()


def _latex(study: Study, folder: Path) -> str:
    parts = ["% needs \\usepackage{booktabs}\n"]
    for table in study.tables:
        keys = columns(table)
        group = _groups(table)
        for data in table.sets:
            headings = [
                f"{heading} {group[key.split('/')[0]]}" if "/" in key else heading
                for key, heading in keys.items()
            ]
            seeds = ", ".join(map(str, table.seeds))
            parts.append(f"% {table.name}, {data.name}: seeds {seeds}\n")
            for split, found in _checksums(table, data, folder).items():
                parts.append(f"% {split}: {found['source']}, sha256 {found['fingerprint']}\n")
            parts += [
                f"\\begin{{table}}\n\\caption{{{_tex(table.title)} ({_tex(data.name)})}}\n",
                f"\\begin{{tabular}}{{l{'r' * (len(keys) + 1)}}}\n\\toprule\n",
                " & ".join(["method", *map(_tex, headings), "trials"]) + " \\\\\n\\midrule\n",
            ]
            for line in rows(table, data, folder):
                if line.values:
                    figures = (
                        figure(line.values.get(key)).replace(" ± ", "$\\pm$") for key in keys
                    )
                    parts.append(" & ".join([_tex(line.name), *figures, line.trials]) + " \\\\\n")
            parts.append("\\bottomrule\n\\end{tabular}\n\\end{table}\n")
    return "".join(parts)


def _tex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
