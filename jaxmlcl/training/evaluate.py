"""Evaluation of a finished run: scores on a split, and what they are worth."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.evaluation import evaluate_scores
from jaxmlcl.io import write_atomic
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.scoring import Split, score_splits
from jaxmlcl.training.thresholds import remember_thresholds


def evaluate_run(
    experiment: Experiment,
    workdir: Path,
    split: Split,
    stage: str | None = None,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Score a split, write every stage's scores, and measure them.

    Thresholds (`best_on_val`) are chosen on the validation split; they are left out when that is
    the split which is scored, because choosing and scoring on the same rows would flatter.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder; evaluation/STAGE-SPLIT.npz and thresholds.json are written in it.
      split: which rows.
      stage: the only stage to score; all that give scores by default.
      report: called with a line for each damaged checkpoint that is passed over.

    Returns:
      The object that is kept as evaluation/SPLIT.json: every stage's result, the main stage last,
      and the main stage's once more at the top level.

    Raises:
      UserError: no such stage, an unfinished one, data that do not fit it, or a test split with
        rows that were trained or selected on.
    """
    if getattr(experiment.data, split) is None:
        raise ConfigError(f"data.{split}: the experiment names no {split} split to score")
    stages = None if stage is None else [stage]
    splits: list[Split] = [split]
    if experiment.data.validation is not None and split != "validation":
        splits.append("validation")
    found_in = score_splits(experiment, workdir, splits, stages, report=report)
    scored, validation = found_in[split], found_in.get("validation")
    if validation and validation.metadata.fingerprint == scored.metadata.fingerprint:
        validation = None
    chosen_on = scored if split == "validation" else validation
    if chosen_on is not None:
        remember_thresholds(workdir, chosen_on)
    names = scored.metadata.label_names
    results: dict[str, dict[str, Any]] = {}
    for name in sorted(scored.stages, key=lambda name: name == experiment.main):
        found = scored.stages[name]
        arrays = {"ids": scored.ids, "scores": found.scores, "labels": scored.labels}
        if scored.label_mask is not None:
            arrays["label_mask"] = scored.label_mask
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
                label_mask=scored.label_mask,
                validation_mask=validation.label_mask if validation else None,
                run={
                    "stage": name,
                    "step": found.step,
                    "seed": experiment.seed,
                    "checkpoint": found.checkpoint,
                    "gflop": _gflop(experiment, workdir, name),
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


def _gflop(experiment: Experiment, workdir: Path, stage: str) -> float | None:
    """Counted GFLOP of a stage and of those it starts from; None if they are not known."""
    try:
        summary = json.loads((workdir / "stages.json").read_text(encoding="utf-8"))
        total = 0.0
        current: str | None = stage
        while current is not None:
            total += summary[current]["gflop_total"]
            current = experiment.stages[current].starts_from
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return total


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
