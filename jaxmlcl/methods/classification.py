"""Classification: an encoder and one linear layer under a per-label loss.

The same objective is the supervised baseline (trained from scratch), the linear probe (frozen
encoder in evaluation mode) and fine-tuning (a lower rate for the encoder), as in MulSupCon
section 5; the stage says which.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxmlcl.losses import asymmetric, binary_cross_entropy, focal
from jaxmlcl.methods.networks import init_classifier, init_module, run_classifier, run_module
from jaxmlcl.models import MLP, Encoder
from jaxmlcl.training.objective import Aux, Batch, BatchSpec, Objective

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Encoder and linear classifier; downstream, nothing is normalised."""

    gives_scores: ClassVar[bool] = True

    encoder: Encoder = dataclasses.field(default_factory=MLP)
    """The network below the classifier."""
    loss_name: Literal["bce", "focal", "asymmetric"] = "bce"
    """bce and focal: mean over samples and labels; asymmetric: summed, as its authors do."""
    encoder_mode: Literal["train", "eval"] = "train"
    """eval: the encoder runs without dropout and on its running statistics (linear probe)."""

    def init(self, key: jax.Array, spec: BatchSpec) -> tuple[PyTree, PyTree]:
        """Parameters {encoder, classifier}, state {batch_stats: {encoder}}."""
        encoder_key, classifier_key = jax.random.split(key)
        kind = spec.inputs.dtype
        inputs = jnp.zeros((1, *spec.inputs.shape[1:]), kind)
        encoder, stats = init_module(self.encoder.build(kind), encoder_key, inputs, False)
        features = jnp.zeros((1, self.encoder.width), kind)
        labels = spec.labels.shape[-1]
        classifier = init_classifier(labels, classifier_key, features)
        return {"encoder": encoder, "classifier": classifier}, {"batch_stats": {"encoder": stats}}

    def loss(
        self, params: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """The per-label loss of the logits, over the labels that are known."""
        train = self.encoder_mode == "train"
        logits, stats = self._logits(params, state, batch.inputs, train, key)
        function = {"bce": binary_cross_entropy, "focal": focal, "asymmetric": asymmetric}
        loss = function[self.loss_name](logits, batch.labels, label_mask=batch.label_mask)
        return loss, Aux({"batch_stats": {"encoder": stats}}, {})

    def scores(self, params: PyTree, state: PyTree, inputs: jax.Array) -> jax.Array:
        """Probabilities [B, L]."""
        return jax.nn.sigmoid(self._logits(params, state, inputs, False, None)[0])

    def embed(self, params: PyTree, state: PyTree, inputs: jax.Array) -> dict[str, jax.Array]:
        """The representation [B, width]."""
        encoder = self.encoder.build(inputs.dtype)
        features, _ = run_module(
            encoder, params["encoder"], state["batch_stats"]["encoder"], inputs, train=False
        )
        return {"representation": features}

    def describe(self) -> str:
        """linear probe, or the name of the loss."""
        return "linear probe" if self.encoder_mode == "eval" else self.loss_name

    def _logits(
        self, params: PyTree, state: PyTree, inputs: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, PyTree]:
        features, stats = run_module(
            self.encoder.build(inputs.dtype),
            params["encoder"],
            state["batch_stats"]["encoder"],
            inputs,
            train=train,
            key=key,
        )
        return run_classifier(params["classifier"], features, inputs.dtype), stats
