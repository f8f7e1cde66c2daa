"""`jaxmlcl compare RUN_A RUN_B`: whether two evaluated runs differ by more than chance."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmlcl.cli import Parser, near
from jaxmlcl.errors import UserError

_ABOUT = """\
Compare what `jaxmlcl evaluate` wrote for two runs on the same rows: the difference of each measure,
its interval and p values. RUN may be several runs that differ in their seeds, as a comma list or a
quoted pattern ("runs/yeast-*"); they are paired by their seeds.
"""
_SPLITS = ("train", "validation", "test")


def run(words: list[str]) -> None:
    """Compare, and print a table or JSON."""
    parser = Parser("jaxmlcl compare", _ABOUT)
    parser.add_argument("first", metavar="RUN_A", help="folder of a run, or of several")
    parser.add_argument("second", metavar="RUN_B", help="the same; it may be RUN_A, see --stage")
    parser.add_argument(
        "--split", choices=_SPLITS, default="test", help="rows to compare on (default: test)"
    )
    parser.add_argument(
        "--stage",
        metavar="NAME",
        nargs="+",
        help="stage of both, or one of RUN_A and one of RUN_B (default: each run's main one)",
    )
    parser.add_argument(
        "--probe", choices=("knn", "linear"), help="compare what evaluate --probe wrote"
    )
    parser.add_argument(
        "--measure",
        metavar="NAME",
        nargs="+",
        help="measures by their names in the JSON (default: mAP, P@1, HA, ex-F1, mi-F1, ma-F1)",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="whose thresholds: best_on_val (default), per_label, cardinality, fixed_0.5 or paper",
    )
    parser.add_argument(
        "--replicates",
        type=int,
        default=1000,
        metavar="COUNT",
        help="resamples of the rows (default: 1000)",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of the intervals (default: 0.95)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the resamples (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.read(words)
    # Imported here, so that help is told at once.
    from jaxmlcl.evaluation import METRICS
    from jaxmlcl.training.compare import MEASURES, PROTOCOLS, compare_runs, read_evaluated

    for name in options.measure or ():
        if name not in METRICS:
            parser.error(f'argument --measure: unknown measure "{name}"{near(name, METRICS)}')
    if options.protocol == "top_k":
        parser.error(
            "argument --protocol: top_k has no thresholds to compare by; choose one of "
            + ", ".join(PROTOCOLS)
        )
    if options.protocol not in (None, *PROTOCOLS):
        parser.error(
            f'argument --protocol: unknown protocol "{options.protocol}"'
            f"{near(options.protocol, PROTOCOLS)}"
        )
    if options.replicates < 1:
        parser.error(f"argument --replicates: {options.replicates} is not positive")
    if options.seed < 0:
        parser.error(f"argument --seed: {options.seed} is negative")
    if not 0 < options.confidence < 1:
        parser.error(f"argument --confidence: {options.confidence} is not between 0 and 1")
    stages = options.stage or [None]
    if len(stages) > 2:
        parser.error(f"argument --stage: one or two names, not {len(stages)}")

    sides = [
        [
            read_evaluated(workdir, options.split, stage, options.probe)
            for workdir in workdirs(argument)
        ]
        for argument, stage in zip(
            (options.first, options.second), (stages[0], stages[-1]), strict=True
        )
    ]
    document = {"split": options.split} | compare_runs(
        *sides,
        measures=options.measure or MEASURES,
        protocol=options.protocol,
        replicates=options.replicates,
        confidence=options.confidence,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    for line in table(document):
        print(line)


def workdirs(argument: str) -> list[Path]:
    """The folders of a comma list of folders and patterns.

    Raises:
      UserError: one of them is not there.
    """
    if Path(argument).is_dir():
        return [Path(argument)]
    found: list[Path] = []
    for part in argument.split(","):
        folders = [Path(part)] if Path(part).is_dir() else []
        if not folders and glob.has_magic(part):
            folders = [Path(name) for name in sorted(glob.glob(part)) if Path(name).is_dir()]
        if not folders:
            raise UserError(
                f'"{part}": no such folder; give the folders that `jaxmlcl train CONFIG` wrote'
            )
        found += [folder for folder in folders if folder not in found]
    return found


def table(document: Mapping[str, Any]) -> list[str]:
    """An aligned table of a comparison, and what its columns are."""
    several = len(document["a"]) > 1
    share = f"{100 * document['confidence']:g} %"
    names = ["measure", "A", "B", "A - B", f"{share} interval", "p (rows)"]
    names += ["p (t)", "p (signs)"] if several else ["p (exchange)"]
    rows = [names]
    for name, values in document["measures"].items():
        row = [name, *(_figure(values[field]) for field in ("a", "b"))]
        ends = [_figure(values[end], "+") for end in ("low", "high")]
        row += [
            _figure(values["difference"], "+"),
            f"{ends[0]} .. {ends[1]}",
            _figure(values["p_bootstrap"]),
        ]
        tests = values["seeds"] or {}
        row += (
            [_figure(tests.get(field)) for field in ("p_t", "p_permutation")]
            if several
            else [_figure(values["p_permutation"])]
        )
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        "  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in _rest(row, widths)])
        for row in rows
    ]
    lines = [
        f"{document['split']}: {document['num_rows']} rows, {document['num_labels']} labels; "
        f"thresholds of each run: {document['protocol']}",
        *(f"{side.upper()}: {_named(document[side])}" for side in ("a", "b")),
        *aligned,
        f"interval and p (rows): {document['replicates']} resamples of the rows, the same for both",
    ]
    if several:
        lines.append(
            f"p (t), p (signs): paired over the {len(document['a'])} seeds; the smallest p (signs) "
            f"that so many can give is {0.5 ** (len(document['a']) - 1):.3g}"
        )
    else:
        lines.append("p (exchange): A and B exchanged in random rows; not for rankings of rows")
    return lines


def _rest(row: Sequence[str], widths: Sequence[int]) -> list[tuple[str, int]]:
    return list(zip(row[1:], widths[1:], strict=True))


def _figure(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _named(runs: Sequence[Mapping[str, Any]]) -> str:
    seeds = ", ".join(str(run["seed"]) for run in runs)
    places = " ".join(run["workdir"] for run in runs)
    stages = " ".join(dict.fromkeys(run["stage"] for run in runs))
    return f"{places}, stage {stages}, seed{'s' if len(runs) > 1 else ''} {seeds}"
