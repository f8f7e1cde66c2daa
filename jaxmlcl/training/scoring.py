"""Scores of a finished run's stages on a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxmlcl.data.source import SourceMetadata
from jaxmlcl.errors import CheckpointError, ConfigError, UserError
from jaxmlcl.sharding import MeshSpec
from jaxmlcl.training.checkpoint import CheckpointStore
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.program import (
    build_stage,
    device_constants,
    scoring_batches,
    source_labels,
)
from jaxmlcl.training.splits import Preparation, open_split
from jaxmlcl.training.trainer import check_fingerprint, load_stage, stage_folder


@dataclasses.dataclass(frozen=True)
class StageScores:
    """What one stage says about a split."""

    scores: np.ndarray
    """[n, L] float32."""
    step: int
    checkpoint: str


@dataclasses.dataclass(frozen=True)
class Scored:
    """A split's labels, and the scores that stages give it."""

    metadata: SourceMetadata
    labels: np.ndarray
    """[n, L] uint8."""
    ids: np.ndarray
    """[n] int32."""
    stages: dict[str, StageScores]


def scoring_stages(experiment: Experiment) -> list[str]:
    """Names of the stages that give label scores."""
    return [name for name, stage in experiment.stages.items() if stage.objective.gives_scores]


def score_stages(
    experiment: Experiment,
    workdir: Path,
    split: Literal["train", "validation", "test"],
    stages: Sequence[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Score every row of a split with the networks that stages ended with.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder.
      split: which rows.
      stages: names of stages; all that give scores by default.
      devices: the devices to use; all by default.
      report: called with a line for each damaged checkpoint that is passed over.

    Raises:
      UserError: there is no such stage, it is not finished, or the data do not fit it.
    """
    known = scoring_stages(experiment)
    chosen = known if stages is None else list(stages)
    for name in chosen:
        if name not in known:
            raise ConfigError(
                f'stage "{name}" gives no label scores; those that do: {", ".join(known) or "none"}'
            )
    if not chosen:
        raise UserError(f"{experiment.name}: no stage gives label scores; add a probe or BCE stage")
    # On whatever devices there are now: a mesh of fixed sizes may have been another machine's.
    mesh = MeshSpec(rules=experiment.mesh.rules).build(devices)
    source = open_split(experiment.data, split)
    preparation = Preparation.load(workdir / "preparation.npz")
    constants = device_constants(preparation, None, mesh, experiment.precision)
    labels, ids = source_labels(source)
    # A length relative to other stages' FLOPs does not matter here: any number will do.
    flops = dict.fromkeys(experiment.stages, 1.0)
    results = {}
    for name in chosen:
        program = build_stage(experiment, name, mesh, source, flops)
        store = CheckpointStore(stage_folder(workdir, name))
        state, checkpoint = load_stage(store, program, report)
        if split != "test":
            check_fingerprint(checkpoint, split, source)
        if checkpoint.host["data"]["label_names"] != list(source.metadata.label_names):
            raise CheckpointError(
                f"data.{split}: its labels are not those that {name} was trained on, or not in "
                "their order; use a split of the same data set"
            )
        score = program.scorer(constants)
        parts = [
            jax.device_get(score(state.params, state.objective, inputs))[:valid]
            for inputs, valid in scoring_batches(source, mesh)
        ]
        results[name] = StageScores(np.concatenate(parts), checkpoint.step, checkpoint.path.name)
    return Scored(source.metadata, labels, ids, results)
