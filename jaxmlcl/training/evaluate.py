"""Evaluation of a finished run: scores on a split, and what they are worth."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.distributed import group
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.evaluation import evaluate_scores
from jaxmlcl.io import write_atomic
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.scoring import Split, choose_stages, score_splits
from jaxmlcl.training.splits import check_apart, open_split, share_origin
from jaxmlcl.training.thresholds import remember_thresholds

# Results by stage, and what is said of the data that they have in common.
Results = tuple[dict[str, dict[str, Any]], dict[str, Any]]


def evaluate_run(
    experiment: Experiment,
    workdir: Path,
    split: Split,
    stage: str | None = None,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Score a split, write every stage's scores, and measure them.

    A stage with data of its own is scored on the split of these data. Thresholds (`best_on_val`)
    are chosen on the validation split; they are left out when that is the split which is scored,
    because choosing and scoring on the same rows would flatter.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder; evaluation/STAGE-SPLIT.npz and thresholds.json are written in it.
      split: which rows.
      stage: the only stage to score; all that give scores by default.
      report: called with a line for each damaged checkpoint that is passed over.

    Returns:
      The object that is kept as evaluation/SPLIT.json: every stage's result, the main stage last,
      and the main stage's once more at the top level. "data" describes the main stage's split; a
      result whose stage has other data has a "data" of its own.

    Raises:
      UserError: no such stage, an unfinished one, data that do not fit it, or a test split with
        rows that were trained or selected on.
    """

    def together(data: Data, stages: list[str]) -> Results:
        return _evaluate_together(experiment, workdir, data, split, stages, report)

    chosen = choose_stages(experiment, None if stage is None else [stage])
    return by_data(experiment, chosen, split, together, report)


def by_data(
    experiment: Experiment,
    chosen: list[str],
    split: Split,
    together: Callable[[Data, list[str]], Results],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """The object that is kept as SPLIT.json, from results of the stages of one data set at a time.

    Args:
      experiment: the run's experiment.
      chosen: the stages.
      split: which rows.
      together: the results of stages that have the same data, and what is said of these.
      report: called with a line for each stage whose data lack the split.

    Raises:
      ConfigError: the data of no stage have the split.
    """
    groups: dict[Data, list[str]] = {}
    for name in chosen:
        groups.setdefault(experiment.data_of(name), []).append(name)
    results: dict[str, dict[str, Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for data, names in groups.items():
        if getattr(data, split) is None:
            continue
        found, described = together(data, names)
        results |= found
        about |= dict.fromkeys(names, described)
    if not results:
        raise ConfigError(f"data.{split}: the experiment names no {split} split to score")
    for name in chosen:
        if name not in results:
            report(f"{name}: not scored, its data name no {split} split")
    ordered = sorted(results, key=lambda name: (name == experiment.main, chosen.index(name)))
    last = ordered[-1]
    return {
        "split": split,
        "data": about[last],
        **results[last],
        "stages": {
            name: results[name] | ({"data": about[name]} if about[name] != about[last] else {})
            for name in ordered
        },
    }


def _evaluate_together(
    experiment: Experiment,
    workdir: Path,
    data: Data,
    split: Split,
    stages: list[str],
    report: Callable[[str], None],
) -> Results:
    """The results of stages that have the same data, and what is said of these."""
    splits: list[Split] = [split]
    if data.validation is not None and split != "validation":
        splits.append("validation")
    found_in = score_splits(experiment, workdir, splits, stages, report=report, represent=split)
    scored, validation = found_in[split], found_in.get("validation")
    if validation and validation.metadata.fingerprint == scored.metadata.fingerprint:
        validation = None
    chosen_on = scored if split == "validation" else validation
    if chosen_on is not None and _trained_on(data):
        report("data.validation: its rows are training rows, so no thresholds are chosen on them")
        chosen_on = validation = None
    if chosen_on is not None:
        remember_thresholds(workdir, chosen_on)
    names = scored.metadata.label_names
    results: dict[str, dict[str, Any]] = {}
    for name, found in scored.stages.items():
        arrays = {"ids": scored.ids, "scores": found.scores, "labels": scored.labels}
        if scored.label_mask is not None:
            arrays["label_mask"] = scored.label_mask
        write_arrays(
            workdir / "evaluation" / f"{name}-{split}.npz",
            {**arrays, "label_names": np.array(names, dtype=np.str_)},
        )
        if found.representations is not None:
            write_arrays(
                workdir / "evaluation" / f"{name}-{split}-representations.npz",
                {**found.representations._asdict(), "label_names": np.array(names, np.str_)},
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
                    "gflop": counted_gflop(experiment, workdir, name),
                },
            )
        except ValueError as error:
            raise DataError(f"stage {name}, {split} split: {error}") from error
    described = {
        "source": getattr(data, split),
        "fingerprint": scored.metadata.fingerprint,
        "num_rows": len(scored.labels),
        "num_labels": len(names),
        "label_names": list(names),
    }
    return results, described


def _trained_on(data: Data) -> bool:
    """Whether rows of the validation split are rows of the training split."""
    if not share_origin(data, "validation", "train"):
        return False
    try:
        check_apart(
            data,
            "validation",
            "train",
            open_split(data, "validation"),
            open_split(data, "train"),
        )
    except DataError:
        return True
    return False


def counted_gflop(experiment: Experiment, workdir: Path, stage: str) -> float | None:
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


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write named arrays as NPZ, whole or not at all; process 0 does it for all."""
    if not group().primary:
        return
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
