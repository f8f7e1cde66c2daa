"""Scores of a finished run's stages on a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxmlcl.data.source import Source, SourceMetadata
from jaxmlcl.errors import CheckpointError, ConfigError, UserError
from jaxmlcl.training.checkpoint import Checkpoint, CheckpointStore
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.kept import check_fingerprint, load_stage, stage_folder
from jaxmlcl.training.program import (
    StageProgram,
    build_stage,
    device_constants,
    scoring_batches,
    source_labels,
    source_mask,
)
from jaxmlcl.training.representations import Collected, Representations
from jaxmlcl.training.splits import (
    Preparation,
    check_apart,
    check_same_data,
    check_same_labels,
    data_field,
    open_split,
    other_starts,
    preparation_file,
    share_origin,
)
from jaxmlcl.training.step import TrainState

Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class StageScores:
    """What one stage says about a split."""

    scores: np.ndarray
    """[n, L] float32."""
    step: int
    checkpoint: str
    identity: str
    """SHA-256 of the checkpoint's files."""
    representations: Representations | None = None
    """What the encoder makes of the rows, where it was asked for."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A split's labels, and the scores that stages give it."""

    metadata: SourceMetadata
    labels: np.ndarray
    """[n, L] uint8."""
    ids: np.ndarray
    """[n] int32."""
    stages: dict[str, StageScores]
    label_mask: np.ndarray | None = None
    """[n, L] bool, False for unknown labels, which are 0 in `labels`; None: all are known."""


def scoring_stages(experiment: Experiment) -> list[str]:
    """Names of the stages that give label scores."""
    return [name for name, stage in experiment.stages.items() if stage.objective.gives_scores]


def choose_stages(experiment: Experiment, stages: Sequence[str] | None = None) -> list[str]:
    """The named stages, or all, if they give label scores.

    Raises:
      UserError: one of them gives none, or there is none that does.
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
    return chosen


def score_stages(
    experiment: Experiment,
    workdir: Path,
    split: Split,
    stages: Sequence[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Score every row of a split with the networks that stages ended with; see `score_splits`."""
    return score_splits(experiment, workdir, [split], stages, devices, report)[split]


def score_splits(
    experiment: Experiment,
    workdir: Path,
    splits: Sequence[Split],
    stages: Sequence[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[str], None] = lambda _: None,
    represent: Split | None = None,
) -> dict[Split, Scored]:
    """Score every row of some splits with the networks that stages ended with, each restored once.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder.
      splits: which rows.
      stages: names of stages that have the same data; all that give scores by default.
      devices: the devices to use; all by default.
      report: called with a line for each damaged checkpoint that is passed over.
      represent: the split of which representations are kept too.

    Raises:
      UserError: there is no such stage, it is not finished, the data do not fit it, or rows of the
        test split were trained or selected on.
    """
    chosen = choose_stages(experiment, stages)
    data = experiment.data_of(chosen[0])
    for name in chosen:
        if experiment.data_of(name) != data:
            raise ConfigError(
                f"stages {chosen[0]} and {name} have different data; score them one by one"
            )
    mesh = scoring_mesh(experiment, devices)
    sources = {split: open_split(data, split) for split in splits}
    check_same_data({f"data.{split}": source for split, source in sources.items()})
    results: dict[Split, dict[str, StageScores]] = {split: {} for split in splits}
    for name in chosen:
        program, state, checkpoint = restore_stage(
            experiment, workdir, name, mesh, sources[splits[0]], report
        )
        preparation = Preparation.load(workdir / preparation_file(experiment, name))
        constants = device_constants(preparation, None, mesh, experiment.precision)
        score, embed = program.scorer(constants), program.embedder(constants)
        for split, source in sources.items():
            if split != "test":
                check_fingerprint(checkpoint, split, source)
            elif name == chosen[0]:
                check_test(experiment, chosen, checkpoint, source)
            if checkpoint.host["data"]["label_names"] != list(source.metadata.label_names):
                raise CheckpointError(
                    f"data.{split}: its labels are not those that {name} was trained on, or not in "
                    "their order; use a split of the same data set"
                )
            check_same_labels(sources[splits[0]], source, (splits[0], split))
            kept = None
            if split == represent:
                kept = Collected(*source_labels(source), source_mask(source, f"data.{split}"))
            parts = []
            for inputs, valid in scoring_batches(source, mesh):
                # Two programs: scores have the same bits whether representations are kept or not.
                parts.append(jax.device_get(score(state.params, state.objective, inputs))[:valid])
                if kept is not None:
                    found = embed(state.params, state.objective, inputs)["representation"]
                    kept.add(jax.device_get(found)[:valid])
            results[split][name] = StageScores(
                np.concatenate(parts),
                checkpoint.step,
                checkpoint.path.name,
                checkpoint.identity,
                None if kept is None else kept.result(),
            )
    return {
        split: Scored(
            source.metadata,
            *source_labels(source),
            results[split],
            source_mask(source, f"data.{split}"),
        )
        for split, source in sources.items()
    }


def check_test(
    experiment: Experiment, stages: list[str], checkpoint: Checkpoint, test: Source
) -> None:
    """Refuse to report on rows that a stage, or one it starts from, was trained or selected on."""
    data, where = experiment.data_of(stages[0]), data_field(experiment, stages[0])
    for other in ("train", "validation"):
        if getattr(data, other) is None:
            continue
        # The fingerprint is remembered; other splits are opened only where a file is shared.
        if checkpoint.host["data"].get(other) == test.metadata.fingerprint:
            check_apart(data, "test", other, test, test, where=where)
        elif share_origin(data, "test", other):
            check_apart(data, "test", other, test, open_split(data, other), where=where)
    for start, earlier in other_starts(experiment, stages).items():
        for other in ("train", "validation"):
            if getattr(earlier, other) is not None and share_origin(data, "test", other, earlier):
                check_apart(
                    data,
                    "test",
                    other,
                    test,
                    open_split(earlier, other),
                    where=where,
                    of=(data_field(experiment, start), earlier),
                )


def scoring_mesh(
    experiment: Experiment, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """A mesh for stages that are trained already: of whatever devices there are now.

    The run's own mesh may have been another machine's. Rows are padded, so any number will do.
    """
    return dataclasses.replace(experiment.mesh, data=-1, fsdp=1).build(devices)


def restore_stage(
    experiment: Experiment,
    workdir: Path,
    name: str,
    mesh: jax.sharding.Mesh,
    source: Source,
    report: Callable[[str], None],
) -> tuple[StageProgram, TrainState, Checkpoint]:
    """A finished stage's program on a mesh, and the state it ended with.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder.
      name: the stage.
      mesh: the devices.
      source: anything with the metadata of the training split; its records are not read.
      report: called with a line for each damaged checkpoint that is passed over.

    Raises:
      UserError: the stage is not finished, or its checkpoints are damaged or do not fit.
    """
    # A length relative to other stages' FLOPs does not matter here: any number will do.
    flops = dict.fromkeys(experiment.stages, 1.0)
    program = build_stage(experiment, name, mesh, source, flops, trains=False)
    store = CheckpointStore(stage_folder(workdir, name, experiment.checkpoint.folder))
    return program, *load_stage(store, program, report)
