"""MulSupCon as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jaxmlcl.data.augment import ZeroMask
from jaxmlcl.estimators._base import require_one_of
from jaxmlcl.estimators._network import NetworkClassifier, check_numbers, check_steps, widths
from jaxmlcl.methods import MulSupCon
from jaxmlcl.methods.mulsupcon import fine_tuning
from jaxmlcl.models import MLP, Projection
from jaxmlcl.training.duration import steps
from jaxmlcl.training.optimizers import Cosine, Optimizer
from jaxmlcl.training.stage import Stage

WEIGHTINGS = ("mulsupcon", "mulsupcon_mean", "any", "all", "jaccard")


class MulSupConClassifier(NetworkClassifier):
    """An MLP, first pretrained by the labels it shares with others, then fine-tuned per label.

    Pretraining minimises, over the keys of a batch and of a momentum queue,

        sum_i sum_{j in y_i} mean_{p: j in y_p} -log softmax(z_i . k / t)_p / sum_i |y_i|

    and fine-tuning the binary cross-entropy of a linear layer on the representation, with a lower
    rate for the encoder.

    Args:
      hidden: widths of the layers (units); the last is the representation that `transform` gives.
      dropout: probability that a unit is dropped in training.
      embedding: width D of the embeddings that are compared (units).
      weighting: `mulsupcon`, `mulsupcon_mean`, `any`, `all` or `jaccard`.
      temperature: of the softmax over keys, t.
      momentum: fraction of the key encoder that is kept per step.
      queue_capacity: keys that the queue holds; at least `batch_size`.
      mask_probability: probability that a feature is set to 0 in a view.
      pretraining_steps: optimiser steps of pretraining, in batches of `batch_size`.
      batch_size: rows in a step of pretraining.
      learning_rate: of Adam, at the start of both parts.
      weight_decay: of Adam, in pretraining.
      steps: optimiser steps of fine-tuning, in batches of 32; the rate falls to 0 over them.
      encoder_rate: the encoder's rate in fine-tuning, as a fraction of the classifier's.
      select: `last`, or the measure by which the best step of fine-tuning on validation is kept
        (`map`, `loss`, `micro_f1`, ...); rows are held out for it.
      validate_every: steps between two validations.
      patience: validations without improvement after which fine-tuning ends; None: none.
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
      >>> classifier = MulSupConClassifier(
      ...     hidden=(16,), embedding=8, pretraining_steps=50, steps=200, learning_rate=1e-2)
      >>> classifier.fit(X, Y).score(X, Y)
      1.0
      >>> classifier.transform(X).shape
      (60, 16)

    Source: Zhang & Wu, "Multi-label Supervised Contrastive Learning", AAAI 2024, eq. 4-5.
    """

    title: ClassVar[str] = "MulSupCon"

    def __init__(
        self,
        hidden: tuple[int, ...] | int = (256, 512, 256),
        *,
        dropout: float = 0.2,
        embedding: int = 256,
        weighting: Literal["mulsupcon", "mulsupcon_mean", "any", "all", "jaccard"] = "mulsupcon",
        temperature: float = 0.1,
        momentum: float = 0.999,
        queue_capacity: int = 256,
        mask_probability: float = 0.5,
        pretraining_steps: int = 10_000,
        batch_size: int = 64,
        learning_rate: float = 4e-4,
        weight_decay: float = 1e-5,
        steps: int = 1000,
        encoder_rate: float = 0.1,
        select: str = "last",
        validate_every: int = 50,
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
        self.weighting = weighting
        self.temperature = temperature
        self.momentum = momentum
        self.queue_capacity = queue_capacity
        self.mask_probability = mask_probability
        self.pretraining_steps = pretraining_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = steps
        self.encoder_rate = encoder_rate
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
        names = ("pretraining_steps", "batch_size", "steps", "validate_every", "embedding")
        check_steps(self, *names, "queue_capacity")
        check_numbers(self, "dropout", "temperature", "momentum", "mask_probability")
        check_numbers(self, "learning_rate", "weight_decay", "encoder_rate")
        require_one_of(self, "weighting", WEIGHTINGS)
        encoder = MLP(widths(self), self.dropout)
        pretrain = Stage(
            MulSupCon(
                encoder=encoder,
                head=Projection(width=self.embedding),
                weighting=self.weighting,
                temperature=self.temperature,
                momentum=self.momentum,
                queue_capacity=self.queue_capacity,
            ),
            duration=steps(self.pretraining_steps),
            batch_size=self.batch_size,
            optimizer=Optimizer(
                learning_rate=self.learning_rate,
                schedule=Cosine(final=0.25),
                weight_decay=self.weight_decay,
                decay_all=True,
            ),
            augmentation=(ZeroMask(self.mask_probability),),
        )
        finetune = Stage(
            fine_tuning(encoder),
            duration=steps(self.steps),
            batch_size=32,
            optimizer=Optimizer(
                learning_rate=self.learning_rate,
                schedule=Cosine(),
                rates=(("^encoder/", self.encoder_rate),),
            ),
            starts_from="pretrain",
            validate_every=steps(self.validate_every),
            select=self.select,  # type: ignore[arg-type]
            patience=self.patience,
        )
        return {"pretrain": pretrain, "finetune": finetune}
