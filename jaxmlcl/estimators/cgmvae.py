"""C-GMVAE as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from jaxmlcl.estimators._base import require_one_of
from jaxmlcl.estimators._network import NetworkClassifier, check_numbers, check_steps, widths
from jaxmlcl.methods import CGMVAE
from jaxmlcl.models import MLP
from jaxmlcl.training.duration import steps
from jaxmlcl.training.optimizers import Cosine, Optimizer
from jaxmlcl.training.stage import Stage

Variant = Literal["full", "gm_only", "contrastive_only", "uni_gaussian"]
Form = Literal["code", "paper"]


class CGMVAEClassifier(NetworkClassifier):
    """A variational autoencoder whose prior is the mixture of a row's label Gaussians.

    Every label has an embedding, and a Gaussian of the latent space that a network makes of it. A
    row's own Gaussian N(m, v) is drawn towards the mixture of those of its labels, and its decoded
    point w towards their embeddings:

        beta (cross-entropies of sigmoid(w . e_l)) + kl_coefficient KL(N(m, v) | mixture) + alpha CL

    Args:
      hidden: widths of the encoder's layers (units).
      dropout: probability that a unit of either encoder is dropped in training.
      embedding: width E of the label embeddings (units).
      latent: width d of the latent space (units); `transform` gives the mean there.
      label_hidden: widths of the label encoder's layers (units).
      decoder_hidden: widths of the decoder's hidden layers (units).
      objective: `code`, the authors' program, or `paper`, equation 7.
      variant: `full`, or an ablation: `gm_only`, `contrastive_only`, `uni_gaussian`.
      alpha: weight of the contrastive loss CL.
      beta: weight of the cross-entropies.
      kl_coefficient: weight of the KL; None: 6 for `code`, 1 for `paper`.
      steps: optimiser steps; the rate falls to a tenth over them, as half a cosine.
      batch_size: rows in a step.
      learning_rate: of Adam, at the start.
      weight_decay: of Adam.
      select: `last`, or the measure by which the best step on validation is kept
        (`best_macro_f1`, `map`, `loss`, ...); rows are held out for it.
      validate_every: steps between two validations.
      patience: validations without improvement after which training ends; None: none.
      standardize: whether features get mean 0 and deviation 1 first.
      threshold: least probability of a predicted label; `validation`: the best micro-F1 on rows
        that are held out.
      validation_fraction: share of the rows that is held out where something is chosen and no
        `validation` is given.
      bucketed: whether data are padded, so that fits of similar shapes share what is compiled; it
        changes rounding only.
      verbose: 1 shows progress, on stderr.
      random_state: seed of everything; None: one from NumPy's global generator.

    Example:
      >>> import numpy as np
      >>> rng = np.random.default_rng(0)
      >>> Y = rng.integers(0, 2, (60, 2))
      >>> X = Y + 0.1 * rng.normal(size=(60, 2))
      >>> classifier = CGMVAEClassifier(
      ...     hidden=(16,), embedding=16, latent=4, label_hidden=(8,), decoder_hidden=(16,),
      ...     steps=150, learning_rate=1e-2, dropout=0.0)
      >>> classifier.fit(X, Y).score(X, Y)
      1.0
      >>> classifier.transform(X).shape
      (60, 4)

    Source: Bai, Kong & Gomes, "Gaussian Mixture Variational Autoencoder with Contrastive Learning
    for Multi-Label Classification", ICML 2022.
    """

    title: ClassVar[str] = "C-GMVAE"
    representation: ClassVar[str] = "latent"

    def __init__(
        self,
        hidden: tuple[int, ...] | int = (256, 512, 256),
        *,
        dropout: float = 0.5,
        embedding: int = 512,
        latent: int = 64,
        label_hidden: tuple[int, ...] | int = (512, 256),
        decoder_hidden: tuple[int, ...] | int = (512,),
        objective: Form = "code",
        variant: Variant = "full",
        alpha: float = 1.0,
        beta: float = 0.5,
        kl_coefficient: float | None = None,
        steps: int = 200,
        batch_size: int = 128,
        learning_rate: float = 7e-4,
        weight_decay: float = 1e-5,
        select: str = "last",
        validate_every: int = 10,
        patience: int | None = None,
        standardize: bool = True,
        threshold: float | Literal["validation"] = 0.5,
        validation_fraction: float = 0.2,
        bucketed: bool = True,
        verbose: int = 0,
        random_state: Any = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.embedding = embedding
        self.latent = latent
        self.label_hidden = label_hidden
        self.decoder_hidden = decoder_hidden
        self.objective = objective
        self.variant = variant
        self.alpha = alpha
        self.beta = beta
        self.kl_coefficient = kl_coefficient
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.select = select
        self.validate_every = validate_every
        self.patience = patience
        self.standardize = standardize
        self.threshold = threshold
        self.validation_fraction = validation_fraction
        self.bucketed = bucketed
        self.verbose = verbose
        self.random_state = random_state

    def _stages(self) -> Mapping[str, Stage]:
        check_steps(self, "embedding", "latent", "steps", "batch_size", "validate_every")
        check_numbers(self, "dropout", "alpha", "beta", "learning_rate", "weight_decay")
        if self.kl_coefficient is not None:
            check_numbers(self, "kl_coefficient")
        require_one_of(self, "objective", get_args(Form))
        require_one_of(self, "variant", get_args(Variant))
        stage = Stage(
            CGMVAE(
                encoder=MLP(widths(self), self.dropout),
                embedding=self.embedding,
                latent=self.latent,
                label_hidden=widths(self, "label_hidden"),
                label_dropout=self.dropout,
                decoder_hidden=widths(self, "decoder_hidden"),
                objective=self.objective,
                variant=self.variant,
                alpha=self.alpha,
                beta=self.beta,
                kl_coefficient=self.kl_coefficient,
            ),
            duration=steps(self.steps),
            batch_size=self.batch_size,
            optimizer=Optimizer(
                learning_rate=self.learning_rate,
                schedule=Cosine(final=0.1),
                weight_decay=self.weight_decay,
                decay_all=True,
            ),
            validate_every=steps(self.validate_every),
            select=self.select,  # type: ignore[arg-type]
            patience=self.patience,
        )
        return {"cgmvae": stage}
