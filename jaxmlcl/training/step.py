"""The step: one jitted function for every objective, and the state it carries."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxmlcl.data.augment import augment
from jaxmlcl.data.augment_images import normalize
from jaxmlcl.layout import joined, micro_batches, stream_rows
from jaxmlcl.losses.parts import unchunked
from jaxmlcl.models.convolution import as_convolutions
from jaxmlcl.training.objective import Batch, BatchSpec
from jaxmlcl.training.optimizers import Plateau, matches, parameter_paths
from jaxmlcl.training.stage import Stage

PyTree = Any

# The arrays of a source on the device; the mask only where labels are unknown, targets only where
# something else is learnt than the labels.
_RESIDENT = ("inputs", "labels", "ids", "label_mask", "targets")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes while a stage trains, as one pytree of arrays."""

    step: jax.Array
    """int32, steps taken."""
    params: PyTree
    objective: PyTree
    """The objective's state: batch statistics, key encoder, queue, ..."""
    optimizer: PyTree
    plateau: PyTree
    """State of the plateau rule; empty for other schedules."""
    average: PyTree = ()
    """Moving averages of the parameters and batch statistics; empty for stages without."""

    def averaged(self) -> TrainState:
        """The state with the averages, where there are any, in place of the last step's values."""
        if not self.average:
            return self
        objective = self.objective
        if "batch_stats" in self.average:
            objective = {**objective, "batch_stats": self.average["batch_stats"]}
        return dataclasses.replace(self, params=self.average["params"], objective=objective)


@dataclasses.dataclass(frozen=True)
class Feed:
    """What turns a host batch into an objective's batch, inside the step."""

    examples: int
    """Samples in the training set."""
    dtype: Any
    """Type of the computation."""
    key: jax.Array
    """The stage's random key."""

    def prepare(self, inputs: jax.Array, constants: PyTree) -> jax.Array:
        """Inputs [B, ...] in the type of the computation, shifted and scaled."""
        kind = jnp.promote_types(self.dtype, jnp.float32)
        x = (inputs.astype(kind) - constants["shift"]) * constants["scale"]
        return x.astype(self.dtype)

    def finish(self, inputs: jax.Array, constants: PyTree) -> jax.Array:
        """Prepared inputs as the network sees them: photographs are standardised at the end, since
        augmentation is defined on values from 0 to 1."""
        if "mean" not in constants:
            return inputs
        return normalize(inputs, constants["mean"], constants["deviation"])


