"""C-GMVAE: a Gaussian mixture variational autoencoder with contrastive learning of labels.

Bai, Kong & Gomes, "Gaussian Mixture Variational Autoencoder with Contrastive Learning for
Multi-Label Classification", ICML 2022. Paper and program differ in places; docs/methods.md says
where, and which is the default here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxmlcl.errors import ConfigError
from jaxmlcl.layout import stream_rows
from jaxmlcl.losses import (
    binary_cross_entropy,
    gaussian_kl,
    gaussian_samples,
    mixture_kl,
    normalize,
)
from jaxmlcl.losses.parts import divide, score_contrastive
from jaxmlcl.methods.networks import init_module, run_module
from jaxmlcl.models import MLP, Decoder, Encoder, GaussianHead, LabelGaussians
from jaxmlcl.random import row_words, uniform
from jaxmlcl.training.duration import epochs
from jaxmlcl.training.objective import Aux, Batch, BatchSpec, Objective
from jaxmlcl.training.optimizers import Optimizer, WarmRestarts
from jaxmlcl.training.stage import Stage

PyTree = Any


@dataclasses.dataclass(frozen=True)
class CGMVAE(Objective):
    """Every label is a Gaussian of the latent space; a sample's must lie in its labels' mixture."""

    gives_scores: ClassVar[bool] = True
    embeds_labels: ClassVar[bool] = True

    encoder: Encoder = dataclasses.field(default_factory=lambda: MLP(dropout=0.5))
    """The network from features to the representation that the sample's Gaussian is made of."""
    embedding: int = 512
    """Width E of the label embeddings (units)."""
    latent: int = 64
    """Width d of the latent space (units)."""
    label_hidden: tuple[int, ...] = (512, 256)
    """Widths of the label encoder's layers (units)."""
    label_dropout: float = 0.5
    """Probability that a unit of the label encoder is dropped in training."""
    label_input: Literal["activated", "embedding"] = "activated"
    """What the label encoder sees: Dropout(ReLU(embedding + bias)) or the embedding itself."""
    decoder_hidden: tuple[int, ...] = (512,)
    """Widths of the decoder's hidden layers (units); the paper has 512, 512."""
    decoder_input: Literal["features", "z"] = "features"
    """What the decoder sees: the point of the latent space beside the features, or alone."""
    normalize_label_emb: bool = False
    """Scale label embeddings to unit length before they are compared with anything."""
    objective: Literal["code", "paper"] = "code"
    """code: beta (three cross-entropies) + 6 KL + alpha CL over samples and label sets. paper:
    KL + alpha CL + beta cross-entropy, of the samples alone (equation 7)."""
    variant: Literal["full", "gm_only", "contrastive_only", "uni_gaussian"] = "full"
    """Everything; without CL; without KL; or without CL and with one Gaussian for a label set."""
    alpha: float = 1.0
    """Weight of the contrastive loss."""
    beta: float = 0.5
    """Weight of the cross-entropies."""
    kl_coefficient: float | None = None
    """Weight of the KL; if absent 6 for the code's objective and 1 for the paper's."""
    reconstruction: Literal["none", "labels"] = "none"
    """What the paper's objective adds as reconstruction: nothing, or the cross-entropy of the
    label sets' branch."""
    temperature: float = 1.0
    """Temperature of the contrastive loss."""
    kl_samples: int = 1
    """Points of each sample's Gaussian that the KL is estimated from (count)."""
    kl_sampling: Literal["plain", "stratified"] = "plain"
    """Whether those points are independent or share out the distribution among them."""
    kl_point: Literal["own", "decoded"] = "own"
    """Whether the KL draws points of its own, or takes those that are decoded."""

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("embedding", self.embedding >= 1, "at least 1"),
            ("latent", self.latent >= 1, "at least 1"),
            ("label_hidden", all(w >= 1 for w in self.label_hidden), "widths of at least 1"),
            (
                "decoder_hidden",
                bool(self.decoder_hidden) and min(self.decoder_hidden) >= 1,
                "one or more widths of at least 1",
            ),
            ("label_dropout", 0 <= self.label_dropout < 1, "at least 0 and below 1"),
            ("alpha", 0 <= self.alpha < math.inf, "at least 0 and finite"),
            ("beta", 0 <= self.beta < math.inf, "at least 0 and finite"),
            (
                "kl_coefficient",
                self.kl_coefficient is None or 0 <= self.kl_coefficient < math.inf,
                "at least 0 and finite",
            ),
            ("temperature", self.temperature > 0, "positive"),
            ("kl_samples", self.kl_samples >= 1, "at least 1"),
        ):
            if not fits:
                raise ConfigError(f"objective: {name} must be {wanted}, not {getattr(self, name)}")

    def init(self, key: jax.Array, spec: BatchSpec) -> tuple[PyTree, PyTree]:
        """Parameters {encoder, head, labels, decoder}; state {batch_stats: {encoder}}."""
        keys = jax.random.split(key, 4)
        kind = spec.inputs.dtype
        inputs = jnp.zeros((1, *spec.inputs.shape[1:]), kind)
        encoder, stats = init_module(self.encoder.build(kind), keys[0], inputs, False)
        features = jnp.zeros((1, self.encoder.width), kind)
        head, _ = init_module(GaussianHead(self.latent, kind), keys[1], features)
        of_labels = self._labels(spec.labels.shape[-1], kind).init(keys[2], False)["params"]
        points = jnp.zeros((1, 1, self.latent), kind)
        decoder = self._decoder(kind).init(keys[3], inputs, points)["params"]
        params = {"encoder": encoder, "head": head, "labels": of_labels, "decoder": decoder}
        return params, {"batch_stats": {"encoder": stats}}

    def loss(
        self, params: PyTree, state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """The objective of the batch; a row without labels has part in its cross-entropy only."""
        encoder_key, label_key, noise_key = jax.random.split(key, 3)
        inputs, y, known = batch.inputs, batch.labels, batch.label_mask
        if known is not None:
            y = jnp.where(known, y, 0)
        mean, log_variance, stats = self._encode(params, state, inputs, True, encoder_key)
        variance = jnp.exp(log_variance)
        # Once a batch for all labels, whatever its samples are.
        label_means, label_log_variances = _wide(
            self._labels(y.shape[-1], inputs.dtype).apply(
                {"params": params["labels"]}, True, rngs={"dropout": label_key}
            )
        )
        decoded = 2 if self.objective == "code" else 1
        drawn = self.kl_samples if self.kl_point == "own" else 0
        points, own_points = self._points(noise_key, mean, variance, decoded, drawn)
        if self.variant == "uni_gaussian":
            kl = gaussian_kl(
                mean,
                variance,
                label_average(label_means, y),
                jnp.exp(label_average(label_log_variances, y)),
                where=(y > 0).any(-1),
            )
        else:
            of_kl = own_points if drawn else points
            kl = mixture_kl(of_kl, mean, variance, label_means, jnp.exp(label_log_variances), y)
        if self._decodes_labels:
            points = jnp.concatenate([label_average(label_means, y)[None], points])
        scores = self._decoded_scores(params, inputs, points)
        loss, measurements = self.total(scores, kl, y, known)
        return loss, Aux({"batch_stats": {"encoder": stats}}, measurements)

    def total(
        self, scores: jax.Array, kl: jax.Array, labels: jax.Array, label_mask: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The objective from its parts, and those of its parts that it weighs.

        Args:
          scores: [V, B, L] of V branches: the label sets' first, where the objective decodes
            them, then those of the samples.
          kl: its estimate for the batch.
          labels: [B, L], 0 where unknown.
          label_mask: [B, L], False for unknown labels; None where all are known.

        Returns:
          The loss, and {name: value before its weight}.
        """
        labelled = (labels > 0).any(-1)
        entropies = [
            binary_cross_entropy(
                branch,
                labels,
                reduction="sum_labels",
                label_mask=label_mask,
                where=labelled if self._decodes_labels and place == 0 else None,
            )
            for place, branch in enumerate(scores)
        ]
        terms: dict[str, jax.Array] = {}
        weights = {"kl": self._kl_weight, "reconstruction": 1.0, "contrastive": self.alpha}
        weights["cross_entropy"] = self.beta
        if self.objective == "paper" and self._decodes_labels:
            terms["reconstruction"] = entropies.pop(0)
        terms["cross_entropy"] = jnp.stack(entropies).sum()
        if self.variant != "contrastive_only":
            terms["kl"] = kl
        if self.variant in ("full", "contrastive_only"):
            # The program contrasts label sets and samples, each once; equation 5 samples alone.
            rows = scores[:2] if self.objective == "code" else scores[-1:]
            contrasts = [
                score_contrastive(row / self.temperature, labels, label_mask=label_mask)
                for row in rows
            ]
            terms["contrastive"] = jnp.stack(contrasts).mean()
        loss = jnp.stack([weights[name] * value for name, value in terms.items()]).sum()
        return loss, terms

    def scores(self, params: PyTree, state: PyTree, inputs: jax.Array) -> jax.Array:
        """Probabilities [B, L], from the means of the samples' Gaussians."""
        mean, _, _ = self._encode(params, state, inputs, False, None)
        return jax.nn.sigmoid(self._decoded_scores(params, inputs, mean[None])[0])

    def embed(self, params: PyTree, state: PyTree, inputs: jax.Array) -> dict[str, jax.Array]:
        """Representation [B, width], latent mean [B, d] and embedding [B, E] of unit length."""
        features, mean, _, _ = self._features(params, state, inputs, False, None)
        embedding = self._decode(params, inputs, mean[None])[0]
        return {"representation": features, "latent": mean, "embedding": embedding}

    def describe(self) -> str:
        """c-gmvae, and the variant where it is not the full method."""
        ending = "" if self.variant == "full" else f" {self.variant.replace('_', ' ')}"
        return f"c-gmvae{ending}"

    def label_embeddings(self, params: PyTree, state: PyTree) -> jax.Array:
        """The label embeddings [L, E] as samples are compared with them."""
        del state
        return self._embeddings(params)

    @property
    def _decodes_labels(self) -> bool:
        return self.objective == "code" or self.reconstruction == "labels"

    @property
    def _kl_weight(self) -> float:
        if self.kl_coefficient is not None:
            return self.kl_coefficient
        return 6.0 if self.objective == "code" else 1.0

    def _labels(self, num_labels: int, kind: Any) -> LabelGaussians:
        return LabelGaussians(
            num_labels,
            self.embedding,
            self.label_hidden,
            self.latent,
            self.label_dropout,
            self.label_input == "activated",
            kind,
        )

    def _decoder(self, kind: Any) -> Decoder:
        return Decoder(self.embedding, self.decoder_hidden, self.decoder_input == "features", kind)

    def _features(
        self, params: PyTree, state: PyTree, inputs: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, PyTree]:
        """Representation, mean and log variance of the samples, and the new batch statistics."""
        features, stats = run_module(
            self.encoder.build(inputs.dtype),
            params["encoder"],
            state["batch_stats"]["encoder"],
            inputs,
            train=train,
            key=key,
        )
        head = GaussianHead(self.latent, inputs.dtype)
        mean, log_variance = _wide(head.apply({"params": params["head"]}, features))
        return features, mean, log_variance, stats

    def _encode(
        self, params: PyTree, state: PyTree, inputs: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        return self._features(params, state, inputs, train, key)[1:]

    def _points(
        self, key: jax.Array, mean: jax.Array, variance: jax.Array, decoded: int, own: int
    ) -> tuple[jax.Array, jax.Array]:
        """Points [decoded, B, d] to decode, and [own, B, d] for the KL."""
        rows, width = mean.shape
        words = row_words(key, stream_rows(rows))
        noise = uniform(words, (decoded + own) * width).reshape(rows, decoded + own, width)
        # The middles of the 2^24 steps of the unit interval: 0 would be a point at infinity.
        noise = jnp.clip(noise + 2.0**-25, 2.0**-25, 1 - 2.0**-24).swapaxes(0, 1)
        noise = noise.astype(mean.dtype)
        stratified = self.kl_sampling == "stratified"
        return (
            gaussian_samples(noise[:decoded], mean, variance),
            gaussian_samples(noise[decoded:], mean, variance, stratified=stratified),
        )

    def _decode(self, params: PyTree, inputs: jax.Array, points: jax.Array) -> jax.Array:
        """Unit vectors [V, B, E] of points [V, B, d]."""
        decoder = self._decoder(inputs.dtype)
        w: Any = decoder.apply({"params": params["decoder"]}, inputs, points)
        return normalize(w)

    def _embeddings(self, params: PyTree) -> jax.Array:
        """Label embeddings [L, E] as samples are compared with them."""
        embeddings: jax.Array = params["labels"]["embeddings"]
        return normalize(embeddings) if self.normalize_label_emb else embeddings

    def _decoded_scores(self, params: PyTree, inputs: jax.Array, points: jax.Array) -> jax.Array:
        """Scores [V, B, L] of points [V, B, d], in at least float32."""
        w = self._decode(params, inputs, points)
        kind = jnp.promote_types(w.dtype, jnp.float32)
        embeddings = self._embeddings(params).astype(w.dtype)
        return jnp.einsum("vbe,le->vbl", w, embeddings, preferred_element_type=kind)


def cgmvae_stage(
    *,
    rate: float,
    embedding: int,
    alpha: float = 1.0,
    beta: float = 0.5,
    dropout: float = 0.5,
    batch_size: int = 128,
    variant: Literal["full", "gm_only", "contrastive_only", "uni_gaussian"] = "full",
) -> Stage:
    """The authors' program with one row of the paper's Table 7.

    Adam decays everything by 1e-5. The rate falls to a tenth over cycles of 50 and 100 epochs, and
    moves once an epoch. What is kept is the epoch of best macro-F1 on validation, at the threshold
    that is best there. After 20 epochs without a better one training ends; the program goes on for
    90 in all, which over-fits small sets.

    Args:
      rate: learning rate at the peak.
      embedding: width E of the label embeddings (units).
      alpha: weight of the contrastive loss.
      beta: weight of the cross-entropies.
      dropout: probability that a unit of either encoder is dropped.
      batch_size: samples per step.
      variant: the full method, or one of the ablations of Table 4.

    Returns:
      The only stage of an experiment.

    Example:
      >>> cgmvae_stage(rate=2e-3, embedding=512).objective.describe()
      'c-gmvae'

    Source: C-GMVAE, ICML 2022, Table 7 and the released program.
    """
    return Stage(
        CGMVAE(
            encoder=MLP(hidden=(256, 512, 256), dropout=dropout),
            label_dropout=dropout,
            embedding=embedding,
            alpha=alpha,
            beta=beta,
            variant=variant,
        ),
        duration=epochs(90),
        batch_size=batch_size,
        optimizer=Optimizer(
            name="adam",
            learning_rate=rate,
            schedule=WarmRestarts(period=epochs(50), multiplier=2.0, final=0.1, hold=epochs(1)),
            weight_decay=1e-5,
            decay_all=True,
        ),
        select="best_macro_f1",
        patience=20,
    )


def label_average(of_labels: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over a row's labels, by their degrees: sum_i y_i m_i / sum_i y_i.

    Args:
      of_labels: [L, d].
      labels: [B, L] in [0, 1].

    Returns:
      [B, d]; 0 for a row without labels.

    Example:
      >>> label_average(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([[1, 1, 0], [0, 0, 0]]))
      Array([[2.],
             [0.]], dtype=float32)

    Source: C-GMVAE, ICML 2022, section 3.
    """
    degrees = labels.astype(of_labels.dtype)
    sums = jnp.matmul(degrees, of_labels, precision=jax.lax.Precision.HIGHEST)
    return divide(sums, degrees.sum(-1, keepdims=True))


def _wide(pair: Any) -> tuple[jax.Array, jax.Array]:
    """Means and log variances in at least float32, in which densities are computed."""
    first, second = pair
    kind = jnp.promote_types(first.dtype, jnp.float32)
    return first.astype(kind), second.astype(kind)
