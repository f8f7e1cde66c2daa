"""MulSupCon and per-label classification at once, on one encoder.

Not a published recipe: a control for the two-stage one, at the same views, queue and cost.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxmlcl.errors import ConfigError
from jaxmlcl.losses import binary_cross_entropy
from jaxmlcl.methods.classification import Classification
from jaxmlcl.methods.mulsupcon import MulSupCon
from jaxmlcl.methods.networks import init_classifier, run_classifier
from jaxmlcl.models import Encoder
from jaxmlcl.queue import Queue
from jaxmlcl.training.objective import Aux, Batch, BatchSpec, Objective

PyTree = Any


@dataclasses.dataclass(frozen=True)
class JointMulSupCon(Objective):
    """The contrastive loss plus binary cross-entropy of a linear classifier beside the head."""

    views: ClassVar[int] = MulSupCon.views
    gives_scores: ClassVar[bool] = True

    contrast: MulSupCon = dataclasses.field(default_factory=MulSupCon)
    """The contrastive loss, with the encoder that both losses train."""
    weight: float = 1.0
    """Weight of the cross-entropy of the query view's logits."""
    contrast_weight: float = 1.0
    """Weight of the contrastive loss; 0 leaves classification of the augmented query view."""

    def __post_init__(self) -> None:
        for name in ("weight", "contrast_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"objective: {name} must be at least 0 and finite, not {value}")
        if self.weight == self.contrast_weight == 0:
            raise ConfigError("objective: weight and contrast_weight are both 0; nothing is learnt")

    def init(self, key: jax.Array, spec: BatchSpec) -> tuple[PyTree, PyTree]:
        """MulSupCon's parameters and {classifier}; MulSupCon's state."""
        contrast_key, classifier_key = jax.random.split(key)
        params, state = self.contrast.init(contrast_key, spec)
        features = jnp.zeros((1, self.contrast.encoder.width), spec.inputs.dtype)
        classifier = init_classifier(spec.labels.shape[-1], classifier_key, features)
        return {**params, "classifier": classifier}, state

    @property
    def network(self) -> Encoder:
        """MulSupCon's encoder."""
        return self.contrast.encoder

    def warm_start(
        self, params: PyTree, state: PyTree, source_params: PyTree, source_state: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The encoder of an earlier stage, for queries and keys alike."""
        return self.contrast.warm_start(params, state, source_params, source_state)

    def before_step(self, params: PyTree, state: PyTree) -> PyTree:
        """MulSupCon's momentum update; the classifier has no copy that follows it."""
        return self.contrast.before_step(_without_classifier(params), state)

    def loss(
        self, params: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """contrast_weight x MulSupCon + weight x mean binary cross-entropy."""
        contrastive, aux, features = self.contrast.contrast(
            _without_classifier(params), state, batch, key
        )
        logits = run_classifier(params["classifier"], features, batch.inputs.dtype)
        entropy = binary_cross_entropy(logits, batch.labels, label_mask=batch.label_mask)
        terms = {"contrastive_loss": contrastive, "classification_loss": entropy}
        loss = self.contrast_weight * contrastive + self.weight * entropy
        return loss, aux._replace(measurements={**aux.measurements, **terms})

    def after_step(self, state: PyTree, emitted: PyTree) -> PyTree:
        """The queue with the step's keys."""
        return self.contrast.after_step(state, emitted)

    def queue(self, state: PyTree) -> Queue:
        """MulSupCon's queue."""
        return self.contrast.queue(state)

    def portable(self, state: PyTree) -> PyTree:
        """The state with its queue in slot order."""
        return self.contrast.portable(state)

    def placed(self, state: PyTree, spec: BatchSpec) -> PyTree:
        """The state with its queue in as many parts as `spec` says."""
        return self.contrast.placed(state, spec)

    def scores(self, params: PyTree, state: PyTree, inputs: jax.Array) -> jax.Array:
        """Probabilities [B, L]."""
        return Classification(self.contrast.encoder).scores(params, state, inputs)

    def embed(self, params: PyTree, state: PyTree, inputs: jax.Array) -> dict[str, jax.Array]:
        """The representation [B, width] and the normalised embedding [B, D]."""
        return self.contrast.embed(params, state, inputs)

    def describe(self) -> str:
        """mulsupcon + bce."""
        return f"{self.contrast.describe()} + bce"


def _without_classifier(params: PyTree) -> PyTree:
    return {name: part for name, part in params.items() if name != "classifier"}