@dataclasses.dataclass(frozen=True)
class Program:
    """The pure functions of one stage, before jit."""

    stage: Stage
    feed: Feed
    spec: BatchSpec
    transform: optax.GradientTransformation
    rate: optax.Schedule
    place: Callable[[PyTree], PyTree]
    """Constrains a batch to its sharding."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample's inputs."""
        several = self.stage.objective.views > 1
        return self.spec.inputs.shape[2 if several else 1 :]

    def init(self, source: PyTree | None) -> TrainState:
        """A fresh state; with the encoder of `source` = (params, state) where given."""
        key = jax.random.fold_in(self.feed.key, 0)
        params, state = self.stage.objective.init(key, self.spec)
        if source is not None:
            params, state = self.stage.objective.warm_start(params, state, *source)
        schedule = self.stage.optimizer.schedule
        plateau = schedule.transform().init({}) if isinstance(schedule, Plateau) else ()
        average: PyTree = ()
        if self.stage.ema is not None:
            # Copies, because the step donates every buffer.
            average = jax.tree.map(jnp.copy, _network(params, state))
        return TrainState(
            jnp.zeros((), jnp.int32), params, state, self.transform.init(params), plateau, average
        )

    def batch(self, step: jax.Array, host: PyTree, constants: PyTree) -> Batch:
        """The objective's batch for a host batch: gathered, prepared and augmented."""
        if "index" in host:
            rows = self.place({"ids": host["index"]})["ids"]
            resident = constants["resident"]
            names = [name for name in _RESIDENT if name in resident]
            host = {name: resident[name][rows] for name in names}
        host = self.place(host)
        size = self.stage.batch_size
        position = step.astype(jnp.uint32) * size + stream_rows(size).astype(jnp.uint32)
        # Data that are padded say how many samples they have, for programs that serve several.
        examples = constants.get("examples", self.feed.examples)
        key = jax.random.fold_in(self.feed.key, 1)
        inputs = augment(
            self.feed.prepare(host["inputs"], constants),
            self.stage.augmentation,
            key,
            self.place({"epoch": position // examples})["epoch"],
            host["ids"],
            self.stage.objective.views,
            # Crops of one image are views already.
            viewed=host["inputs"].ndim > 1 + len(self.input_shape),
        )
        inputs = self.feed.finish(inputs, constants)
        kind = jnp.promote_types(self.feed.dtype, jnp.float32)
        labels, mask = host.get("targets", host["labels"]).astype(kind), host.get("label_mask")
        if mask is not None:
            labels = jnp.where(mask, labels, 0)
        return Batch(inputs, labels, host["ids"], size, mask)

    def step(
        self, state: TrainState, host: PyTree, constants: PyTree
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimiser step: the new state, and scalars for the log."""
        objective = self.stage.objective
        batch = self.batch(state.step, host, constants)
        key = jax.random.fold_in(jax.random.fold_in(self.feed.key, 2), state.step)
        begun = objective.before_step(state.params, state.objective)
        loss, measurements, grads, ended, emitted = _gradients(
            self.stage, state.params, begun, batch, key
        )
        ended = objective.after_step(ended, emitted)

        updates, optimizer = self.transform.update(grads, state.optimizer, state.params)
        reduction = state.plateau.scale if state.plateau else 1.0
        updates = jax.tree.map(lambda u: (u * reduction).astype(u.dtype), updates)
        params = optax.apply_updates(state.params, updates)
        measurements = {
            "loss": loss,
            **measurements,
            "learning_rate": jnp.asarray(self.rate(state.step) * reduction, jnp.float32),
            "gradient_norm": optax.tree.norm(grads),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        average = self._average(state, _network(params, ended))
        new = TrainState(state.step + 1, params, ended, optimizer, state.plateau, average)
        return new, measurements

    def _average(self, state: TrainState, network: PyTree) -> PyTree:
        """The averages, moved towards the network after a step."""
        decay = self.stage.ema
        if decay is None:
            return ()
        kind = jnp.promote_types(self.feed.dtype, jnp.float32)
        moved = jnp.asarray(1.0 - decay, kind)
        if self.stage.ema_warmup:
            moved = jnp.maximum(moved, 9.0 / (10.0 + state.step.astype(kind)))
        return jax.tree.map(
            lambda a, x: (a + moved * (x - a)).astype(a.dtype), state.average, network
        )

    def scores(self, params: PyTree, state: PyTree, inputs: jax.Array, constants: PyTree) -> Any:
        """Label scores [B, L] of raw inputs, in evaluation mode."""
        x = self.feed.finish(self.feed.prepare(inputs, constants), constants)
        return self.stage.objective.scores(params, state, x).astype(jnp.float32)

    def embed(self, params: PyTree, state: PyTree, inputs: jax.Array, constants: PyTree) -> Any:
        """Named representations [B, width] of raw inputs, in evaluation mode."""
        x = self.feed.finish(self.feed.prepare(inputs, constants), constants)
        found = self.stage.objective.embed(params, state, x)
        return jax.tree.map(lambda x: x.astype(jnp.float32), found)


def _network(params: PyTree, state: PyTree) -> dict[str, PyTree]:
    """What is averaged: the parameters, and the batch statistics that belong to them."""
    if isinstance(state, Mapping) and "batch_stats" in state:
        return {"params": params, "batch_stats": state["batch_stats"]}
    return {"params": params}


@functools.partial(jax.jit, static_argnums=0)
def advance_plateau(schedule: Plateau, plateau: PyTree, loss: ArrayLike) -> PyTree:
    """The plateau rule's state after one more validation loss."""
    _, plateau = schedule.transform().update({}, plateau, value=loss)
    return plateau


def count_flops(stage: Stage, spec: BatchSpec, params: PyTree, state: PyTree) -> float:
    """Counted FLOPs of one step's losses and gradients, before the compiler rewrites anything.

    The count is the same on every platform, so that stages can be given equal budgets.

    Args:
      stage: the stage.
      spec: shapes of its batches.
      params: shapes of the parameters.
      state: shapes of the objective's state.

    Returns:
      FLOPs per optimiser step.
    """
    parts = stage.accumulate
    kind = jnp.promote_types(spec.inputs.dtype, jnp.float32)

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shape[0] // parts, *shape[1:]), dtype)

    shapes = (
        rows(spec.inputs.shape, spec.inputs.dtype),
        rows(spec.labels.shape, kind),
        rows((spec.step_samples,), jnp.int32),
        None if spec.label_mask is None else rows(spec.label_mask.shape, bool),
    )

    def work(params: PyTree, state: PyTree, arrays: Any, key: jax.Array) -> Any:
        inputs, labels, ids, mask = arrays
        batch = Batch(inputs, labels, ids, spec.step_samples, mask)
        return _micro(stage, params, state, batch, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    # Lowered for the host on every machine: other backends do not count before they compile.
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        # JAX_PLATFORMS leaves the host out; the compiler's own count is the next best.
        with unchunked(), as_convolutions():
            lowered = jax.jit(work).lower(params, state, shapes, key)
        costs: Any = lowered.compile().cost_analysis()
    else:
        with jax.default_device(host), unchunked(), as_convolutions():
            costs = jax.jit(work).lower(params, state, shapes, key).cost_analysis()
    return parts * float(costs["flops"])


def _gradients(stage: Stage, params: PyTree, state: PyTree, batch: Batch, key: jax.Array) -> Any:
    """Mean loss, measurements and gradients over the micro-batches; state after the last."""
    parts = stage.accumulate
    if parts == 1:
        return _micro(stage, params, state, batch, jax.random.fold_in(key, 0))
    split = micro_batches(batch, parts)

    def body(carry: Any, part: Any) -> Any:
        current, total = carry
        index, micro = part
        loss, measurements, grads, current, emitted = _micro(
            stage, params, current, micro, jax.random.fold_in(key, index)
        )
        total = jax.tree.map(jnp.add, total, grads)
        return (current, total), (loss, measurements, emitted)

    zero = jax.tree.map(jnp.zeros_like, params)
    (state, total), (losses, measurements, emitted) = jax.lax.scan(
        body, (state, zero), (jnp.arange(parts), split)
    )
    grads = jax.tree.map(lambda g: g / parts, total)
    return losses.mean(), jax.tree.map(jnp.mean, measurements), grads, state, joined(emitted)


def _micro(stage: Stage, params: PyTree, state: PyTree, batch: Batch, key: jax.Array) -> Any:
    def loss(params: PyTree) -> Any:
        if stage.frozen:
            # Cutting the gradient here lets the compiler drop the frozen part's backward pass.
            params = jax.tree.map(
                lambda path, leaf: (
                    jax.lax.stop_gradient(leaf) if matches(stage.frozen, path) else leaf
                ),
                parameter_paths(params),
                params,
            )
        return stage.objective.loss(params, state, batch, key)

    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, aux.measurements, grads, aux.state, aux.emitted
