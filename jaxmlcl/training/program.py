"""A stage on a mesh: its pure program, shapes and shardings, and the compiled functions."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmlcl.data.augment_images import RandomResizedCrop
from jaxmlcl.data.images import Crops, Photographs, Reader
from jaxmlcl.data.pipeline import GlobalOrder, Indices, Records, Steps, Views
from jaxmlcl.data.source import Source
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.queue import Queue
from jaxmlcl.random import Generator, make_key
from jaxmlcl.sharding import (
    MeshSpec,
    batch_sharding,
    own_blocks,
    place_rows,
    place_whole,
    replicated,
)
from jaxmlcl.training.checkpoint import Checkpoint, CheckpointStore
from jaxmlcl.training.experiment import Experiment
from jaxmlcl.training.objective import BatchSpec
from jaxmlcl.training.optimizers import StepCounter
from jaxmlcl.training.splits import Preparation, source_annotations, source_arrays
from jaxmlcl.training.step import Feed, Program, TrainState, count_flops

PyTree = Any

# Rows per scoring step: fixed, so that scores do not depend on what else is scored.
SCORING_ROWS = 512
# Values of the inputs that are scored at once, at most, and bytes of them that stay on the device.
_SCORING_VALUES, _KEPT_BYTES = 2**24, 2**29


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
    placement: MeshSpec
    """Whose rules say where the state lives."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample's inputs."""
        return self.program.input_shape

    def bytes_of_state(self) -> dict[str, int]:
        """Bytes of parameters, optimiser, queue and the rest of the state, over all devices."""

        def size(tree: PyTree) -> int:
            return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

        state = self.abstract
        queue = self.program.stage.objective.queue(state.objective)
        average = {"average": size(state.average)} if state.average else {}
        return {
            "parameters": size(state.params),
            **average,
            "optimizer": size(state.optimizer),
            "queue": size(queue),
            "other": size(state.objective) - size(queue),
        }

    def describe_queue(self) -> str | None:
        """Bytes of the queue, in all and on a device, with the type and the parts of its keys.

        None where the stage has no queue.
        """
        queue = self.program.stage.objective.queue(self.abstract.objective)
        if queue is None:
            return None
        leaves = jax.tree.leaves(queue)
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        here = sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in leaves
        )
        parts = self.program.spec.queue_shards
        split = f"in {parts} parts" if parts > 1 else "in one part"
        return (
            f"queue of {queue.capacity} {queue.keys.dtype} keys {split}: {show_bytes(whole)}, "
            f"{show_bytes(here)} a device"
        )

    def portable(self, state: TrainState) -> TrainState:
        """The state as it is saved; `state` stays as it is."""
        if self.program.spec.queue_shards == 1:
            return state
        return dataclasses.replace(state, objective=self._to_portable(state.objective))

    def restore(self, store: CheckpointStore, checkpoint: Checkpoint) -> TrainState:
        """A saved state, placed on this mesh, whichever it was saved on.

        Raises:
          CheckpointError: it does not fit, or cannot be read.
        """
        saved = checkpoint.host.get("queue_shards", 1)
        if saved == self.program.spec.queue_shards == 1:
            return store.restore(checkpoint, self.abstract)
        state = store.restore(checkpoint, self._abstract_portable(saved))
        objective, spec = self.program.stage.objective, self.program.spec
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract.objective)
        place = jax.jit(lambda state: objective.placed(state, spec), out_shardings=shardings)
        return dataclasses.replace(state, objective=place(state.objective))

    @functools.cached_property
    def _to_portable(self) -> Any:
        shapes = self._abstract_portable(self.program.spec.queue_shards).objective
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        return jax.jit(self.program.stage.objective.portable, out_shardings=shardings)

    def _abstract_portable(self, queue_shards: int) -> TrainState:
        """Shapes, types and shardings of what is saved of a queue in so many parts."""
        spec = self.program.spec._replace(queue_shards=queue_shards)
        program = dataclasses.replace(self.program, spec=spec)

        def portable() -> TrainState:
            state = program.init(None)
            objective = program.stage.objective.portable(state.objective)
            return dataclasses.replace(state, objective=objective)

        return _on_mesh(self.placement, self.mesh, jax.eval_shape(portable))

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

        Their rows are dealt out over the mesh's devices, as `jaxmlcl.layout` says.

        The state is donated: the old one is gone after the call.
        """
        rows = batch_sharding(self.mesh)
        size = self.program.stage.batch_size
        batch = {
            name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype, sharding=rows)
            for name, array in host.items()
        }
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        started = time.perf_counter()
        step = jax.jit(
            self.program.step,
            donate_argnums=0,
            out_shardings=(shardings, replicated(self.mesh)),
        )
        # What is traced finds the mesh in its context, and with it the layout of the batch.
        with jax.set_mesh(self.mesh):
            compiled = step.lower(self.abstract, batch, constants).compile()
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
        preparation = preparation_of(constants)
        return lambda params, state, inputs: function(params, state, inputs, preparation)


def build_stage(
    experiment: Experiment,
    name: str,
    mesh: Mesh,
    source: Source,
    flops_of_stages: Mapping[str, float],
    *,
    trains: bool = True,
) -> StageProgram:
    """Work out a stage's shapes, length and placement; nothing is computed or compiled.

    Args:
      experiment: the experiment.
      name: the stage's name.
      mesh: the devices.
      source: the training split.
      flops_of_stages: FLOPs of earlier stages, for durations that refer to them.
      trains: whether steps will be taken: batch and queue must then divide over the devices, and
        a queue is split into parts where the mesh's rules say so.

    Raises:
      ConfigError: batch or queue do not divide over devices, or lengths cannot be worked out.
    """
    stage = experiment.stages[name]
    micro = stage.batch_size // stage.accumulate
    if trains and micro % mesh.size:
        raise ConfigError(
            f"stages.{name}: {micro} samples per micro-batch do not divide over {mesh.size} "
            "devices; change batch_size, accumulate or the mesh"
        )
    dtype = jnp.dtype(experiment.precision)
    metadata = source.metadata
    crops = sum(isinstance(operation, RandomResizedCrop) for operation in stage.augmentation)
    if crops and trains:
        where = f"stages.{name}: RandomResizedCrop cuts photographs while they are read, once"
        if crops > 1:
            raise ConfigError(f"{where}; name it once")
        if not isinstance(source, Photographs):
            raise ConfigError(
                f"{where}; {metadata.name} is in memory: use Shift, or ?images=photographs of an "
                "HDF5 file"
            )
    views = stage.objective.views
    shape = (stage.batch_size, *((views,) if views > 1 else ()), *metadata.input_shape)
    label_shape = (stage.batch_size, len(metadata.label_names))
    spec = BatchSpec(
        jax.ShapeDtypeStruct(shape, dtype),
        jax.ShapeDtypeStruct(label_shape, jnp.float32),
        stage.batch_size,
        jax.ShapeDtypeStruct(label_shape, bool) if metadata.unknown_labels else None,
        soft_labels=metadata.soft_labels,
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
    queue = stage.objective.queue(state)
    if trains and queue is not None and _interleaved(experiment.mesh, state, queue):
        spec = spec._replace(queue_shards=mesh.size)
    rows = batch_sharding(mesh)
    program = Program(
        stage,
        Feed(len(source), dtype, key),
        spec,
        stage.optimizer.build(params, count, stage.frozen),
        stage.optimizer.rate(count),
        lambda tree: jax.lax.with_sharding_constraint(tree, rows),
    )
    abstract = _on_mesh(experiment.mesh, mesh, jax.eval_shape(lambda: program.init(None)))
    return StageProgram(name, program, mesh, abstract, total, flops, count, experiment.mesh)


def _interleaved(placement: MeshSpec, state: PyTree, queue: Queue) -> bool:
    """Whether the rules, which go by the path in the state, interleave this queue."""
    leaves = jax.tree_util.tree_leaves_with_path({"objective": state})
    path = next(path for path, leaf in leaves if leaf is queue.keys)
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return placement.tactic(name) == "interleave"


def _on_mesh(placement: MeshSpec, mesh: Mesh, shapes: TrainState) -> TrainState:
    """Shapes with the shardings that the rules give them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        placement.place(mesh, shapes),
    )


