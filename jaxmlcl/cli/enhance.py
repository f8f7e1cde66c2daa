"""`jaxmlcl enhance SOURCE --method NAME -o FILE`: label distributions from 0/1 labels."""

from __future__ import annotations

import ast
import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlcl.cli import Parser, near
from jaxmlcl.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from jaxmlcl.data import DistributionData
    from jaxmlcl.enhancement import Enhancer

_ABOUT = """\
Turn the 0/1 labels of SOURCE into label distributions: how far each label describes its row, the
degrees of a row summing to 1. FILE is written whole or not at all; one that is there is replaced.
Where SOURCE has true distributions, the result is measured against them, beside what needs no
method: equal degrees, and two that look at the labels alone.
"""
_SOURCE = """\
features with 0/1 labels or label distributions: a MATLAB, NPZ, CSV, ARFF or HDF5 file, or another
source of vectors such as "openml:NAME?labels=a,b"
"""
_METHOD = "conle, fcm, glle, km, lesc, levi or lp"
_OUTPUT = """\
file to write: .csv (id and a column for each label), .npz or .mat (also features and labels); any
of them can be the targets of a training source, "SOURCE?targets=FILE"
"""


def run(words: list[str]) -> None:
    """Enhance, write the file, and say what was done."""
    parser = Parser("jaxmlcl enhance", _ABOUT)
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    parser.add_argument("--method", metavar="NAME", required=True, help=_METHOD)
    parser.add_argument("-o", dest="output", metavar="FILE", type=Path, required=True, help=_OUTPUT)
    parser.add_argument(
        "--labels", metavar="COLUMNS", help="of a CSV file, the label columns: a,b or prefix*"
    )
    parser.add_argument(
        "--keep-features", action="store_true", help="write the features into .csv too"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of methods that draw (default: 0)")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyper-parameter of the method; may be repeated",
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="FOLDER",
        help="folder that relative paths start from (default: JAXMLCL_DATA, then here)",
    )
    options = parser.read(words)
    if options.seed is not None and not 0 <= options.seed < 2**32:
        parser.error(f"argument --seed: {options.seed} is not from 0 to 2^32 - 1")
    # Imported here, so that help and mistakes are told at once.
    from jaxmlcl.data.distributions import ENDINGS, open_distributions, write_distributions
    from jaxmlcl.training.tables import check_ending

    check_ending(options.output, ENDINGS)
    if options.keep_features and options.output.suffix.lower() != ".csv":
        parser.error(f"--keep-features is for .csv; {options.output} has the features anyway")
    check_output(options.output, options.source, options.root)
    enhancer = made(options.method, options.settings, options.seed)
    data = open_distributions(options.source, labels=options.labels, root=options.root)
    started = time.perf_counter()
    try:
        found = enhancer.fit_transform(data.features, data.labels)
    except (TypeError, ValueError) as error:
        if not options.settings:
            raise
        raise UserError(f"{options.method}: {error}; see --set") from error
    seconds = time.perf_counter() - started
    write_distributions(options.output, data, found, keep_features=options.keep_features)
    rows, width = found.shape
    drawn = f", seed {options.seed or 0}" if enhancer.seeded else ""
    derived = "; its labels are those of its distributions" if data.labels_derived else ""
    print(
        f"{enhancer.title}: {rows} rows, {width} labels, {seconds:.1f} s{drawn}{derived}; "
        f"written: {options.output}"
    )
    if data.distributions is not None:
        for line in table(measured(enhancer.title, found, data)):
            print(line)


def check_output(path: Path, source: str, root: str | None) -> None:
    """Refuse to replace the source, or a folder.

    Raises:
      UserError: FILE is one of them.
    """
    from jaxmlcl.data.source import find_file, search_places

    if path.is_dir():
        raise UserError(f"{path}: is a folder; -o wants the name of a file")
    same = False
    with contextlib.suppress(UserError, OSError):
        same = os.path.samefile(path, find_file(source.partition("?")[0], search_places(root)))
    if same:
        raise UserError(f"{path}: is SOURCE itself; write to another file")


def made(method: str, settings: Sequence[str], seed: int | None) -> Enhancer:
    """The enhancer of that name with these hyper-parameters.

    Raises:
      UserError: there is no such method or hyper-parameter.
    """
    from jaxmlcl.enhancement import ENHANCERS

    if method not in ENHANCERS:
        known = ", ".join(sorted(ENHANCERS))
        raise UserError(
            f'argument --method: "{method}" is none of {known}{near(method, ENHANCERS)}'
        )
    enhancer = ENHANCERS[method]()
    known_names = sorted(enhancer.get_params())
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f'argument --set: "{setting}" is not NAME=VALUE')
        if name not in known_names:
            listed = ", ".join(known_names) or "none"
            raise UserError(
                f'argument --set: {method} has no hyper-parameter "{name}"'
                f"{near(name, known_names)}; it has {listed}"
            )
        changes[name] = _value(value)
    if seed is not None and enhancer.seeded:
        changes["random_state"] = seed
    return enhancer.set_params(**changes)


def _value(text: str) -> Any:
    # A number, None, True or a tuple as Python writes them; any other word is itself.
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def measured(
    title: str, found: np.ndarray, data: DistributionData
) -> Mapping[str, Mapping[str, Any]]:
    """The measures of what was found, and of what needs no method, by name."""
    from jaxmlcl.enhancement import normalized, softmax_of_normalized, uniform
    from jaxmlcl.evaluation import distribution_measures

    if data.distributions is None:
        raise ValueError("data has no distributions to measure against")
    rows = {
        title: found,
        "uniform": uniform(data.labels),
        "softmax(L/|L|)": softmax_of_normalized(data.labels),
        "L/|L|": normalized(data.labels),
    }
    # What sums to 1 in the file within rounding does so here exactly.
    true = data.distributions / data.distributions.sum(1, keepdims=True)
    return {name: distribution_measures(row, true) for name, row in rows.items()}


def table(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The lines for a person: a method a line, a measure a column."""
    names = list(next(iter(rows.values())))
    cells = [["", *names]]
    cells += [[title, *(f"{row[name]:.4f}" for name in names)] for title, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *rest in cells:
        right = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *right])
