"""Binary cross-entropy, the supervised baseline, as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jaxmlcl.data.augment import ZeroMask
from jaxmlcl.estimators._base import require_one_of
from jaxmlcl.estimators._network import NetworkClassifier, check_numbers, check_steps, widths
from jaxmlcl.methods import Classification
from jaxmlcl.models import MLP
from jaxmlcl.training.duration import steps
from jaxmlcl.training.optimizers import Cosine, Optimizer
from jaxmlcl.training.stage import Stage


class BCEClassifier(NetworkClassifier):
    """An MLP and a linear layer under a loss per label, trained from scratch.

    Args:
      hidden: widths of the layers (units); the last is the representation that `transform` gives.
      dropout: probability that a unit is dropped in training.
      loss: `bce`, `focal` or `asymmetric`; see `jaxmlcl.losses`.
      mask_probability: probability that a feature is set to 0 in a step.
      steps: optimiser steps; the rate falls to 0 over them, as half a cosine.
      batch_size: rows in a step.
      learning_rate: of Adam, at the start.
      weight_decay: of Adam.
      select: `last`, or the measure by which the best step on validation is kept (`map`, `loss`,
        `micro_f1`, ...); rows are held out for it.
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
      >>> classifier = BCEClassifier(hidden=(16,), steps=200, learning_rate=1e-2).fit(X, Y)
      >>> classifier.score(X, Y), classifier.transform(X).shape
      (1.0, (60, 16))

    Source: the baseline of MulSupCon, AAAI 2024, section 5.
    """

    title: ClassVar[str] = "BCE"

    def __init__(
        self,
        hidden: tuple[int, ...] | int = (256, 512, 256),
        *,
        dropout: float = 0.2,
        loss: Literal["bce", "focal", "asymmetric"] = "bce",
        mask_probability: float = 0.5,
        steps: int = 2000,
        batch_size: int = 32,
        learning_rate: float = 4e-4,
        weight_decay: float = 0.0,
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
        self.loss = loss
        self.mask_probability = mask_probability
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
        check_steps(self, "steps", "batch_size", "validate_every")
        check_numbers(self, "dropout", "mask_probability", "learning_rate", "weight_decay")
        require_one_of(self, "loss", ("bce", "focal", "asymmetric"))
        stage = Stage(
            Classification(MLP(widths(self), self.dropout), self.loss),
            duration=steps(self.steps),
            batch_size=self.batch_size,
            optimizer=Optimizer(
                learning_rate=self.learning_rate,
                schedule=Cosine(),
                weight_decay=self.weight_decay,
            ),
            augmentation=(ZeroMask(self.mask_probability),) if self.mask_probability else (),
            validate_every=steps(self.validate_every),
            select=self.select,  # type: ignore[arg-type]
            patience=self.patience,
        )
        return {"bce": stage}
