"""`jaxmlcl evaluate WORKDIR`: score a split with a run's networks, and measure the scores."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from jaxmlcl.cli import Parser
from jaxmlcl.errors import ConfigError, DataError, UserError
from jaxmlcl.io import write_atomic

if TYPE_CHECKING:
    from jaxmlcl.config import Experiment
    from jaxmlcl.training.scoring import Scored

Split = Literal["train", "validation", "test"]

_ABOUT = """\
Score a split with the networks that a run's stages ended with. Writes
WORKDIR/evaluation/SPLIT.json and, for each stage, STAGE-SPLIT.npz (ids, scores, labels,
label_names). Thresholds are chosen on the validation split (best_on_val), so for that split itself
there are none.
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
        choices=get_args(Split),
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
    document = evaluate(experiment, options.workdir, options.split, options.stage)
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
    for line in table(experiment, options.workdir, document["stages"]):
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


def evaluate(
    experiment: Experiment, workdir: Path, split: Split, stage: str | None = None
) -> dict[str, Any]:
    """Score a split, write every stage's scores, and measure them.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder.
      split: "train", "validation" or "test".
      stage: the only stage to score; all that give scores by default.

    Returns:
      The object that is written as evaluation/SPLIT.json: every stage's result, and the last one's
      at the top level.

    Raises:
      UserError: no such stage, an unfinished one, or data that do not fit it.
    """
    from jaxmlcl.cli.train import use_precision

    use_precision(experiment)
    from jaxmlcl.evaluation import evaluate_scores
    from jaxmlcl.training.scoring import score_stages

    if getattr(experiment.data, split) is None:
        raise ConfigError(f"data.{split}: the experiment names no {split} split to score")
    stages = None if stage is None else [stage]
    scored = score_stages(experiment, workdir, split, stages)
    validation: Scored | None = None
    if experiment.data.validation is not None and split != "validation":
        validation = score_stages(experiment, workdir, "validation", stages)
        if validation.metadata.fingerprint == scored.metadata.fingerprint:
            # Choosing and scoring on the same rows would flatter: that is the `paper` protocol.
            validation = None
    names = scored.metadata.label_names
    results: dict[str, dict[str, Any]] = {}
    for name, found in scored.stages.items():
        arrays = {"ids": scored.ids, "scores": found.scores, "labels": scored.labels}
        _write_arrays(
            workdir / "evaluation" / f"{name}-{split}.npz",
            {**arrays, "label_names": np.array(names, dtype=np.str_)},
        )
        try:
            results[name] = evaluate_scores(
                found.scores,
                scored.labels,
                label_names=names,
                validation_scores=validation.stages[name].scores if validation else None,
                validation_labels=validation.labels if validation else None,
                run={
                    "stage": name,
                    "step": found.step,
                    "seed": experiment.seed,
                    "checkpoint": found.checkpoint,
                },
            )
        except ValueError as error:
            raise DataError(f"stage {name}, {split} split: {error}") from error
    return {
        "split": split,
        "data": {
            "source": getattr(experiment.data, split),
            "fingerprint": scored.metadata.fingerprint,
            "num_rows": len(scored.labels),
            "num_labels": len(names),
            "label_names": list(names),
        },
        **list(results.values())[-1],
        "stages": results,
    }


def table(experiment: Experiment, workdir: Path, results: Mapping[str, Any]) -> list[str]:
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
                _gflop(experiment, workdir, name),
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


def _gflop(experiment: Experiment, workdir: Path, stage: str) -> str:
    """Counted GFLOP of a stage and of those it starts from; "-" if they are not known."""
    try:
        summary = json.loads((workdir / "stages.json").read_text(encoding="utf-8"))
        total = 0.0
        current: str | None = stage
        while current is not None:
            total += summary[current]["gflop_total"]
            current = experiment.stages[current].starts_from
    except (OSError, ValueError, KeyError, TypeError):
        return "-"
    return f"{total:.4g}" if total < 1e4 else f"{total:.0f}"


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
