"""Optimisers and learning-rate schedules, built from optax."""

from __future__ import annotations

import abc
import dataclasses
import math
import operator
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxmlcl.errors import ConfigError
from jaxmlcl.training.duration import Duration, check_duration

PyTree = Any


@dataclasses.dataclass(frozen=True)
class StepCounter:
    """What turns a duration into steps: the stage's batch size and training-set size."""

    batch_size: int
    examples: int
    total: int
    """Steps of the whole stage."""

    def __call__(self, duration: Duration) -> int:
        """A duration in steps."""
        return duration.steps(batch_size=self.batch_size, examples=self.examples)


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """How the learning rate changes over a stage."""

    @abc.abstractmethod
    def build(self, peak: float, count: StepCounter) -> optax.Schedule:
        """The rate as a function of the step, for a peak rate."""


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The same rate throughout."""

    def build(self, peak: float, count: StepCounter) -> optax.Schedule:
        """The rate as a function of the step."""
        del count
        return optax.constant_schedule(peak)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up, then half a cosine down to `final` times the peak."""

    warmup: Duration | None = None
    """Linear rise from zero (steps, epochs or examples)."""
    final: float = 0.0
    """Last rate as a fraction of the peak."""

    def __post_init__(self) -> None:
        if self.warmup is not None:
            check_duration("schedule: warmup", self.warmup)

    def build(self, peak: float, count: StepCounter) -> optax.Schedule:
        """The rate as a function of the step."""
        warmup = count(self.warmup) if self.warmup else 0
        decay = optax.cosine_decay_schedule(peak, max(1, count.total - warmup), alpha=self.final)
        if warmup == 0:
            return decay
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


@dataclasses.dataclass(frozen=True)
class WarmRestarts(Schedule):
    """Cosine with warm restarts (Loshchilov & Hutter 2017), rate held for `hold` at a time.

    MulSupCon's program moves the rate once per "epoch" of 1000 steps; `hold` says so here.
    """

    period: Duration
    """Length of the first cycle."""
    multiplier: float = 2.0
    """Each cycle is this many times as long as the one before."""
    final: float = 0.0
    """Lowest rate as a fraction of the peak."""
    hold: Duration | None = None
    """The rate changes only this often; every step if absent."""

    def __post_init__(self) -> None:
        check_duration("schedule: period", self.period)
        if self.hold is not None:
            check_duration("schedule: hold", self.hold)
        _check("schedule: multiplier", self.multiplier, lambda x: x >= 1, "at least 1")

    def build(self, peak: float, count: StepCounter) -> optax.Schedule:
        """The rate as a function of the step."""
        hold = count(self.hold) if self.hold else 1
        length = float(count(self.period))
        starts, lengths = [0], [round(length)]
        while starts[-1] + lengths[-1] < count.total:
            length *= self.multiplier
            starts.append(starts[-1] + lengths[-1])
            lengths.append(round(length))

        def rate(step: jax.Array) -> jax.Array:
            held = (step // hold) * hold
            cycle = jnp.searchsorted(jnp.asarray(starts), held, side="right") - 1
            done = (held - jnp.asarray(starts)[cycle]) / jnp.asarray(lengths)[cycle]
            return peak * (self.final + (1 - self.final) * (1 + jnp.cos(jnp.pi * done)) / 2)

        return rate


@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """Half a cosine up to the peak, then another down to almost nothing (Smith & Topin 2017).

    The rates are those of PyTorch's OneCycleLR with its defaults, whose last step has the last
    rate; optax's schedule of that name lags one step behind. Momentum is not cycled.
    """

    rise: float = 0.3
    """Fraction of the stage in which the rate rises."""
    start: float = 25.0
    """The first rate is the peak divided by this."""
    end: float = 1e4
    """The last rate is the first divided by this."""

    def __post_init__(self) -> None:
        _check("schedule: rise", self.rise, lambda x: 0 <= x < 1, "at least 0, below 1")
        _check("schedule: start", self.start, lambda x: x >= 1, "at least 1")
        _check("schedule: end", self.end, lambda x: x > 0, "positive")

    def build(self, peak: float, count: StepCounter) -> optax.Schedule:
        """The rate as a function of the step."""
        # PyTorch counts the end of a phase from 0, and lets it fall between two steps.
        top, last = self.rise * count.total - 1.0, count.total - 1.0
        first = peak / self.start

        def between(low: float, high: float, done: ArrayLike) -> jax.Array:
            return low + (high - low) * (1 - jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0))) / 2

        def rate(step: jax.Array) -> jax.Array:
            # Without a step to rise in, the stage begins at the peak or just after it.
            up = between(first, peak, step / top if top > 0 else jnp.ones(()))
            down = between(peak, first / self.end, (step - top) / (last - top))
            return jnp.where(step <= top, up, down)

        return rate


