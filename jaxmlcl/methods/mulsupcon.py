"""MulSupCon: multi-label supervised contrastive learning with a momentum queue.

Zhang & Wu, "Multi-label Supervised Contrastive Learning", AAAI 2024. Paper and program differ in
places; docs/methods.md says where, and which is the default here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxmlcl import queue as momentum_queue
from jaxmlcl.data.augment_images import strategy
from jaxmlcl.errors import ConfigError
from jaxmlcl.layout import batch_devices
from jaxmlcl.losses import class_sums, normalize
from jaxmlcl.methods.classification import Classification
from jaxmlcl.methods.networks import init_module, run_module
from jaxmlcl.models import MLP, Encoder, Projection, ResNet
from jaxmlcl.sharding import multi_positive_infonce
from jaxmlcl.training.dataset import Data
from jaxmlcl.training.duration import epochs
from jaxmlcl.training.objective import Aux, Batch, BatchSpec, Objective
from jaxmlcl.training.optimizers import Cosine, Optimizer, Plateau
from jaxmlcl.training.stage import Stage

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MulSupCon(Objective):
    """Contrastive pretraining against a momentum encoder's keys and a queue of earlier ones."""

    views: ClassVar[int] = 2

    encoder: Encoder = dataclasses.field(default_factory=MLP)
    """The network that is pretrained."""
    head: Projection = dataclasses.field(default_factory=Projection)
    """The projection on top of it, dropped afterwards."""
    weighting: Literal["mulsupcon", "mulsupcon_mean", "any", "all", "jaccard"] = "mulsupcon"
    """The rule that weighs pairs: equations 4-5, equation 6, the two ablations, or overlap."""
    temperature: float = 0.1
    """Temperature of the softmax over keys."""
    momentum: float = 0.999
    """Fraction of the key encoder that is kept per step."""
    queue_capacity: int = 256
    """Keys held, Q (samples); at least the batch size."""
    queue_fill: Literal["authors", "after_full", "partial"] = "authors"
    """When the queue takes part: at the step that completes it (its unwritten slots are random
    negatives then), from the step after, or as far as it is written."""
    queue_dtype: Literal["float32", "compute"] = "float32"
    """Type the queue's keys are kept in: at least float32, or that of the computation, which for
    bfloat16 halves them."""
    queue_class_sums: bool = False
    """Let the queue carry the sum and the number of its keys of each label, so that no step adds
    them up anew (mulsupcon and mulsupcon_mean, without exclude_same_sample)."""
    exclude_same_sample: bool = False
    """Leave keys of the anchor's own sample in the queue out of positives and denominator."""
    threshold: float = 0.5
    """Least overlap of a positive pair (jaccard only)."""
    empty_matches_empty: bool = True
    """Whether two samples without labels are positives of each other (all and jaccard only)."""
    strategy: Literal["auto", "gather_keys", "gather_anchors", "ring"] = "auto"
    """What travels between several devices in the loss; auto: the fewest bytes."""
    chunk_size: int | None = None
    """Keys the loss looks at in one go (keys); none: chosen from the shapes."""

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("temperature", self.temperature > 0, "positive"),
            ("momentum", 0 <= self.momentum <= 1, "between 0 and 1"),
            ("queue_capacity", self.queue_capacity >= 1, "at least 1"),
            (
                "queue_capacity",
                self.queue_capacity <= momentum_queue.CAPACITY_LIMIT,
                f"at most {momentum_queue.CAPACITY_LIMIT}",
            ),
            ("threshold", 0 <= self.threshold <= 1, "between 0 and 1"),
            ("chunk_size", self.chunk_size is None or self.chunk_size >= 1, "at least 1"),
        ):
            if not fits:
                raise ConfigError(f"objective: {name} must be {wanted}, not {getattr(self, name)}")
        if self.queue_class_sums and self.weighting not in ("mulsupcon", "mulsupcon_mean"):
            raise ConfigError(
                "objective: queue_class_sums needs a weighting that is a product of labels, "
                f'mulsupcon or mulsupcon_mean, not "{self.weighting}"'
            )
        if self.queue_class_sums and self.exclude_same_sample:
            raise ConfigError(
                "objective: queue_class_sums and exclude_same_sample exclude each other: with keys "
                "left out, every anchor has sums of its own"
            )

    def init(self, key: jax.Array, spec: BatchSpec) -> tuple[PyTree, PyTree]:
        """Parameters {encoder, head}; state {batch_stats, key_params, key_stats, queue}."""
        if spec.step_samples > self.queue_capacity:
            raise ConfigError(
                f"objective: queue_capacity {self.queue_capacity} is below the batch size "
                f"{spec.step_samples}; make one larger or the other smaller"
            )
        if self.queue_capacity % spec.queue_shards:
            raise ConfigError(
                f"objective: queue_capacity {self.queue_capacity} does not divide over "
                f"{spec.queue_shards} devices, over which mesh.rules interleave the queue; change "
                "one of them"
            )
        if spec.soft_labels and self.weighting not in ("mulsupcon", "mulsupcon_mean"):
            raise ConfigError(
                f'objective: weighting "{self.weighting}" compares sets of labels, which targets '
                "in [0, 1] are not; use mulsupcon or mulsupcon_mean, or leave ?targets= out"
            )
        encoder_key, head_key, queue_key = jax.random.split(key, 3)
        kind = spec.inputs.dtype
        inputs = jnp.zeros((1, *spec.inputs.shape[2:]), kind)
        encoder, encoder_stats = init_module(self.encoder.build(kind), encoder_key, inputs, False)
        features = jnp.zeros((1, self.encoder.width), kind)
        head, head_stats = init_module(self.head.build(kind), head_key, features, False)
        params = {"encoder": encoder, "head": head}
        stats = {"encoder": encoder_stats, "head": head_stats}
        queue = momentum_queue.init(
            self.queue_capacity,
            self.head.width,
            spec.labels.shape[-1],
            dtype=kind if self.queue_dtype == "compute" else jnp.promote_types(kind, jnp.float32),
            label_dtype=jnp.float32 if spec.soft_labels else jnp.uint8,
            key=queue_key,
            shards=spec.queue_shards,
            class_sums=self.queue_class_sums,
        )
        # The key encoder starts as a copy; copies, because the step donates every buffer.
        copy = jax.tree.map(jnp.copy, (params, stats))
        state = {"batch_stats": stats, "key_params": copy[0], "key_stats": copy[1], "queue": queue}
        return params, state

    def warm_start(
        self, params: PyTree, state: PyTree, source_params: PyTree, source_state: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The encoder of an earlier stage, for queries and keys alike."""
        params, state = super().warm_start(params, state, source_params, source_state)
        # Copies, because the step donates every buffer.
        copy = jax.tree.map(jnp.copy, (params["encoder"], state["batch_stats"]["encoder"]))
        key_params = {**state["key_params"], "encoder": copy[0]}
        key_stats = {**state["key_stats"], "encoder": copy[1]}
        return params, {**state, "key_params": key_params, "key_stats": key_stats}

    def before_step(self, params: PyTree, state: PyTree) -> PyTree:
        """theta_k <- m theta_k + (1 - m) theta_q, parameters only: statistics are the key's own."""
        m = self.momentum
        key_params = jax.tree.map(
            lambda k, q: m * k + (1.0 - m) * jax.lax.stop_gradient(q), state["key_params"], params
        )
        return {**state, "key_params": key_params}

    def loss(
        self, params: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """MulSupCon equations 4-5 over the batch's keys and the queue."""
        return self.contrast(params, state, batch, key)[:2]

    def contrast(
        self, params: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, jax.Array]:
        """The loss, what comes with it, and the representations [B, width] of the queries."""
        query_key, key_key = jax.random.split(key)
        anchors, stats, features = self._embed(
            params, state["batch_stats"], batch.inputs[:, 0], query_key, train=True
        )
        keys, key_stats, _ = self._embed(
            state["key_params"], state["key_stats"], batch.inputs[:, 1], key_key, train=True
        )
        keys = jax.lax.stop_gradient(keys)
        queue = state["queue"]
        old_keys, old_labels, old_ids, valid = momentum_queue.visible(
            queue, batch.step_samples, fill=self.queue_fill
        )
        pairs: dict[str, Any] = {}
        if self.exclude_same_sample:
            # The batch's keys get id -1, so that an anchor's own key stays its positive.
            pairs["anchor_ids"] = batch.ids
            pairs["key_ids"] = (jnp.full_like(batch.ids, -1), old_ids)
        if batch.label_mask is not None:
            # A sample of which nothing is known is no anchor; its key stays in the denominator.
            pairs["label_mask"] = batch.label_mask
            pairs["where"] = batch.label_mask.any(-1)
            pairs["key_label_mask"] = (batch.label_mask, momentum_queue.known_labels(queue))
        if self.queue_class_sums:
            held = momentum_queue.visible_class_sums(
                queue, batch.step_samples, fill=self.queue_fill
            )
            pairs["class_sums"] = jax.tree.map(jnp.add, held, class_sums(keys, batch.labels))
        loss, measured = multi_positive_infonce(
            anchors,
            (keys, old_keys),
            batch.labels,
            (batch.labels, old_labels),
            key_valid=(None, valid),
            weighting=self.weighting,
            temperature=self.temperature,
            threshold=self.threshold,
            empty_matches_empty=self.empty_matches_empty,
            chunk_size=self.chunk_size,
            strategy=self.strategy,
            replicated=(False, queue.shards == 1),
            statistics=True,
            **pairs,
        )
        measurements = {**measured, "queue_fill": momentum_queue.fill_fraction(queue)}
        new = {**state, "batch_stats": stats, "key_stats": key_stats}
        emitted: tuple[Any, ...] = (keys, batch.labels, batch.ids)
        if batch.label_mask is not None:
            emitted = (*emitted, batch.label_mask)
        return loss, Aux(new, measurements, emitted), features

    def after_step(self, state: PyTree, emitted: PyTree) -> PyTree:
        """The queue with the step's keys."""
        dealt = batch_devices(emitted[0].shape[0])
        queue = momentum_queue.enqueue(state["queue"], *emitted, interleaved_over=dealt)
        return {**state, "queue": queue}

    def queue(self, state: PyTree) -> momentum_queue.Queue:
        """The momentum queue."""
        return state["queue"]

    def portable(self, state: PyTree) -> PyTree:
        """The state with its queue in slot order."""
        return {**state, "queue": momentum_queue.portable(state["queue"])}

    def placed(self, state: PyTree, spec: BatchSpec) -> PyTree:
        """The state with its queue in as many parts as `spec` says."""
        return {**state, "queue": momentum_queue.placed(state["queue"], spec.queue_shards)}

    def embed(self, params: PyTree, state: PyTree, inputs: jax.Array) -> dict[str, jax.Array]:
        """The representation [B, width] and the normalised embedding [B, D]."""
        stats = state["batch_stats"]
        encoder, head = self.encoder.build(inputs.dtype), self.head.build(inputs.dtype)
        features, _ = run_module(encoder, params["encoder"], stats["encoder"], inputs, train=False)
        z, _ = run_module(head, params["head"], stats["head"], features, train=False)
        return {"representation": features, "embedding": normalize(z)}

    def _embed(
        self, params: PyTree, stats: PyTree, inputs: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree, jax.Array]:
        encoder_key, head_key = jax.random.split(key)
        features, encoder_stats = run_module(
            self.encoder.build(inputs.dtype),
            params["encoder"],
            stats["encoder"],
            inputs,
            train=train,
            key=encoder_key,
        )
        z, head_stats = run_module(
            self.head.build(inputs.dtype),
            params["head"],
            stats["head"],
            features.astype(inputs.dtype),
            train=train,
            key=head_key,
        )
        return normalize(z), {"encoder": encoder_stats, "head": head_stats}, features


def linear_probe(encoder: Encoder) -> Classification:
    """A linear classifier on a frozen encoder; the stage freezes "^encoder/" as well."""
    return Classification(encoder=encoder, encoder_mode="eval")


def photograph_stages(
    encoder: Encoder | None = None, *, batch_size: int = 64, queue_capacity: int = 8192
) -> dict[str, Stage]:
    """The published recipe for photographs: pretraining, both uses of it, and BCE from scratch.

    400 epochs of SGD at 0.1 under a cosine, with SimCLR's crops and colours; a linear probe of the
    frozen encoder in evaluation mode (Adam, 0.01) and fine-tuning of everything (Adam, 1e-4), both
    with the rate reduced on plateaus of the validation loss and the best step kept; and the
    pretraining recipe with binary cross-entropy in the place of the contrastive loss. What the
    paper leaves open is chosen as is usual: momentum 0.9, weight decay 1e-4, a queue of 8192, 30
    epochs downstream.

    Args:
      encoder: ResNet-50 if left out.
      batch_size: 64; the paper takes 128 for Objects365.
      queue_capacity: slots of the queue.

    Returns:
      The stages pretrain, linear, finetune and bce.

    Example:
      >>> list(photograph_stages())
      ['pretrain', 'linear', 'finetune', 'bce']

    Source: MulSupCon, AAAI 2024, section 5, and its authors' program.
    """
    encoder = encoder or ResNet((3, 4, 6, 3), block="bottleneck")
    simclr, simple = strategy("simclr"), strategy("simple")
    pretraining = Optimizer("sgd", 0.1, schedule=Cosine(), momentum=0.9, weight_decay=1e-4)
    plateau = _downstream_plateau()
    downstream: dict[str, Any] = {
        "duration": epochs(30),
        "batch_size": batch_size,
        "augmentation": simple,
        "starts_from": "pretrain",
        "select": "loss",
    }
    return {
        "pretrain": Stage(
            MulSupCon(encoder=encoder, queue_capacity=queue_capacity),
            epochs(400),
            batch_size=batch_size,
            optimizer=pretraining,
            augmentation=simclr,
        ),
        "linear": Stage(
            linear_probe(encoder),
            optimizer=Optimizer("adam", 0.01, schedule=plateau),
            frozen=("^encoder/",),
            **downstream,
        ),
        "finetune": Stage(
            fine_tuning(encoder), optimizer=Optimizer("adam", 1e-4, schedule=plateau), **downstream
        ),
        "bce": Stage(
            Classification(encoder=encoder),
            epochs(400),
            batch_size=batch_size,
            optimizer=pretraining,
            augmentation=simclr,
            select="loss",
        ),
    }


def transfer_probe(
    starts_from: str, data: Data, encoder: Encoder | None = None, *, batch_size: int = 64
) -> Stage:
    """A linear probe of a stage's frozen encoder on other photographs with other labels.

    Adam at 0.04, reduced on plateaus of the validation loss, the best step kept, 30 epochs.

    Args:
      starts_from: the stage whose encoder is probed.
      data: the other splits.
      encoder: of that stage; ResNet-50 if left out.
      batch_size: 64.

    Example:
      >>> probe = transfer_probe("pretrain", Data("voc:A", validation="voc:B"))
      >>> probe.frozen, probe.optimizer.learning_rate
      (('^encoder/',), 0.04)

    Source: MulSupCon, AAAI 2024, section 5 (transfer learning) and table 7.
    """
    return Stage(
        linear_probe(encoder or ResNet((3, 4, 6, 3), block="bottleneck")),
        epochs(30),
        batch_size=batch_size,
        optimizer=Optimizer("adam", 0.04, schedule=_downstream_plateau()),
        augmentation=strategy("simple"),
        starts_from=starts_from,
        data=data,
        frozen=("^encoder/",),
        select="loss",
    )


def _downstream_plateau() -> Plateau:
    return Plateau(factor=0.1, patience=2, cooldown=1, threshold=1e-3)


def fine_tuning(encoder: Encoder) -> Classification:
    """A linear classifier on an encoder that moves too."""
    return Classification(encoder=encoder)
