"""What a stage ended with, as one file: the whole predictor, or the encoder's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from jaxmlcl.errors import ConfigError
from jaxmlcl.models import Pretrained, save_pretrained
from jaxmlcl.predictor import Description, Origin, Thresholds, write_predictor
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.predict import Network, open_network
from jaxmlcl.training.program import preparation_of, scoring_rows
from jaxmlcl.training.thresholds import remembered_thresholds

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")


def export_predictor(
    experiment: Experiment,
    workdir: Path,
    path: Path,
    stage: str | None = None,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    report: Callable[[str], None] = lambda _: None,
) -> Description:
    """Write the function from a stage's inputs to its scores as one file that needs no run.

    Inputs are as the data hold them; the preparation is part of the function. What it gives is
    what `jaxmlcl.training.predict.Network.scores` gives, up to rounding.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder; nothing outside it is read.
      path: the file to write, .zip.
      stage: the stage; by default the run's main stage, or the last that gives scores.
      platforms: where the function can be computed, of `PLATFORMS`; this machine may be another.
      report: called with a line for each damaged checkpoint that is passed over.

    Returns:
      What the file says of itself.

    Raises:
      UserError: no such stage or platform, an unfinished stage, a damaged folder, or another
        ending.
      OSError: the file cannot be written.
    """
    check_platforms(platforms)
    network = _opened(experiment, workdir, stage, True, report)
    metadata, found = network.trained_on.metadata, remembered_thresholds(workdir, network)
    thresholds = None
    if found is not None:
        per_label = tuple(found["label"][name] for name in network.label_names)
        thresholds = Thresholds(found["all"], per_label)
    description = Description(
        origin=_origin(experiment, network),
        label_names=network.label_names,
        input_shape=metadata.input_shape,
        input_dtype=metadata.input_dtype,
        platforms=tuple(platforms),
        rows=scoring_rows(metadata.input_shape),
        feature_names=network.expected.column_names,
        thresholds=thresholds,
    )
    write_predictor(path, _exported(network, tuple(platforms)), description)
    return description


def export_encoder(
    experiment: Experiment,
    workdir: Path,
    path: Path,
    stage: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Origin:
    """Write the weights of a stage's encoder as safetensors, with torchvision's names.

    Args:
      experiment: the run's experiment.
      workdir: the run's folder; nothing outside it is read.
      path: the file to write; see `jaxmlcl.models.save_pretrained`.
      stage: any stage; by default the run's main stage, or the last.
      report: called with a line for each damaged checkpoint that is passed over.

    Returns:
      Where the weights are from.

    Raises:
      UserError: no such stage, an unfinished one, a damaged folder, or an encoder that torchvision
        has no names for.
      OSError: the file cannot be written.
    """
    network = _opened(experiment, workdir, stage, False, report)
    objective = network.program.program.stage.objective
    encoder = objective.network
    if encoder is None:
        raise ConfigError(f"{network.stage}: {objective.describe()} has no encoder of its own")
    params = network.state.params["encoder"]
    statistics = network.state.objective["batch_stats"]["encoder"]
    single: Any = jax.tree.map(lambda x: np.asarray(x, np.float32), (params, statistics))
    save_pretrained(path, Pretrained(encoder, *single))
    return _origin(experiment, network)


def check_platforms(platforms: Sequence[str]) -> None:
    """Refuse platforms that JAX does not know.

    Raises:
      ConfigError: naming those that it does.

    Example:
      >>> check_platforms(["cpu", "gpu"])
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: platforms: "gpu" is none of cpu, cuda, rocm, tpu
    """
    for name in platforms:
        if name not in PLATFORMS:
            raise ConfigError(f'platforms: "{name}" is none of {", ".join(PLATFORMS)}')
    if not platforms or len(set(platforms)) < len(platforms):
        raise ConfigError(f"platforms: name each once, at least one of {', '.join(PLATFORMS)}")


def _opened(
    experiment: Experiment,
    workdir: Path,
    stage: str | None,
    gives_scores: bool,
    report: Callable[[str], None],
) -> Network:
    # One device: the file is for one, and holds the parameters whole.
    devices = jax.local_devices()[:1]
    return open_network(
        experiment, workdir, stage, gives_scores=gives_scores, devices=devices, report=report
    )


def _origin(experiment: Experiment, network: Network) -> Origin:
    checkpoint = network.checkpoint
    return Origin(experiment.name, network.stage, checkpoint.step, checkpoint.identity)


def _exported(network: Network, platforms: tuple[str, ...]) -> jax.export.Exported:
    """The function from inputs [b, ...] to scores [b, L], with everything else inside."""
    program, state = network.program.program, network.state
    constants = preparation_of(network.constants)

    def scores(inputs: jax.Array) -> jax.Array:
        return program.scores(state.params, state.objective, inputs, constants)

    metadata = network.trained_on.metadata
    (rows,) = jax.export.symbolic_shape("b")
    inputs = jax.ShapeDtypeStruct((rows, *metadata.input_shape), np.dtype(metadata.input_dtype))
    with _without_places():
        return jax.export.export(jax.jit(scores), platforms=platforms)(inputs)


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Keep source files and lines, which are this machine's, out of what is exported."""
    name, settings = "jax_traceback_in_locations_limit", jax.config.values
    before = settings[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