@dataclasses.dataclass(frozen=True)
class Plateau(Schedule):
    """The rate is multiplied by `factor` when the validation loss stops falling.

    Judged after each validation, by a relative threshold, as PyTorch's ReduceLROnPlateau.
    """

    factor: float = 0.1
    """What the rate is multiplied by."""
    patience: int = 2
    """Validations without improvement that are borne."""
    cooldown: int = 1
    """Validations after a reduction that are not counted."""
    threshold: float = 1e-3
    """Relative improvement that counts as one."""

    def __post_init__(self) -> None:
        _check("schedule: factor", self.factor, lambda x: 0 < x < 1, "between 0 and 1")
        _check("schedule: patience", self.patience, lambda x: x >= 0, "at least 0")
        _check("schedule: cooldown", self.cooldown, lambda x: x >= 0, "at least 0")
        _check("schedule: threshold", self.threshold, lambda x: 0 < x <= 1, "above 0, at most 1")

    def build(self, peak: float, count: StepCounter) -> optax.Schedule:
        """The rate as a function of the step, before reductions."""
        del count
        return optax.constant_schedule(peak)

    def transform(self) -> optax.GradientTransformationExtraArgs:
        """Optax's state machine for it; the trainer advances it once per validation."""
        return optax.contrib.reduce_on_plateau(
            factor=self.factor,
            # PyTorch reduces when the bad count exceeds the patience, optax when it reaches it.
            patience=self.patience + 1,
            rtol=self.threshold,
            atol=0.0,
            cooldown=self.cooldown,
        )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters follow their gradients."""

    name: Literal["sgd", "adam", "adamw", "lars"] = "adam"
    """sgd: with momentum; adam: L2 added to the gradient, as PyTorch's; adamw: decoupled decay;
    lars: sgd whose rate is adapted to each array, for large batches."""
    learning_rate: float = 4e-4
    """Peak learning rate (per step)."""
    schedule: Schedule = dataclasses.field(default_factory=Constant)
    """How the rate changes over the stage."""
    momentum: float = 0.9
    """Momentum of sgd and lars (fraction kept per step)."""
    trust: float = 1e-3
    """Trust coefficient of lars: an array moves by its norm, times this, times the rate."""
    weight_decay: float = 0.0
    """Decay (per unit of learning rate); biases and normalisation are left out."""
    decay_all: bool = False
    """Decay (and, under lars, adapt) biases and normalisation too, as the authors' programs do."""
    clip_norm: float | None = None
    """Largest global gradient norm; no clipping if absent."""
    rates: tuple[tuple[str, float], ...] = ()
    """(regular expression, factor) pairs over parameter paths; the first match scales the rate."""

    def __post_init__(self) -> None:
        _check("optimizer: learning_rate", self.learning_rate, lambda x: x >= 0, "at least 0")
        _check("optimizer: momentum", self.momentum, lambda x: 0 <= x < 1, "at least 0, below 1")
        _check("optimizer: trust", self.trust, lambda x: x > 0, "positive")
        _check("optimizer: weight_decay", self.weight_decay, lambda x: x >= 0, "at least 0")
        _check("optimizer: clip_norm", self.clip_norm, lambda x: x > 0, "positive")
        check_patterns("optimizer: rates", tuple(pattern for pattern, _ in self.rates))
        for pattern, factor in self.rates:
            if isinstance(factor, int | float) and not (math.isfinite(factor) and factor >= 0):
                raise ConfigError(
                    f'optimizer: rates: the factor of "{pattern}" must be finite and at least 0, '
                    f"not {factor}"
                )

    def build(
        self, params: PyTree, count: StepCounter, frozen: tuple[str, ...] = ()
    ) -> optax.GradientTransformation:
        """The optax transformation for these parameters.

        Args:
          params: parameters, or their shapes.
          count: the stage's clock.
          frozen: regular expressions over parameter paths that must not move.
        """
        rate = self.schedule.build(self.learning_rate, count)
        decay = optax.add_decayed_weights(self.weight_decay, self._decayed)
        if self.name == "sgd":
            core = [decay, optax.trace(self.momentum)]
        elif self.name == "adam":
            core = [decay, optax.scale_by_adam()]
        elif self.name == "adamw":
            core = [optax.scale_by_adam(), decay]
        else:
            adapt = optax.scale_by_trust_ratio(trust_coefficient=self.trust)
            core = [decay, optax.masked(adapt, self._decayed)]
        if self.clip_norm is not None:
            core.insert(0, optax.clip_by_global_norm(self.clip_norm))
        paths = parameter_paths(params)
        _check_matches("optimizer.rates", tuple(pattern for pattern, _ in self.rates), paths)
        _check_matches("frozen", frozen, paths)
        core += [self._scale_each(), optax.scale_by_learning_rate(rate)]
        if self.name == "lars":
            # You et al.'s momentum holds updates, not gradients: the rate is inside.
            core.append(optax.trace(self.momentum))
        transform = optax.chain(*core)
        if not frozen:
            return transform
        still = jax.tree.map(lambda path: matches(frozen, path), paths)
        moving = jax.tree.map(operator.not_, still)
        return optax.chain(
            optax.masked(transform, moving), optax.masked(optax.set_to_zero(), still)
        )

    def rate(self, count: StepCounter) -> optax.Schedule:
        """The learning rate as a function of the step, before plateau reductions."""
        return self.schedule.build(self.learning_rate, count)

    def _decayed(self, params: PyTree) -> PyTree:
        # Biases and normalisation have one axis; kernels have at least two.
        return jax.tree.map(lambda leaf: self.decay_all or len(leaf.shape) > 1, params)

    def _scale_each(self) -> optax.GradientTransformation:
        def scale(updates: PyTree, params: PyTree) -> PyTree:
            del params
            # The paths are read off the updates: where parameters are frozen, these are fewer.
            return jax.tree.map(
                lambda path, update: update * self._factor(path), parameter_paths(updates), updates
            )

        return optax.stateless(scale)

    def _factor(self, path: str) -> float:
        for pattern, factor in self.rates:
            if re.search(pattern, path):
                return factor
        return 1.0


