"""Encoders that start from a file of weights, as torchvision and timm write them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxmlcl.data.source import find_file, search_places
from jaxmlcl.models import load_pretrained
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.program import StageProgram

PyTree = Any


def read_start(experiment: Experiment, program: StageProgram) -> tuple[PyTree, PyTree]:
    """What `warm_start` takes from a stage's file of weights: its encoder, and nothing else.

    Args:
      experiment: the experiment; relative paths start from the root of the stage's data.
      program: the stage's program, whose encoder the weights must be of.

    Returns:
      Parameters {encoder} and state {batch_stats: {encoder}}, of the types that the stage keeps.

    Raises:
      ConfigError: the extra "weights" is not installed.
      DataError: the file is not there, is damaged, or holds the weights of another encoder.
    """
    name, stage = program.name, program.program.stage
    encoder = stage.objective.network
    assert stage.weights is not None
    assert encoder is not None
    places = search_places(experiment.data_of(name).root)
    file = find_file(stage.weights, places)
    size, channels = program.input_shape[0], program.input_shape[-1]
    found = load_pretrained(file, encoder, image_size=size, channels=channels)
    state = program.abstract
    kinds = state.params["encoder"], state.objective["batch_stats"]["encoder"]
    typed = jax.tree.map(
        lambda array, kind: np.asarray(array, kind.dtype),
        (found.params, found.batch_stats),
        kinds,
    )
    return {"encoder": typed[0]}, {"batch_stats": {"encoder": typed[1]}}