def stage_key(seed: int, name: str, random: Generator = "hash") -> jax.Array:
    """The random key of a stage, from which every number it draws is folded."""
    # Named, not numbered: a stage draws the same numbers wherever it stands in the experiment.
    return jax.random.fold_in(make_key(seed, random), zlib.crc32(name.encode()))


def stage_steps(
    experiment: Experiment, name: str, source: Source, mesh: Mesh, *, resident: bool
) -> Steps:
    """The host batches of a stage: indices of resident data, records, or views of photographs."""
    stage = experiment.stages[name]
    order = GlobalOrder(len(source), stage.batch_size, experiment.seed)
    if resident:
        return Indices(order, mesh.size, own_blocks(mesh))
    if not isinstance(source, Photographs):
        return Records(source, order, mesh.size, own_blocks(mesh))
    reader = stage_reader(experiment, name, source)
    return Views(reader, source.annotations, order, mesh.size, own_blocks(mesh))


def stage_reader(experiment: Experiment, name: str, source: Photographs) -> Reader:
    """What reads a stage's photographs: with its crops, or the central one where it has none."""
    crop, stage = None, experiment.stages[name]
    for operation in stage.augmentation:
        if isinstance(operation, RandomResizedCrop):
            # Named, as the random numbers on the device: stages draw boxes of their own.
            seed = (experiment.seed << 32) | zlib.crc32(name.encode())
            views = stage.objective.views
            crop = Crops(seed, views, operation.scale, operation.ratio)
    return source.reader(crop)


