"""A stage on a mesh: its pure program, shapes and shardings, and the compiled functions."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmlcl.data.source import Source
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.random import Generator, make_key
from jaxmlcl.sharding import batch_sharding, replicated
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.objective import BatchSpec
from jaxmlcl.training.optimizers import StepCounter
from jaxmlcl.training.splits import Preparation, source_arrays
from jaxmlcl.training.step import Feed, Program, TrainState, count_flops

PyTree = Any

# Rows per scoring step: fixed, so that scores do not depend on what else is scored.
SCORING_ROWS = 512


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """One stage of an experiment, ready to be compiled."""

    name: str
    program: Program
    mesh: Mesh
    abstract: TrainState
    """Shapes, types and shardings of the state."""
    total: int
    """Optimiser steps of the whole stage."""
    flops_per_step: float
    count: StepCounter

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample's inputs."""
        several = self.program.stage.objective.views > 1
        return self.program.spec.inputs.shape[2 if several else 1 :]

    def bytes_of_state(self) -> dict[str, int]:
        """Bytes of parameters, optimiser, queue and the rest of the state, over all devices."""

        def size(tree: PyTree) -> int:
            return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

        state = self.abstract
        queue = state.objective.get("queue", ()) if isinstance(state.objective, Mapping) else ()
        average = {"average": size(state.average)} if state.average else {}
        return {
            "parameters": size(state.params),
            **average,
            "optimizer": size(state.optimizer),
            "queue": size(queue),
            "other": size(state.objective) - size(queue),
        }

    def check_start(self, source: StageProgram) -> None:
        """Refuse a start from a stage whose encoder is another one.

        Raises:
          ConfigError: naming both stages.
        """
        begun = source.abstract.averaged()
        begin = (begun.params, begun.objective)
        try:
            started = jax.eval_shape(self.program.init, begin)
            shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (started, self.abstract)]
            fits = shapes[0] == shapes[1]
        except (KeyError, TypeError, ValueError):
            # Trees of another depth do not even reach the comparison.
            fits = False
        own, other = self.input_shape, source.input_shape
        if not fits and own != other:
            raise ConfigError(
                f"stages.{self.name}: its data have inputs of shape {own}, those of {source.name}, "
                f"from which it starts, {other}; use data that the same encoder takes"
            )
        if not fits:
            raise ConfigError(
                f"stages.{self.name}: its encoder is not that of {source.name}, from which it "
                "starts; give both stages the same encoder"
            )

    def initial(self, source: PyTree | None) -> TrainState:
        """A fresh state, born on its devices."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        return jax.jit(self.program.init, out_shardings=shardings)(source)

    def compile(self, host: Mapping[str, np.ndarray], constants: PyTree) -> tuple[Any, float]:
        """The step for host batches like this one, compiled once, and the seconds it took.

        The state is donated: the old one is gone after the call.
        """
        rows = batch_sharding(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
            for name, array in host.items()
        }
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        started = time.perf_counter()
        compiled = (
            jax.jit(
                self.program.step,
                donate_argnums=0,
                out_shardings=(shardings, replicated(self.mesh)),
            )
            .lower(self.abstract, batch, constants)
            .compile()
        )
        return compiled, time.perf_counter() - started

    def scorer(self, constants: PyTree) -> Any:
        """A function (params, objective state, inputs [n, ...]) -> scores [n, L]."""
        return self._compiled(self.program.scores, constants)

    def embedder(self, constants: PyTree) -> Any:
        """A function (params, objective state, inputs [n, ...]) -> {name: [n, width]}."""
        return self._compiled(self.program.embed, constants)

    def _compiled(self, method: Any, constants: PyTree) -> Any:
        function = jax.jit(
            method,
            in_shardings=(None, None, batch_sharding(self.mesh), None),
            out_shardings=replicated(self.mesh),
        )
        preparation = {name: constants[name] for name in ("shift", "scale")}
        return lambda params, state, inputs: function(params, state, inputs, preparation)


def build_stage(
    experiment: Experiment,
    name: str,
    mesh: Mesh,
    source: Source,
    flops_of_stages: Mapping[str, float],
) -> StageProgram:
    """Work out a stage's shapes, length and placement; nothing is computed or compiled.

    Args:
      experiment: the experiment.
      name: the stage's name.
      mesh: the devices.
      source: the training split.
      flops_of_stages: FLOPs of earlier stages, for durations that refer to them.

    Raises:
      ConfigError: the batch does not divide over devices, or lengths cannot be worked out.
    """
    stage = experiment.stages[name]
    micro = stage.batch_size // stage.accumulate
    if micro % mesh.size:
        raise ConfigError(
            f"stages.{name}: {micro} samples per micro-batch do not divide over {mesh.size} "
            "devices; change batch_size, accumulate or the mesh"
        )
    dtype = jnp.dtype(experiment.precision)
    metadata = source.metadata
    views = stage.objective.views
    shape = (stage.batch_size, *((views,) if views > 1 else ()), *metadata.input_shape)
    label_shape = (stage.batch_size, len(metadata.label_names))
    spec = BatchSpec(
        jax.ShapeDtypeStruct(shape, dtype),
        jax.ShapeDtypeStruct(label_shape, jnp.float32),
        stage.batch_size,
        jax.ShapeDtypeStruct(label_shape, bool) if metadata.unknown_labels else None,
    )
    key = stage_key(experiment.seed, name, experiment.random)
    params, state = jax.eval_shape(lambda: stage.objective.init(key, spec))
    flops = count_flops(stage, spec, params, state)
    total = stage.duration.steps(
        batch_size=stage.batch_size,
        examples=len(source),
        flops_per_step=flops,
        flops_of_stages=flops_of_stages,
    )
    count = StepCounter(stage.batch_size, len(source), total)
    rows = batch_sharding(mesh)
    program = Program(
        stage,
        Feed(len(source), dtype, key),
        spec,
        stage.optimizer.build(params, count, stage.frozen),
        stage.optimizer.rate(count),
        lambda tree: jax.lax.with_sharding_constraint(tree, rows),
    )
    shapes = jax.eval_shape(lambda: program.init(None))
    shardings = experiment.mesh.place(mesh, shapes)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return StageProgram(name, program, mesh, abstract, total, flops, count)


def stage_key(seed: int, name: str, random: Generator = "hash") -> jax.Array:
    """The random key of a stage, from which every number it draws is folded."""
    # Named, not numbered: a stage draws the same numbers wherever it stands in the experiment.
    return jax.random.fold_in(make_key(seed, random), zlib.crc32(name.encode()))


def device_constants(
    preparation: Preparation, source: Source | None, mesh: Mesh, precision: str
) -> PyTree:
    """What every step reads and none changes: the preparation, and data that fit on the device."""
    kind = jnp.promote_types(jnp.dtype(precision), jnp.float32)
    constants: dict[str, Any] = {
        "shift": np.asarray(preparation.shift, kind),
        "scale": np.asarray(preparation.scale, kind),
    }
    arrays = source_arrays(source) if source is not None else None
    if arrays is not None:
        constants["resident"] = arrays
    return jax.device_put(constants, replicated(mesh))


def scoring_batches(source: Source, mesh: Mesh) -> Iterator[tuple[jax.Array, int]]:
    """Input batches of one shape on the mesh, the last one padded, with their valid row counts."""
    rows = min(SCORING_ROWS, len(source))
    rows += -rows % mesh.size
    arrays = source_arrays(source)
    for start in range(0, len(source), rows):
        stop = min(start + rows, len(source))
        if arrays is not None:
            inputs = arrays["inputs"][start:stop]
        else:
            inputs = np.stack([source[index]["inputs"] for index in range(start, stop)])
        yield on_mesh(inputs, rows, mesh), stop - start


def on_mesh(inputs: np.ndarray, rows: int, mesh: Mesh) -> jax.Array:
    """Inputs [n, ...] on the mesh, padded to so many rows."""
    padding = [(0, rows - len(inputs))] + [(0, 0)] * (inputs.ndim - 1)
    return jax.device_put(np.pad(inputs, padding), batch_sharding(mesh))


def source_labels(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n, L] uint8 and ids [n] int32 of a whole source."""
    arrays = source_arrays(source)
    if arrays is not None:
        return arrays["labels"], arrays["ids"]
    records = [source[index] for index in range(len(source))]
    labels = np.stack([record["labels"] for record in records])
    return labels, np.asarray([record["id"] for record in records], np.int32)


def source_mask(source: Source, name: str) -> np.ndarray | None:
    """Which labels of a source are known, bool [n, L]; None where all are.

    Args:
      source: the source.
      name: what messages call it.

    Raises:
      DataError: none is.
    """
    if not source.metadata.unknown_labels:
        return None
    arrays = source_arrays(source)
    if arrays is not None:
        known = arrays["label_mask"]
    else:
        known = np.stack([source[index]["label_mask"] for index in range(len(source))])
    if not known.any():
        raise DataError(f"{name}: no label is known in any row; there is nothing to measure")
    return None if known.all() else known
