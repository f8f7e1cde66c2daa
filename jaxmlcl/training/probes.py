"""Probes of a run's frozen representations: nearest neighbours and closed-form linear regression.

Any stage can be probed, contrastive ones too, since nothing but `Objective.embed` is asked of it.
The training split is the reference; the one setting of a probe is chosen on the validation split,
or, where that is the split which is scored or there is none, on training rows left out one at a
time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxmlcl.data.source import Source
from jaxmlcl.errors import CheckpointError, ConfigError, DataError
from jaxmlcl.evaluation import ProbeScores, evaluate_scores, knn_scores, ridge_scores
from jaxmlcl.training.evaluate import Results, by_data, counted_gflop, write_arrays
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.kept import check_fingerprint
from jaxmlcl.training.program import (
    device_constants,
    scoring_batches,
    source_labels,
    source_mask,
)
from jaxmlcl.training.scoring import check_test, restore_stage, scoring_mesh
from jaxmlcl.training.splits import (
    Preparation,
    check_apart,
    check_same_data,
    open_split,
    preparation_file,
)

REPRESENTATION = "representation"


@dataclasses.dataclass(frozen=True)
class Probe:
    """How a representation is read; see `jaxmlcl.evaluation.knn_scores` and `ridge_scores`."""

    kind: Literal["knn", "linear"]
    representation: str = REPRESENTATION
    """Which of the arrays that `Objective.embed` names."""
    temperature: float | None = 0.07
    """Of kNN's votes; None for plain ones."""

    def scores(self, *arrays: np.ndarray, **options: Any) -> ProbeScores:
        """What the probe says of rows, given training embeddings and labels."""
        if self.kind == "knn":
            return knn_scores(*arrays, temperature=self.temperature, **options)
        return ridge_scores(*arrays, **options)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A split, opened once for all stages."""

    name: str
    source: Source
    labels: np.ndarray
    ids: np.ndarray
    label_mask: np.ndarray | None
    """[n, L] bool, False for unknown labels; None where all are known."""


def probe_run(
    experiment: Experiment,
    workdir: Path,
    split: Literal["validation", "test"],
    probe: Probe,
    stage: str | None = None,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Score a split by probes of frozen representations, and measure the scores.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder; evaluation/KIND/STAGE-SPLIT.npz are written in it.
      split: which rows.
      probe: how the representations are read.
      stage: the only stage to probe; all by default.
      report: called with a line for each damaged checkpoint that is passed over.

    Returns:
      The object that is kept as evaluation/KIND/SPLIT.json, of the form that `evaluate_run` gives;
      each result's "run" has a "probe" in addition: kind, representation, what was chosen and by
      what.

    Raises:
      UserError: no such stage or representation, an unfinished stage, data that do not fit it, or
        splits that have rows in common.
    """
    names = list(experiment.stages) if stage is None else [stage]
    if stage is not None and stage not in experiment.stages:
        raise ConfigError(
            f'there is no stage "{stage}"; the stages: {", ".join(experiment.stages)}'
        )

    def together(data: Data, stages: list[str]) -> Results:
        return _probe_together(experiment, workdir, data, split, stages, probe, report)

    return by_data(experiment, names, split, together, report)


def _probe_together(
    experiment: Experiment,
    workdir: Path,
    data: Data,
    split: Literal["validation", "test"],
    stages: list[str],
    probe: Probe,
    report: Callable[[str], None],
) -> Results:
    """The results of stages that have the same data, and what is said of these."""
    train, scored, validation = _open(data, split)
    results: dict[str, dict[str, Any]] = {}
    for name in stages:
        network = _Network(experiment, workdir, name, train.source, report)
        network.check(train, scored, validation)
        if split == "test":
            # Stages that this one starts from may have other data.
            check_test(experiment, [name], network.checkpoint, scored.source)
        reference, asked = (network.embed(rows, probe) for rows in (train, scored))
        choice: dict[str, Any] = {}
        if validation is not None:
            choice["validation_embeddings"] = network.embed(validation, probe)
            choice["validation_labels"] = validation.labels
            choice["validation_mask"] = validation.label_mask
        found = probe.scores(reference, train.labels, asked, label_mask=train.label_mask, **choice)
        known = {} if scored.label_mask is None else {"label_mask": scored.label_mask}
        write_arrays(
            workdir / "evaluation" / probe.kind / f"{name}-{split}.npz",
            {
                "ids": scored.ids,
                "scores": found.scores,
                "labels": scored.labels,
                **known,
                "label_names": np.array(scored.source.metadata.label_names, dtype=np.str_),
            },
        )
        try:
            results[name] = evaluate_scores(
                found.scores,
                scored.labels,
                label_names=scored.source.metadata.label_names,
                validation_scores=found.validation_scores,
                validation_labels=None if validation is None else validation.labels,
                label_mask=scored.label_mask,
                validation_mask=None if validation is None else validation.label_mask,
                run={
                    "stage": name,
                    "step": network.checkpoint.step,
                    "seed": experiment.seed,
                    "checkpoint": network.checkpoint.path.name,
                    "gflop": counted_gflop(experiment, workdir, name),
                    "probe": _describe(probe, found, validation is not None),
                },
            )
        except ValueError as error:
            raise DataError(f"stage {name}, {split} split: {error}") from error
    metadata = scored.source.metadata
    return results, {
        "source": getattr(data, split),
        "fingerprint": metadata.fingerprint,
        "num_rows": len(scored.labels),
        "num_labels": len(metadata.label_names),
        "label_names": list(metadata.label_names),
    }


