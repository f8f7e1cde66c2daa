"""`jaxmlcl evaluate WORKDIR`: score a split with a run's networks, and measure the scores."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlcl.cli import Parser
from jaxmlcl.cli.train import use_precision
from jaxmlcl.errors import UserError
from jaxmlcl.io import write_atomic

if TYPE_CHECKING:
    from jaxmlcl.config import Experiment

_SPLITS = ("train", "validation", "test")

_ABOUT = """\
Score a split with the networks that a run's stages ended with. Writes
WORKDIR/evaluation/SPLIT.json and, for each stage, STAGE-SPLIT.npz (ids, scores, labels,
label_names, and label_mask where labels are unknown). Thresholds are chosen on the validation
split (best_on_val), so for that split itself there are none. Rows of the test split must not be
rows of training or validation.
"""
_FREE = {"map": "mAP", "precision_at_1": "P@1"}
_CUT = {
    "hamming_accuracy": "HA",
    "example_f1": "ex-F1",
    "micro_f1": "mi-F1",
    "macro_f1": "ma-F1",
}


def run(words: list[str]) -> None:
    """Evaluate, write the files, and print a table or JSON."""
    parser = Parser("jaxmlcl evaluate", _ABOUT)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--split",
        choices=_SPLITS,
        default="test",
        help="rows to score (default: test)",
    )
    parser.add_argument(
        "--stage",
        metavar="NAME",
        help="score this stage only; SPLIT.json then holds it alone (default: all that can)",
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="FOLDER",
        help="folder that relative paths of data start from now (default: as in training)",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object, nothing else")
    options = parser.read(words)

    experiment = run_experiment(options.workdir)
    if options.root is not None:
        data = dataclasses.replace(experiment.data, root=options.root)
        experiment = dataclasses.replace(experiment, data=data)
    use_precision(experiment)
    # Imported here, so that a mistake in the arguments is told at once.
    from jaxmlcl.training.evaluate import evaluate_run

    document = evaluate_run(
        experiment,
        options.workdir,
        options.split,
        options.stage,
        report=lambda line: print(line, file=sys.stderr),
    )
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    path = options.workdir / "evaluation" / f"{options.split}.json"
    write_atomic(path, text)
    if options.json:
        print(text, end="")
        return
    data = document["data"]
    print(
        f"{options.split}: {data['source']}, {data['num_rows']} rows, {data['num_labels']} labels"
    )
    for line in table(experiment, document["stages"]):
        print(line)
    print(f"written: {path}")
    print(f"next: jaxmlcl report {shlex.quote(str(options.workdir))}")


def run_experiment(workdir: Path) -> Experiment:
    """The experiment of a run.

    Raises:
      UserError: the folder is not a run's.
    """
    path = workdir / "experiment.json"
    if not path.is_file():
        raise UserError(
            f"{workdir} is not a run: it has no experiment.json; "
            "give the folder that `jaxmlcl train CONFIG` wrote"
        )
    from jaxmlcl.config import load

    return load(path)


def table(experiment: Experiment, results: Mapping[str, Any]) -> list[str]:
    """An aligned table of results, and what its figures are."""
    cut = "best_on_val"
    if any(cut not in result["protocols"] for result in results.values()):
        cut = "fixed_0.5"
    rows = [["stage", "objective", *_FREE.values(), *_CUT.values(), "GFLOP"]]
    for name, result in results.items():
        measures = [result["threshold_free"].get(measure) for measure in _FREE]
        measures += [result["protocols"][cut].get(measure) for measure in _CUT]
        rows.append(
            [
                name,
                experiment.stages[name].objective.describe(),
                *("-" if value is None else f"{value:.3f}" for value in measures),
                _gflop(result["run"]["gflop"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        text = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        text += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(text))
    chosen = "the thresholds that are best on validation"
    if cut == "fixed_0.5":
        chosen = "threshold 0.5: there are no other rows to choose thresholds on (no best_on_val)"
    return [*lines, f"HA and F1 at {chosen}; GFLOP with the stages a stage starts from"]


def _gflop(total: float | None) -> str:
    if total is None:
        return "-"
    return f"{total:.4g}" if total < 1e4 else f"{total:.0f}"
