"""A stage of training: one objective and everything that belongs to minimising it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxmlcl.data.augment import Augmentation
from jaxmlcl.errors import ConfigError
from jaxmlcl.training.dataset import Data
from jaxmlcl.training.duration import Duration, check_duration, epochs
from jaxmlcl.training.objective import Objective
from jaxmlcl.training.optimizers import Optimizer, Plateau, check_patterns

Selection = Literal[
    "last",
    "loss",
    "map",
    "micro_f1",
    "macro_f1",
    "example_f1",
    "precision_at_1",
    "best_macro_f1",
]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Objective, duration, batch, optimiser, augmentation, start, and how the best is chosen."""

    objective: Objective
    """What is minimised."""
    duration: Duration
    """How long (steps, epochs, examples, or "flops of STAGE")."""
    batch_size: int = 64
    """Samples per optimiser step, over all devices (samples)."""
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    """How parameters follow their gradients."""
    augmentation: tuple[Augmentation, ...] = ()
    """Random operations on the inputs, in order, on the device."""
    starts_from: str | None = None
    """Earlier stage whose encoder this one starts with; a fresh one if absent."""
    weights: str | None = None
    """File of torchvision's or timm's weights that the encoder starts with: safetensors, or a state
    dict, which is not unpickled; relative paths as those of data. A fresh encoder if absent."""
    data: Data | None = None
    """Data of this stage's own; the experiment's if absent."""
    frozen: tuple[str, ...] = ()
    """Regular expressions over parameter paths that must not move."""
    accumulate: int = 1
    """Micro-batches per step (count); keys of one micro-batch are not seen by the others."""
    validate_every: Duration = dataclasses.field(default_factory=lambda: epochs(1))
    """How often the validation split is scored, if the objective gives scores."""
    select: Selection = "last"
    """Which step's parameters the stage ends with: the last, or the best on validation.
    best_macro_f1: by macro-F1 at the threshold of .1 to .9 that is best for it at that step."""
    ema: float | None = None
    """Decay of a moving average of the network (fraction kept per step), which is then what is
    validated, selected, evaluated and started from; no average if absent."""
    ema_warmup: bool = True
    """Let the decay rise to `ema` as (1 + t) / (10 + t) over the steps t, so that the average soon
    forgets the initial values."""
    patience: int | None = None
    """Validations without improvement of `select` after which the stage ends (count)."""

    def __post_init__(self) -> None:
        check_duration("stage: duration", self.duration, in_flops=True)
        check_duration("stage: validate_every", self.validate_every)
        check_patterns("stage: frozen", self.frozen)
        if self.data is not None and self.data.inputs == "inherit" and self.starts_from is None:
            raise ConfigError(
                'stage: data.inputs: "inherit" needs starts_from, the stage whose preparation is '
                "meant"
            )
        if self.weights is not None and self.starts_from is not None:
            raise ConfigError(
                f'stage: weights "{self.weights}" and starts_from "{self.starts_from}" both give '
                "the encoder its start; leave one of them out"
            )
        if self.weights is not None and self.objective.network is None:
            raise ConfigError(
                f"stage: {self.objective.describe()} has no encoder that weights could be read into"
            )
        if self.batch_size < 1 or self.accumulate < 1:
            raise ConfigError(
                f"stage: batch_size ({self.batch_size}) and accumulate ({self.accumulate}) "
                "must be at least 1"
            )
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"stage: batch_size {self.batch_size} is not a multiple of accumulate "
                f"{self.accumulate}"
            )
        if self.validates and not self.objective.gives_scores:
            raise ConfigError(
                f"stage: {self.objective.describe()} gives no label scores, so neither select="
                f'"{self.select}" nor patience nor a plateau schedule can be used with it'
            )
        if self.patience is not None and self.select == "last":
            raise ConfigError('stage: patience needs select, for instance select="loss"')
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"stage: ema must be above 0 and below 1, not {self.ema}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"stage: patience must be at least 1, not {self.patience}")

    @property
    def validates(self) -> bool:
        """Whether training depends on validation scores."""
        return (
            self.select != "last"
            or self.patience is not None
            or isinstance(self.optimizer.schedule, Plateau)
        )
