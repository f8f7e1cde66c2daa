"""A finished run's networks applied to new rows: label scores, and representations."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmlcl.data.features import Expected, Features, Rows
from jaxmlcl.data.images import Images
from jaxmlcl.distributed import group
from jaxmlcl.errors import CheckpointError, ConfigError, DataError
from jaxmlcl.training.checkpoint import Checkpoint
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.program import StageProgram, device_constants, on_mesh, scoring_rows
from jaxmlcl.training.scoring import restore_stage, scoring_mesh, scoring_stages
from jaxmlcl.training.splits import Preparation, preparation_file
from jaxmlcl.training.step import TrainState
from jaxmlcl.training.trained_on import TrainedOn, load_trained_on


@dataclasses.dataclass(frozen=True)
class Network:
    """What a stage of a run ended with; the data of the run are not needed."""

    stage: str
    trained_on: TrainedOn
    program: StageProgram
    state: TrainState
    checkpoint: Checkpoint
    constants: Any
    images: Images
    """What photographs become, as they did in training."""

    @property
    def expected(self) -> Expected:
        """What the inputs of new rows must be like."""
        return dataclasses.replace(self.trained_on.expected, images=self.images)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels that are scored, [L]."""
        return self.trained_on.metadata.label_names

    def scores(
        self, features: Features, batch: int | None = None
    ) -> Iterator[tuple[Rows, np.ndarray]]:
        """Label scores of all rows, some rows at a time.

        Args:
          features: the rows; see `jaxmlcl.data.features.open_features`.
          batch: rows at a time; if left out, as many as evaluation takes, so that rows of a whole
            split get the bits that it gives them. The size of the batch may change the last ones.

        Yields:
          Rows, and their scores [n, L] float32.

        Raises:
          DataError: a row is not what it should be, or its score is not finite.
        """
        function = self.program.scorer(self.constants)
        return self._apply(lambda *arguments: {"score": function(*arguments)}, features, batch)

    def embeddings(
        self, features: Features, batch: int | None = None
    ) -> Iterator[tuple[Rows, dict[str, np.ndarray]]]:
        """Named representations of all rows, each [n, width] float32; see `scores`."""
        return self._batches(self.program.embedder(self.constants), features, batch)

    def label_embeddings(self) -> np.ndarray:
        """The embeddings of the labels, [L, E] float32.

        Raises:
          ConfigError: the stage's objective has none.
        """
        objective = self.program.program.stage.objective
        if not objective.embeds_labels:
            raise ConfigError(
                f"{self.stage}: {objective.describe()} has no embeddings of labels; C-GMVAE has"
            )
        found = objective.label_embeddings(self.state.params, self.state.objective)
        return np.asarray(jax.device_get(found), np.float32)

    def _apply(
        self, function: Callable[..., dict[str, jax.Array]], features: Features, batch: int | None
    ) -> Iterator[tuple[Rows, np.ndarray]]:
        for rows, found in self._batches(function, features, batch):
            yield rows, found["score"]

    def _batches(
        self, function: Callable[..., dict[str, jax.Array]], features: Features, batch: int | None
    ) -> Iterator[tuple[Rows, dict[str, np.ndarray]]]:
        mesh = self.program.mesh
        batch = batch or scoring_rows(self.program.input_shape)
        parts = features.read(batch + -batch % mesh.size)
        first = next(parts, None)
        if first is None:
            raise DataError(f"{features.where}: no rows; at least one is needed")
        # Fewer rows than a batch are one batch, as they are in evaluation.
        size = len(first.inputs) + -len(first.inputs) % mesh.size
        for rows in itertools.chain([first], parts):
            _check_same_rows(features, rows)
            count = len(rows.inputs)
            inputs = on_mesh(rows.inputs, size, mesh)
            found = jax.device_get(function(self.state.params, self.state.objective, inputs))
            kept = {name: np.asarray(array[:count], np.float32) for name, array in found.items()}
            for name, array in kept.items():
                good = np.isfinite(array).all(axis=1)
                if not good.all():
                    identity = rows.ids[int(np.argmin(good))]
                    raise DataError(
                        f"{features.where}, id {identity}: the {name} that {self.stage} gives is "
                        "not finite; look at the values of this row"
                    )
            yield rows, kept
        _check_same_rows(features, None)


def _check_same_rows(features: Features, rows: Rows | None) -> None:
    """Refuse rows, or the end of them (None), that are not those of process 0."""
    if group().count == 1:
        return
    digest = hashlib.sha256()
    if rows is not None:
        digest.update(np.ascontiguousarray(rows.inputs).tobytes())
        digest.update(repr(np.asarray(rows.ids).tolist()).encode())

    def difference(first: str, own: str) -> str:
        return "" if own == first else f"its rows of {features.where} are others"

    group().compare(digest.hexdigest(), difference, "give all processes the same file")


def open_network(
    experiment: Experiment,
    workdir: Path,
    stage: str | None = None,
    *,
    gives_scores: bool = True,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Network:
    """The network that a stage of a finished run ended with.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder; nothing outside it is read.
      stage: the stage; by default the run's main stage, or the last (that gives scores).
      gives_scores: whether the stage must give label scores.
      devices: the devices to use; all by default.
      report: called with a line for each damaged checkpoint that is passed over.

    Raises:
      UserError: no such stage, an unfinished one, or a damaged folder.
    """
    known = scoring_stages(experiment) if gives_scores else list(experiment.stages)
    if not known:
        raise ConfigError(
            f"{experiment.name}: no stage gives label scores; add a probe or BCE stage"
        )
    name = stage or experiment.main or known[-1]
    if name not in known:
        what = "that gives label scores" if gives_scores else "of this run"
        raise ConfigError(f'"{name}" is no stage {what}; there are: {", ".join(known)}')
    mesh = scoring_mesh(experiment, devices)
    preparation = Preparation.load(workdir / preparation_file(experiment, name))
    trained_on = load_trained_on(workdir, name)
    program, state, checkpoint = restore_stage(experiment, workdir, name, mesh, trained_on, report)
    saved = checkpoint.host["data"]
    metadata = trained_on.metadata
    if (saved["train"], saved["label_names"]) != (metadata.fingerprint, list(metadata.label_names)):
        raise CheckpointError(
            f"{workdir / 'data.json'}: it describes other data than those {name} was trained on; "
            "run the training command again to rewrite it"
        )
    constants = device_constants(preparation, None, mesh, experiment.precision)
    images = experiment.data_of(name).images
    return Network(name, trained_on, program, state, checkpoint, constants, images)
