"""`jaxmlcl evaluate WORKDIR`: score a split with a run's networks, and measure the scores."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlcl.cli import Parser
from jaxmlcl.cli.processes import add_options, check_same_options, joined, settings_of, tell
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

With --probe the frozen representation of any stage, contrastive ones too, is scored instead: by the
labels of the nearest training rows (knn), or by ridge regression on them (linear). The number of
neighbours, or the penalty, is chosen on the validation split. The files go to
WORKDIR/evaluation/PROBE/.
"""
_PROTOCOLS = {
    "best_on_val": "the thresholds that are best on validation",
    "per_label": "a threshold per label, the best for its F1 on validation",
    "cardinality": "the threshold that predicts as many labels as are true on validation",
    "top_k": "the highest scores of each row, as many as are best on validation",
    "fixed_0.5": "threshold 0.5",
    "paper": "the thresholds that are best on the scored rows themselves (an oracle)",
}
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
    parser.add_argument(
        "--protocol",
        choices=tuple(_PROTOCOLS),
        help="predictions that the table shows; SPLIT.json has all (default: best_on_val)",
    )
    parser.add_argument(
        "--probe",
        choices=("knn", "linear"),
        help="score frozen representations instead: nearest neighbours, or ridge regression",
    )
    parser.add_argument(
        "--representation",
        metavar="NAME",
        help="what --probe reads (default: representation, the encoder's output)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of the votes of --probe knn; 0 for plain votes (default: 0.07)",
    )
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the JSON object, nothing else")
    options = parser.read(words)
    _check(parser, options)

    experiment = run_experiment(options.workdir)
    if options.root is not None:
        data = dataclasses.replace(experiment.data, root=options.root)
        experiment = dataclasses.replace(experiment, data=data)
    use_precision(experiment)
    with joined(settings_of(options)) as group:
        check_same_options(group, options)
        document = _document(experiment, options)
        if group.primary:
            _tell(experiment, options, document)


def _tell(experiment: Experiment, options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Write the document, and show it."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    path = options.workdir / "evaluation" / (options.probe or "") / f"{options.split}.json"
    write_atomic(path, text)
    if options.json:
        print(text, end="")
        return
    lines = table(experiment, document["stages"], options.protocol)
    data = document["data"]
    print(
        f"{options.split}: {data['source']}, {data['num_rows']} rows, {data['num_labels']} labels"
    )
    for name, result in document["stages"].items():
        if "data" in result:
            data = result["data"]
            print(
                f"{options.split} of {name}: {data['source']}, {data['num_rows']} rows, "
                f"{data['num_labels']} labels"
            )
    for line in lines:
        print(line)
    print(f"written: {path}")
    if options.probe is None:
        print(f"next: jaxmlcl report {shlex.quote(str(options.workdir))}")


def _check(parser: Parser, options: argparse.Namespace) -> None:
    for name in ("representation", "temperature"):
        if getattr(options, name) is not None and options.probe is None:
            parser.error(f"--{name} belongs to --probe, which is not given")
    if options.temperature is not None:
        if options.probe != "knn":
            parser.error("--temperature belongs to --probe knn")
        if not (math.isfinite(options.temperature) and options.temperature >= 0):
            parser.error(f"argument --temperature: {options.temperature} is not 0 or positive")


def _document(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    # Imported here, so that a mistake in the arguments is told at once.
    if options.probe is None:
        from jaxmlcl.training.evaluate import evaluate_run

        return evaluate_run(experiment, options.workdir, options.split, options.stage, report=tell)
    from jaxmlcl.training.probes import Probe, probe_run

    probe = Probe(options.probe)
    if options.representation is not None:
        probe = dataclasses.replace(probe, representation=options.representation)
    if options.temperature is not None:
        probe = dataclasses.replace(probe, temperature=options.temperature or None)
    return probe_run(experiment, options.workdir, options.split, probe, options.stage, report=tell)


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


def table(
    experiment: Experiment, results: Mapping[str, Any], protocol: str | None = None
) -> list[str]:
    """An aligned table of results, and what its figures are.

    Raises:
      UserError: the results do not have the protocol.
    """
    cut = protocol or "best_on_val"
    explained = _PROTOCOLS[cut]
    if any(cut not in result["protocols"] for result in results.values()):
        if protocol is not None:
            raise UserError(
                f"there is no {protocol}: it is chosen on validation rows, and there are none "
                "beside those that are scored; choose fixed_0.5 or paper"
            )
        cut = "fixed_0.5"
        explained = (
            "threshold 0.5: there are no other rows to choose thresholds on (no best_on_val)"
        )
    rows = [["stage", "objective", *_FREE.values(), *_CUT.values(), "GFLOP"]]
    for name, result in results.items():
        measures = [result["threshold_free"].get(measure) for measure in _FREE]
        measures += [result["protocols"][cut].get(measure) for measure in _CUT]
        rows.append(
            [
                name,
                experiment.stages[name].objective.describe() + _probed(result["run"].get("probe")),
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
    return [*lines, f"HA and F1 at {explained}; GFLOP with the stages a stage starts from"]


def _probed(probe: Mapping[str, Any] | None) -> str:
    if probe is None:
        return ""
    if probe["kind"] == "knn":
        return f" + kNN of {probe['neighbours']}"
    return f" + ridge {probe['penalty']:g}"


def _gflop(total: float | None) -> str:
    if total is None:
        return "-"
    return f"{total:.4g}" if total < 1e4 else f"{total:.0f}"
