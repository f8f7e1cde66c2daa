"""The protocol between a method and the trainer: what one stage of training minimises."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax

from jaxmlcl.models import Encoder
from jaxmlcl.queue import Queue

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What an objective sees of the data: one batch, or one micro-batch of it."""

    inputs: jax.Array
    """[B, ...], or [B, V, ...] for an objective that asks for V > 1 views; its type is the type
    of the computation."""
    labels: jax.Array
    """[B, L] in [0, 1]."""
    ids: jax.Array
    """[B] int32, the samples' ids in their source."""
    step_samples: int = dataclasses.field(metadata={"static": True})
    """Samples in the whole step: B, or the sum over its micro-batches."""
    label_mask: jax.Array | None = None
    """[B, L] bool, False for unknown labels, which are 0 in `labels`; None: all are known."""


class BatchSpec(NamedTuple):
    """Shapes and types of a batch, without its data."""

    inputs: jax.ShapeDtypeStruct
    labels: jax.ShapeDtypeStruct
    step_samples: int
    label_mask: jax.ShapeDtypeStruct | None = None
    queue_shards: int = 1
    """Parts that a queue in the state is split into, one for each device, or 1."""
    soft_labels: bool = False
    """Whether labels are degrees in [0, 1] instead of 0 and 1."""


class Aux(NamedTuple):
    """What an objective returns beside the loss."""

    state: PyTree
    """The new non-gradient state, of the same structure as the old one."""
    measurements: dict[str, jax.Array]
    """Scalars for the log."""
    emitted: PyTree = ()
    """Arrays [B, ...] that `after_step` gets for the whole step, micro-batches concatenated."""


class Objective(abc.ABC):
    """What one training stage minimises: pure functions of parameters, state, batch and key.

    Subclasses are frozen dataclasses of hyper-parameters. A step of training calls, in this
    order: `before_step` once; `loss` under differentiation, once for each micro-batch;
    `after_step` once; then the optimiser moves the parameters. All of them are traced by jit, on
    global sharded arrays.
    """

    views: ClassVar[int] = 1
    """Augmented views of each sample that `loss` wants."""
    gives_scores: ClassVar[bool] = False
    """Whether `scores` is defined, so that the stage can be validated and evaluated."""
    embeds_labels: ClassVar[bool] = False
    """Whether `label_embeddings` is defined."""

    @property
    def network(self) -> Encoder | None:
        """The encoder, into which a file of weights can be read; None without one."""
        encoder = getattr(self, "encoder", None)
        return encoder if isinstance(encoder, Encoder) else None

    @abc.abstractmethod
    def init(self, key: jax.Array, spec: BatchSpec) -> tuple[PyTree, PyTree]:
        """Parameters and state (both pytrees of arrays) for batches like `spec`."""

    def before_step(self, params: PyTree, state: PyTree) -> PyTree:
        """The state with which the step's losses are computed; for instance a momentum update."""
        del params
        return state

    @abc.abstractmethod
    def loss(
        self, params: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """The scalar to minimise, and what comes with it."""

    def after_step(self, state: PyTree, emitted: PyTree) -> PyTree:
        """The state after the step; for instance with the step's keys enqueued."""
        del emitted
        return state

    def scores(self, params: PyTree, state: PyTree, inputs: jax.Array) -> jax.Array:
        """Label scores [B, L] in [0, 1] of inputs [B, ...], in evaluation mode."""
        del params, state, inputs
        raise TypeError(f"{type(self).__name__} gives no label scores")

    @abc.abstractmethod
    def embed(self, params: PyTree, state: PyTree, inputs: jax.Array) -> dict[str, jax.Array]:
        """Named representations of inputs [B, ...], in evaluation mode."""

    def label_embeddings(self, params: PyTree, state: PyTree) -> jax.Array:
        """What the network holds for every label, [L, E]."""
        del params, state
        raise TypeError(f"{type(self).__name__} has no embeddings of labels")

    def warm_start(
        self, params: PyTree, state: PyTree, source_params: PyTree, source_state: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Fresh parameters and state, with the encoder of an earlier stage in place of their own.

        Args:
          params: parameters as `init` gave them; `params["encoder"]` is replaced.
          state: state as `init` gave it; `state["batch_stats"]["encoder"]` is replaced.
          source_params: parameters of the earlier stage.
          source_state: state of the earlier stage.
        """
        stats = {**state["batch_stats"], "encoder": source_state["batch_stats"]["encoder"]}
        return (
            {**params, "encoder": source_params["encoder"]},
            {**state, "batch_stats": stats},
        )

    def queue(self, state: PyTree) -> Queue | None:
        """The queue in a state, which the trainer places and tells the size of; None without."""
        del state
        return None

    def portable(self, state: PyTree) -> PyTree:
        """The state as checkpoints hold it: a queue in slot order, so that any mesh can take it."""
        return state

    def placed(self, state: PyTree, spec: BatchSpec) -> PyTree:
        """The state that a portable one stands for, with queues of `spec.queue_shards` parts.

        Where the parts are as many as they were, its bits are those that were saved.
        """
        del spec
        return state

    def describe(self) -> str:
        """A name for tables, in lower case."""
        return type(self).__name__.lower()
