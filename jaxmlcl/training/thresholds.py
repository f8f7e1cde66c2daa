"""Thresholds that are chosen on a run's validation split and remembered with the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmlcl.distributed import group
from jaxmlcl.errors import ConfigError, UserError
from jaxmlcl.evaluation import choose_thresholds
from jaxmlcl.io import write_atomic
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.predict import Network
from jaxmlcl.training.scoring import Scored, score_stages

FILE = "thresholds.json"
Per = Literal["all", "label"]


def remember_thresholds(workdir: Path, validation: Scored) -> None:
    """Choose thresholds on scores of the validation split, and keep them in WORKDIR.

    Process 0 keeps them for all.

    WORKDIR/thresholds.json holds for each stage `all` (one threshold, that of the best micro-F1),
    `label` (one per label, that of its best F1), and which checkpoint they belong to.

    Raises:
      OSError: the file cannot be written.
    """
    if not group().primary:
        return
    known = {**_read(workdir), **_choose(validation)}
    write_atomic(workdir / FILE, json.dumps(known, indent=1) + "\n")


def recall_thresholds(
    experiment: Experiment,
    workdir: Path,
    network: Network,
    per: Per,
    report: Callable[[str], None] = lambda _: None,
) -> np.ndarray:
    """The thresholds of a network, [L]: those that were remembered, or chosen now.

    Args:
      experiment: the run's experiment; its validation split is read if nothing is remembered.
      workdir: the run's folder.
      network: the network.
      per: one threshold for all labels, or one per label.
      report: called with a line if what was chosen could not be kept.

    Raises:
      UserError: nothing is remembered, and there is no validation split to choose on.
    """
    names = network.label_names
    found = remembered_thresholds(workdir, network)
    if found is None:
        advice = "or say which: --threshold 0.5"
        if experiment.data_of(network.stage).validation is None:
            raise ConfigError(
                f"{experiment.name}: it has no validation split to choose thresholds on; {advice}"
            )
        try:
            scored = score_stages(experiment, workdir, "validation", [network.stage])
        except UserError as error:
            raise UserError(
                f"{workdir}: no thresholds are remembered, and there are no validation rows to "
                f"choose them on ({error}); run `jaxmlcl evaluate` where the data are, {advice}"
            ) from error
        found = _choose(scored)[network.stage]
        try:
            remember_thresholds(workdir, scored)
        except OSError as error:
            report(f"{error.filename}: {error.strerror}; thresholds are used, and not kept")
    if per == "label":
        return np.array([found["label"][name] for name in names], np.float64)
    return np.full(len(names), found["all"], np.float64)


def remembered_thresholds(workdir: Path, network: Network) -> dict[str, Any] | None:
    """What WORKDIR/thresholds.json holds for a network's checkpoint; None if it holds nothing.

    `all` is one threshold for all labels, `label` one for each of them by name.
    """
    return _belonging(group().once(lambda: dict(_read(workdir))), network)


def _choose(validation: Scored) -> dict[str, Any]:
    names = validation.metadata.label_names
    chosen = {}
    labels, known = validation.labels, validation.label_mask
    for stage, found in validation.stages.items():
        per_label = choose_thresholds(found.scores, labels, per="label", label_mask=known)
        chosen[stage] = {
            "checkpoint": found.identity,
            "step": found.step,
            "validation": validation.metadata.fingerprint,
            "all": choose_thresholds(found.scores, labels, per="all", label_mask=known),
            "label": dict(zip(names, per_label.tolist(), strict=True)),
        }
    return chosen


def _read(workdir: Path) -> Mapping[str, Any]:
    # A damaged file is as good as none: thresholds can be chosen again.
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((workdir / FILE).read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def _belonging(known: Mapping[str, Any], network: Network) -> dict[str, Any] | None:
    found = known.get(network.stage)
    if not isinstance(found, dict) or found.get("checkpoint") != network.checkpoint.identity:
        return None
    per_label = found.get("label")
    numbers = [found.get("all"), *(per_label.values() if isinstance(per_label, dict) else [None])]
    if not all(isinstance(number, float) for number in numbers):
        return None
    return found if set(found["label"]) == set(network.label_names) else None