def device_constants(
    preparation: Preparation, source: Source | None, mesh: Mesh, precision: str
) -> PyTree:
    """What every step reads and none changes: the preparation, and data that fit on the device."""
    kind = jnp.promote_types(jnp.dtype(precision), jnp.float32)
    constants: dict[str, Any] = {
        name: np.asarray(array, kind) for name, array in preparation.arrays().items()
    }
    arrays = source_arrays(source) if source is not None else None
    if arrays is not None:
        constants["resident"] = arrays
    return place_whole(constants, replicated(mesh))


def preparation_of(constants: PyTree) -> PyTree:
    """Of what steps read, what prepares inputs."""
    names = [field.name for field in dataclasses.fields(Preparation)]
    return {name: constants[name] for name in names if name in constants}


def scoring_rows(shape: tuple[int, ...]) -> int:
    """How many inputs of a shape are scored at once: fewer of large images.

    Example:
      >>> scoring_rows((103,)), scoring_rows((64, 64, 3)), scoring_rows((224, 224, 3))
      (512, 512, 64)
    """
    most = max(1, _SCORING_VALUES // math.prod(shape))
    return min(SCORING_ROWS, 2 ** (most.bit_length() - 1))


def scoring_inputs(source: Source, mesh: Mesh) -> Iterable[tuple[jax.Array, int]]:
    """`scoring_batches` to go through again and again: kept on the device where they are small."""
    size = math.prod(source.metadata.input_shape) * np.dtype(source.metadata.input_dtype).itemsize
    if source_arrays(source) is not None or len(source) * size <= _KEPT_BYTES:
        return list(scoring_batches(source, mesh))
    return _Again(source, mesh)


@dataclasses.dataclass(frozen=True)
class _Again:
    source: Source
    mesh: Mesh

    def __iter__(self) -> Iterator[tuple[jax.Array, int]]:
        return scoring_batches(self.source, self.mesh)


def scoring_batches(source: Source, mesh: Mesh) -> Iterator[tuple[jax.Array, int]]:
    """Input batches of one shape on the mesh, the last one padded, with their valid row counts."""
    rows = min(scoring_rows(source.metadata.input_shape), len(source))
    rows += -rows % mesh.size
    if isinstance(source, Photographs):
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            read = functools.partial(source.inputs, pool=pool)
            yield from _scoring_batches(source, mesh, rows, read)
        return
    arrays = source_arrays(source)

    def records(rows: range) -> np.ndarray:
        if arrays is not None:
            return arrays["inputs"][rows.start : rows.stop]
        return np.stack([source[row]["inputs"] for row in rows])

    yield from _scoring_batches(source, mesh, rows, records)


def _scoring_batches(
    source: Source, mesh: Mesh, rows: int, read: Callable[[range], np.ndarray]
) -> Iterator[tuple[jax.Array, int]]:
    shape, kind = source.metadata.input_shape, source.metadata.input_dtype
    share, blocks = rows // mesh.size, own_blocks(mesh) or range(mesh.size)
    for start in range(0, len(source), rows):
        stop = min(start + rows, len(source))
        # A process reads the records of its own devices only.
        mine = np.zeros((len(blocks) * share, *shape), kind)
        for place, block in enumerate(blocks):
            first, last = (min(start + i * share, stop) for i in (block, block + 1))
            if last > first:
                mine[place * share :][: last - first] = read(range(first, last))
        yield place_rows({"inputs": mine}, mesh)["inputs"], stop - start


def on_mesh(inputs: np.ndarray, rows: int, mesh: Mesh) -> jax.Array:
    """Inputs [n, ...], whole in every process, on the mesh, padded to so many rows."""
    padding = [(0, rows - len(inputs))] + [(0, 0)] * (inputs.ndim - 1)
    return place_whole(np.pad(inputs, padding), batch_sharding(mesh))


def source_labels(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n, L] uint8 and ids [n] int32 of a whole source."""
    found = source_annotations(source)
    return found["labels"], found["ids"]


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
    known = source_annotations(source)["label_mask"]
    if not known.any():
        raise DataError(f"{name}: no label is known in any row; there is nothing to measure")
    return None if known.all() else known


def show_bytes(size: int) -> str:
    """A number of bytes as people read it.

    Example:
      >>> show_bytes(16_777_216)
      '16.8 MB'
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"