def _open(data: Data, split: str) -> tuple[_Rows, _Rows, _Rows | None]:
    """The splits that a probe needs: reference, scored, and the one its setting is chosen on."""

    def rows(name: str) -> _Rows:
        source = open_split(data, name)
        return _Rows(name, source, *source_labels(source), source_mask(source, f"data.{name}"))

    if split == "train":
        raise ConfigError(
            "data.train: the probe is fitted to these rows, so their scores would say nothing; "
            "score another split"
        )
    train, scored, validation = rows("train"), rows(split), None
    if data.validation is not None and split != "validation":
        validation = rows("validation")
    check_same_data(
        {rows.name: rows.source for rows in (train, scored, validation) if rows is not None}
    )
    apart = [found for found in (scored, validation, train) if found is not None]
    for first, second in itertools.combinations(apart, 2):
        check_apart(data, first.name, second.name, first.source, second.source)
    return train, scored, validation


class _Network:
    """A finished stage, restored to embed whole splits."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        name: str,
        train: Source,
        report: Callable[[str], None],
    ) -> None:
        mesh = scoring_mesh(experiment)
        preparation = Preparation.load(workdir / preparation_file(experiment, name))
        constants = device_constants(preparation, None, mesh, experiment.precision)
        self.program, self.state, self.checkpoint = restore_stage(
            experiment, workdir, name, mesh, train, report
        )
        self._embed = self.program.embedder(constants)

    def check(self, train: _Rows, scored: _Rows, validation: _Rows | None) -> None:
        """Refuse data that are not those of the stage."""
        check_fingerprint(self.checkpoint, "train", train.source)
        for rows in (scored, validation):
            if rows is None:
                continue
            if rows.name == "validation":
                check_fingerprint(self.checkpoint, "validation", rows.source)
            if self.checkpoint.host["data"]["label_names"] != list(
                rows.source.metadata.label_names
            ):
                raise CheckpointError(
                    f"data.{rows.name}: its labels are not those that {self.program.name} was "
                    "trained on, or not in their order; use a split of the same data set"
                )

    def embed(self, rows: _Rows, probe: Probe) -> np.ndarray:
        """The representation of every row [n, D] float32, in evaluation mode."""
        parts = []
        for inputs, valid in scoring_batches(rows.source, self.program.mesh):
            found = self._embed(self.state.params, self.state.objective, inputs)
            if probe.representation not in found:
                raise ConfigError(
                    f'stage {self.program.name} has no representation "{probe.representation}"; '
                    f"it has: {', '.join(sorted(found))}"
                )
            array = jax.device_get(found[probe.representation])[:valid]
            parts.append(array.reshape(valid, -1))
        embeddings = np.concatenate(parts)
        if not np.isfinite(embeddings).all():
            raise DataError(
                f"stage {self.program.name}, {rows.name} split: its representation is not finite"
            )
        return embeddings


def _describe(probe: Probe, found: ProbeScores, on_validation: bool) -> dict[str, Any]:
    """What a probe was, for JSON."""
    choice = "none"
    if found.tried:
        choice = "map on validation" if on_validation else "training rows left out"
    shown: dict[str, Any] = {"kind": probe.kind, "representation": probe.representation}
    if probe.kind == "knn":
        shown |= {"neighbours": int(found.chosen), "temperature": probe.temperature}
    else:
        shown |= {"penalty": found.chosen}
    tried = {f"{value:g}": None if math.isnan(by) else by for value, by in found.tried.items()}
    return {**shown, "chosen_by": choice, "tried": tried}
