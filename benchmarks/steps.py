"""The trainer's own compiled step, with what it is called with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmlcl.data.pipeline import GlobalOrder, Indices
from jaxmlcl.data.source import ArraySource
from jaxmlcl.sharding import MeshSpec, batch_sharding
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.program import StageProgram, build_stage, device_constants
from jaxmlcl.training.splits import fit_preparation
from jaxmlcl.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class Case:
    """A training set, and the stage that is trained on it."""

    source: ArraySource
    inputs: str
    stage: Stage


class Prepared(NamedTuple):
    """A compiled step, its first state, batches by their number, and constants."""

    step: Any
    state: Any
    host: Callable[[int], Any]
    constants: Any
    seconds: float
    """That compiling took."""
    program: StageProgram


def prepare(
    case: Case,
    device: jax.Device,
    precision: str,
    views: Mapping[str, np.ndarray] | None = None,
) -> Prepared:
    """The compiled step on one device.

    Args:
      case: the data and the stage.
      device: where it runs.
      precision: type of the computation.
      views: a batch of inputs [B, V, ...], labels and ids, the same at every step; without it the
        data live on the device, and a batch is the indices of its samples.
    """
    data = Data("synthetic", inputs=case.inputs)  # type: ignore[arg-type] # one of the three
    experiment = Experiment(
        "benchmark",
        data,
        {"pretrain": case.stage},
        precision=precision,  # type: ignore[arg-type] # one of the three
    )
    with jax.default_device(device):
        mesh = MeshSpec().build([device])
        resident = case.source if views is None else None
        constants = device_constants(fit_preparation(data, case.source), resident, mesh, precision)
        program = build_stage(experiment, "pretrain", mesh, case.source, {})
        order = Indices(GlobalOrder(len(case.source), case.stage.batch_size, 0))
        first = order[0] if views is None else views
        step, seconds = program.compile(first, constants)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
        # Made once: optimising it would take longer than the step's own compilation.
        quick = {"xla_backend_optimization_level": 0} if device.platform == "cpu" else None
        first_state = jax.jit(program.program.init, out_shardings=shardings, compiler_options=quick)
        state = first_state(None)

    def host(index: int) -> Any:
        batch = order[index] if views is None else views
        return jax.device_put(batch, batch_sharding(mesh))

    return Prepared(step, state, host, constants, seconds, program)