def parameter_paths(params: PyTree) -> PyTree:
    """The same tree with each leaf replaced by its path, "encoder/Dense_0/kernel".

    Example:
      >>> parameter_paths({"encoder": {"bias": 0}})
      {'encoder': {'bias': 'encoder/bias'}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def matches(patterns: tuple[str, ...], path: str) -> bool:
    """Whether a path matches any of the regular expressions.

    Example:
      >>> matches(("^encoder",), "encoder/Dense_0/kernel")
      True
    """
    return any(re.search(pattern, path) for pattern in patterns)


def check_patterns(field: str, patterns: tuple[str, ...]) -> None:
    """Refuse what is not a regular expression.

    Example:
      >>> check_patterns("stage: frozen", ("^encoder/",))
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f'{field}: "{pattern}" is not a regular expression: {error}'
            ) from None


def _check(field: str, value: Any, fits: Callable[[float], bool], wanted: str) -> None:
    # What is no finite number is left to the experiment's check, which knows the field's path.
    if isinstance(value, int | float) and math.isfinite(value) and not fits(value):
        raise ConfigError(f"{field} must be {wanted}, not {value}")


def _check_matches(field: str, patterns: tuple[str, ...], paths: PyTree) -> None:
    names = jax.tree.leaves(paths)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            groups = sorted({name.split("/")[0] for name in names})
            raise ConfigError(
                f'{field}: "{pattern}" matches no parameter; the groups are {", ".join(groups)}'
            )
