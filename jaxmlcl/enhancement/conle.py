"""ConLE: contrastive label enhancement, and when its training is stopped."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from jaxmlcl.enhancement._base import Enhancer, check_rows, softmax
from jaxmlcl.enhancement._mass import expected_mass
from jaxmlcl.errors import ConfigError
from jaxmlcl.losses import cross_view_contrastive, squared_distance, threshold_hinge
from jaxmlcl.models.enhancement import ConLENetwork

VARIANTS = ("full", "h", "l")
OUTPUTS = ("softmax", "softmax_twice", "raw_then_softmax")
STOPS = ("mass", "epochs")
OPTIMIZERS = ("adam", "sgd")

# Steps between two looks at the labels' mass, and rows that are looked at.
_LOOK_EVERY = 5
_LOOK_AT = 4096
# How far between the target and 1 the mass is where training ends, if it is calibrated.
_BEYOND = 0.5
# Numbers that the hidden layers of all fits hold at once when every row is enhanced.
_HELD = 1 << 26


class Trajectory(NamedTuple):
    """What a fit did: one entry for every look."""

    steps: np.ndarray
    """[s]: steps done."""
    objective: np.ndarray
    """[k, s]: the objective on all rows."""
    mass: np.ndarray
    """[k, s]: mean degree of the labels that are 1, together."""
    distributions: np.ndarray
    """[k, s, n, L]."""


class ConLE(Enhancer):
    """Label distributions from a network that sees features and labels, stopped without the truth.

    With z = F1(x), q = F2(l), d = softmax(F3([z, q])) the objective is

        cross_view_contrastive(z, q)
            + lambda_1 squared_distance(d, l) + lambda_2 threshold_hinge(d, l)

    Its minimum over d is l / |l|: trained to the end it gives the 0/1 labels back. On the way
    there, from equal degrees, the labels' mass, the mean of sum_j d_j l_j, grows from |l| / L to
    1. What it should be the labels themselves say: `expected_mass(labels)`, the target; no
    distribution is asked. `stop="mass"` ends training half-way between the target and 1, and
    `calibrate` flattens what is recovered to d^t / sum d^t, with the one t of all rows at which
    the mass is the target. Without `calibrate` training ends at the target itself. It presumes that
    a row's labels are those that together describe more than half of it.

    Args:
      variant: `full`; `h`, without the contrastive term; `l`, without the hinge.
      output: what d is. `softmax` of the logits, as printed; `softmax_twice`, the same while it is
        trained and one softmax more at the end, which cannot leave the neighbourhood of uniform;
        `raw_then_softmax`, logits that are trained to equal the labels, and softmax at the end.
      stop: `mass`, or `epochs`: always `epochs` of them.
      calibrate: whether what is recovered is flattened to the target; it is never sharpened.
      target_mass: the target; None: `expected_mass` of the labels.
      epochs: passes over the rows, at most.
      batch_size: rows in a step; None: all.
      optimizer: `adam`, or, as the paper says without its constants, `sgd` with `momentum`; with
        `sgd` the steps to the target depend on L so much that no one rate serves all sets.
      learning_rate: of either; near .01 for `sgd` and few labels.
      momentum: of `sgd`.
      hidden, width: units of hidden layers and of the embeddings.
      temperature: of the contrastive term.
      margin: of the hinge.
      lambda_1, lambda_2: weights.
      denominator: `paper`, `with_pos` or `pyldl`; see `losses.cross_view_contrastive`.
      form: `max` or `pairs`; see `losses.threshold_hinge`.
      reduction: of the squared distance, `mean` or, as printed, `sum` over the rows of a batch.
      random_state: seed of initial weights and batches.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> labels = np.eye(3)[rng.integers(0, 3, 60)]
      >>> features = labels + rng.normal(size=(60, 3))
      >>> enhancer = ConLE(target_mass=0.6, learning_rate=1e-3)
      >>> enhancer.fit_transform(features, labels).shape
      (60, 3)
      >>> bool(0.6 <= (enhancer.distributions_ * labels).sum(1).mean() < 0.7)
      True

    Source: ConLE, IJCAI 2023, eq. 4-15. The stopping rule is this library's.
    """

    out_of_sample: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    title: ClassVar[str] = "ConLE"

    def __init__(
        self,
        variant: Literal["full", "h", "l"] = "full",
        *,
        output: Literal["softmax", "softmax_twice", "raw_then_softmax"] = "softmax",
        stop: Literal["mass", "epochs"] = "mass",
        calibrate: bool = True,
        target_mass: float | None = None,
        epochs: int = 1000,
        batch_size: int | None = 256,
        optimizer: Literal["adam", "sgd"] = "adam",
        learning_rate: float = 1e-4,
        momentum: float = 0.9,
        hidden: int = 128,
        width: int = 64,
        temperature: float = 0.5,
        margin: float = 0.05,
        lambda_1: float = 0.5,
        lambda_2: float = 1.0,
        denominator: str = "paper",
        form: str = "max",
        reduction: str = "mean",
        random_state: int | None = 0,
    ) -> None:
        self.variant = variant
        self.output = output
        self.stop = stop
        self.calibrate = calibrate
        self.target_mass = target_mass
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.hidden = hidden
        self.width = width
        self.temperature = temperature
        self.margin = margin
        self.lambda_1 = lambda_1
        self.lambda_2 = lambda_2
        self.denominator = denominator
        self.form = form
        self.reduction = reduction
        self.random_state = random_state

    def fit(self, features: ArrayLike, labels: ArrayLike) -> ConLE:
        """Fit; sets `distributions_` [n, L], `steps_`, `target_mass_` and `flattening_`, t."""
        x, y = check_rows(features, labels)
        fits = self._fit_all(x, y, [np.arange(len(x))], self._seeds())
        self.n_features_in_, self.num_labels_ = x.shape[1], y.shape[1]
        self._fits = fits
        self.steps_ = int(fits.steps[0])
        self.target_mass_ = float(fits.targets[0])
        self.flattening_ = float(fits.flattening[0])
        self.distributions_ = self._recover(fits, x, y)[0]
        return self

    def transform(self, features: ArrayLike, labels: ArrayLike) -> np.ndarray:
        """The distributions [m, L] of other rows, from their features and labels.

        Raises:
          ValueError: arrays that do not fit what was fitted.
        """
        x, y = check_rows(features, labels)
        fitted = (self.n_features_in_, self.num_labels_)
        if (x.shape[1], y.shape[1]) != fitted:
            raise ValueError(
                f"features {list(x.shape)} and labels {list(y.shape)}; fitted were "
                f"{fitted[0]} features and {fitted[1]} labels"
            )
        return self._recover(self._fits, x, y)[0]

    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
        overrides: Mapping[str, Sequence[float]] | None = None,
    ) -> np.ndarray:
        """Fit several times in one program; see `Enhancer.fit_many`.

        Args:
          features: [n, q], checked.
          labels: [n, L], 0/1.
          rows: k arrays of row numbers, one a fit.
          seeds: k seeds.
          overrides: values [k] of `lambda_1`, `lambda_2`, `temperature`, `margin` or
            `learning_rate`, one a fit.

        Returns:
          [k, n, L].
        """
        return self._recover(
            self._fit_all(features, labels, rows, seeds, overrides), features, labels
        )

    def fit_steps(
        self,
        features: ArrayLike,
        labels: ArrayLike,
        rows: Sequence[np.ndarray],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """Steps [k] after which each fit stops."""
        return self._fit_all(*check_rows(features, labels), rows, seeds).steps

    def trajectory(
        self, features: ArrayLike, labels: ArrayLike, seeds: Sequence[int], *, every: int = 1
    ) -> Trajectory:
        """Train for `epochs`, whatever `stop` is, and look at all rows every `every` epochs."""
        x, y = check_rows(features, labels)
        k = len(seeds)
        everything = [np.arange(len(x))] * k
        problem = self._problem(x, y, everything, seeds, None)
        per_epoch = problem.static.per_epoch
        looks = self.epochs // every
        objective, mass, recovered = _follow(
            problem.data, problem.fits, problem.static, looks, every * per_epoch
        )
        return Trajectory(
            (np.arange(looks) + 1) * every * per_epoch,
            np.asarray(objective, np.float64),
            np.asarray(mass, np.float64),
            np.asarray(recovered),
        )

    def _check(self) -> None:
        for name, options in (
            ("variant", VARIANTS),
            ("output", OUTPUTS),
            ("stop", STOPS),
            ("optimizer", OPTIMIZERS),
        ):
            value = getattr(self, name)
            if value not in options:
                raise ConfigError(f'ConLE: {name} "{value}" is none of {", ".join(options)}')
        for name in ("epochs", "hidden", "width", "learning_rate", "temperature"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"ConLE: {name} must be positive, not {getattr(self, name)}")
        for name in ("margin", "lambda_1", "lambda_2", "momentum"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"ConLE: {name} must be at least 0, not {getattr(self, name)}")
        if self.batch_size is not None and self.batch_size < 2:
            raise ConfigError(f"ConLE: batch_size must be at least 2, not {self.batch_size}")
        if self.target_mass is not None and not 0 < self.target_mass <= 1:
            raise ConfigError(f"ConLE: target_mass must be in (0, 1], not {self.target_mass}")

    def _problem(
        self,
        x: np.ndarray,
        y: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
        overrides: Mapping[str, Sequence[float]] | None,
    ) -> _Problem:
        self._check()
        k = len(rows)
        sizes = np.array([len(part) for part in rows])
        longest = int(sizes.max())
        # Shorter fits are filled up with rows that do not count, so that one program serves all.
        padded = np.stack([np.resize(part, longest) for part in rows]).astype(np.int32)
        statistics = [_statistics(x[part]) for part in rows]
        of_labels = [_statistics(y[part]) for part in rows]
        targets = np.full(k, self.target_mass or np.nan)
        if self.target_mass is None and (self.stop == "mass" or self.calibrate):
            targets[:] = [expected_mass(y[part]) for part in rows]
        ends = targets + (_BEYOND * (1 - targets) if self.calibrate else 0)
        given = {
            name: np.broadcast_to(np.asarray(value, np.float32), k)
            for name, value in {
                "lambda_1": self.lambda_1,
                "lambda_2": self.lambda_2,
                "temperature": self.temperature,
                "margin": self.margin,
                "learning_rate": self.learning_rate,
                **(overrides or {}),
            }.items()
        }
        batch = min(self.batch_size or longest, longest)
        static = _Static(
            num_labels=y.shape[1],
            hidden=self.hidden,
            width=self.width,
            variant=self.variant,
            output=self.output,
            denominator=self.denominator,
            form=self.form,
            reduction=self.reduction,
            optimizer=self.optimizer,
            momentum=self.momentum,
            batch=batch,
            per_epoch=max(1, longest // batch),
            full=bool((sizes == longest).all()),
            temperature=_if_same(given["temperature"]),
        )
        fits = _Fits(
            rows=jnp.asarray(padded),
            sizes=jnp.asarray(sizes, jnp.int32),
            seeds=jnp.asarray([int(seed) % 2**32 for seed in seeds], jnp.uint32),
            mean=jnp.asarray(np.stack([mean for mean, _ in statistics]), jnp.float32),
            scale=jnp.asarray(np.stack([scale for _, scale in statistics]), jnp.float32),
            label_mean=jnp.asarray(np.stack([mean for mean, _ in of_labels]), jnp.float32),
            label_scale=jnp.asarray(np.stack([scale for _, scale in of_labels]), jnp.float32),
            end=jnp.asarray(ends if self.stop == "mass" else np.full(k, np.inf), jnp.float32),
            numbers={name: jnp.asarray(value) for name, value in given.items()},
        )
        data = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
        return _Problem(data, fits, static, targets)

    def _fit_all(
        self,
        x: np.ndarray,
        y: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
        overrides: Mapping[str, Sequence[float]] | None = None,
    ) -> _Fitted:
        problem = self._problem(x, y, rows, seeds, overrides)
        parameters, steps = _train(
            problem.data, problem.fits, problem.static, self.epochs * problem.static.per_epoch
        )
        fitted = _Fitted(
            parameters, np.asarray(steps), problem.targets, np.ones(len(rows)), problem
        )
        if not self.calibrate:
            return fitted
        looked = [part[:: -(-len(part) // _LOOK_AT)] for part in rows]
        asked = np.unique(np.concatenate(looked))
        found = self._recover(fitted, x[asked], y[asked])
        places = [np.searchsorted(asked, part) for part in looked]
        flattening = [
            _flattening(own[place], y[part], target)
            for own, place, part, target in zip(found, places, looked, problem.targets, strict=True)
        ]
        return fitted._replace(flattening=np.array(flattening))

    def _recover(self, fits: _Fitted, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """[k, n, L] float64."""
        static, of = fits.problem.static, fits.problem.fits
        at_once = max(1, _HELD // (len(of.seeds) * (2 * static.hidden + 2 * static.width)))
        parts = [
            np.asarray(
                _recovered(
                    fits.parameters,
                    jnp.asarray(x[start : start + at_once], jnp.float32),
                    jnp.asarray(y[start : start + at_once], jnp.float32),
                    of,
                    static,
                ),
                np.float64,
            )
            for start in range(0, len(x), at_once)
        ]
        found = np.concatenate(parts, axis=1) ** fits.flattening[:, None, None]
        return found / found.sum(-1, keepdims=True)


class _Static(NamedTuple):
    """What a program is compiled for."""

    num_labels: int
    hidden: int
    width: int
    variant: str
    output: str
    denominator: str
    form: str
    reduction: str
    optimizer: str
    momentum: float
    batch: int
    per_epoch: int
    full: bool
    """Whether all fits have as many rows."""
    temperature: float | None
    """Of all fits; None where they differ. The contrast is faster where it knows the number."""

    @property
    def direction(self) -> optax.GradientTransformation:
        """What the learning rate is multiplied with."""
        if self.optimizer == "adam":
            return optax.scale_by_adam()
        return optax.trace(decay=self.momentum)

    @property
    def network(self) -> ConLENetwork:
        return ConLENetwork(self.num_labels, self.hidden, self.width)

    def outputs(
        self, parameters: Any, x: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """z, q and logits of what the network sees."""
        found: Any = self.network.apply(parameters, x, labels)
        return found


class _Fits(NamedTuple):
    """Arrays with one entry a fit."""

    rows: jax.Array
    sizes: jax.Array
    seeds: jax.Array
    mean: jax.Array
    scale: jax.Array
    label_mean: jax.Array
    label_scale: jax.Array
    end: jax.Array
    numbers: dict[str, jax.Array]


class _Problem(NamedTuple):
    data: tuple[jax.Array, jax.Array]
    fits: _Fits
    static: _Static
    targets: np.ndarray
    """[k]: masses that the labels should have, NaN where none is asked for."""


class _Fitted(NamedTuple):
    parameters: Any
    steps: np.ndarray
    targets: np.ndarray
    flattening: np.ndarray
    problem: _Problem


def _if_same(values: np.ndarray) -> float | None:
    """The one value of all, or None."""
    return float(values[0]) if (values == values[0]).all() else None


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / sample deviation of the columns; constant columns get 0."""
    mean = x.mean(0, dtype=np.float64)
    spread = x.std(0, ddof=1, dtype=np.float64) if len(x) > 1 else np.zeros_like(mean)
    constant = spread <= 1e-7 * np.maximum(1.0, np.abs(mean))
    return mean, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread))


def _degrees(logits: jax.Array, output: str) -> tuple[jax.Array, jax.Array]:
    """What the objective sees, and what is handed out."""
    if output == "raw_then_softmax":
        return logits, jax.nn.softmax(logits)
    trained = jax.nn.softmax(logits)
    return trained, jax.nn.softmax(trained) if output == "softmax_twice" else trained


def _objective(
    parameters: Any,
    x: jax.Array,
    seen: jax.Array,
    labels: jax.Array,
    numbers: dict[str, jax.Array],
    static: _Static,
    where: jax.Array | None,
) -> jax.Array:
    z, q, logits = static.outputs(parameters, x, seen)
    degrees, _ = _degrees(logits, static.output)
    total = numbers["lambda_1"] * squared_distance(
        degrees, labels, reduction=static.reduction, where=where
    )
    if static.variant != "l":
        total += numbers["lambda_2"] * threshold_hinge(
            degrees, labels, margin=numbers["margin"], form=static.form, where=where
        )
    if static.variant != "h":
        temperature = static.temperature
        total += cross_view_contrastive(
            z,
            q,
            temperature=numbers["temperature"] if temperature is None else temperature,
            denominator=static.denominator,
            where=where,
        )
    return total


class _Carry(NamedTuple):
    parameters: Any
    momentum: Any
    order: jax.Array
    """[k, batch * per_epoch]: places among each fit's rows, in this epoch's order."""
    steps: jax.Array
    """[k]: steps that each fit has done."""
    done: jax.Array
    """[k]."""
    step: jax.Array


def _start(fits: _Fits, data: tuple[jax.Array, jax.Array], static: _Static) -> _Carry:
    x, y = data
    keys = jax.vmap(jax.random.key)(fits.seeds)
    parameters = jax.vmap(lambda key: static.network.init(key, x[:1], y[:1]))(keys)
    k = len(fits.seeds)
    return _Carry(
        parameters,
        jax.vmap(static.direction.init)(parameters),
        jnp.zeros((k, static.batch * static.per_epoch), jnp.int32),
        jnp.zeros(k, jnp.int32),
        jnp.zeros(k, bool),
        jnp.int32(0),
    )


def _one_step(
    carry: _Carry, data: tuple[jax.Array, jax.Array], fits: _Fits, static: _Static
) -> _Carry:
    epoch, place = carry.step // static.per_epoch, carry.step % static.per_epoch

    def shuffled(seed: jax.Array, size: jax.Array) -> jax.Array:
        # Rows that fill up stand last among the random numbers: they come only when they must.
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        longest = fits.rows.shape[1]
        draws = jax.random.uniform(key, (longest,)) + (jnp.arange(longest) >= size)
        return jnp.argsort(draws)[: static.batch * static.per_epoch].astype(jnp.int32)

    order = jax.lax.cond(
        place == 0,
        lambda: jax.vmap(shuffled)(fits.seeds, fits.sizes),
        lambda: carry.order,
    )
    batch = jax.lax.dynamic_slice_in_dim(order, place * static.batch, static.batch, 1)

    def moved(
        parameters: Any,
        momentum: Any,
        places: jax.Array,
        fit: _Fits,
        done: jax.Array,
    ) -> tuple[Any, Any]:
        rows = fit.rows[places]
        x = (data[0][rows] - fit.mean) * fit.scale
        seen = (data[1][rows] - fit.label_mean) * fit.label_scale
        where = None if static.full else places < fit.sizes
        slope = jax.grad(_objective)(parameters, x, seen, data[1][rows], fit.numbers, static, where)
        change, momentum = static.direction.update(slope, momentum, parameters)
        rate = jnp.where(done, 0.0, fit.numbers["learning_rate"])
        return jax.tree.map(lambda p, c: p - rate * c, parameters, change), momentum

    parameters, momentum = jax.vmap(moved)(
        carry.parameters, carry.momentum, batch, fits, carry.done
    )
    steps = carry.steps + ~carry.done
    return _Carry(parameters, momentum, order, steps, carry.done, carry.step + 1)


def _mass(
    parameters: Any, data: tuple[jax.Array, jax.Array], fit: _Fits, static: _Static
) -> jax.Array:
    """Mean degree of the labels that are 1, on the rows of one fit."""
    longest = fit.rows.shape[0]
    # Evenly spaced rows, if there are many: a file may be sorted.
    places = jnp.arange(0, longest, -(-longest // _LOOK_AT))
    rows = fit.rows[places]
    labels = data[1][rows]
    x = (data[0][rows] - fit.mean) * fit.scale
    seen = (labels - fit.label_mean) * fit.label_scale
    _, degrees = _degrees(static.outputs(parameters, x, seen)[2], static.output)
    # Rows without labels carry nothing and are not asked.
    counted = (places < fit.sizes) & (labels.sum(-1) > 0)
    return jnp.sum((degrees * labels).sum(-1) * counted) / jnp.maximum(counted.sum(), 1)


@functools.partial(jax.jit, static_argnames="static")
def _train(
    data: tuple[jax.Array, jax.Array], fits: _Fits, static: _Static, most: jax.Array | int
) -> tuple[Any, jax.Array]:
    """Parameters and steps of every fit, each stopped at its target or after `most` steps."""

    def look(carry: _Carry) -> jax.Array:
        masses = jax.vmap(lambda p, fit: _mass(p, data, fit, static))(carry.parameters, fits)
        return carry.done | (masses >= fits.end)

    def body(carry: _Carry) -> _Carry:
        carry = _one_step(carry, data, fits, static)
        done = jax.lax.cond(carry.step % _LOOK_EVERY == 0, lambda: look(carry), lambda: carry.done)
        return carry._replace(done=done)

    end = jax.lax.while_loop(
        lambda carry: ~carry.done.all() & (carry.step < most), body, _start(fits, data, static)
    )
    return end.parameters, end.steps


@functools.partial(jax.jit, static_argnames=("static", "looks", "every"))
def _follow(
    data: tuple[jax.Array, jax.Array], fits: _Fits, static: _Static, looks: int, every: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Objective and mass [k, s], distributions [k, s, n, L], every `every` steps."""

    def part(carry: _Carry, _: None) -> tuple[_Carry, tuple[jax.Array, ...]]:
        carry = jax.lax.fori_loop(0, every, lambda _, c: _one_step(c, data, fits, static), carry)

        def seen(parameters: Any, fit: _Fits) -> tuple[jax.Array, ...]:
            x = (data[0] - fit.mean) * fit.scale
            labels = (data[1] - fit.label_mean) * fit.label_scale
            value = _objective(parameters, x, labels, data[1], fit.numbers, static, None)
            _, degrees = _degrees(static.outputs(parameters, x, labels)[2], static.output)
            return value, _mass(parameters, data, fit, static), degrees

        return carry, jax.vmap(seen)(carry.parameters, fits)

    _, seen = jax.lax.scan(part, _start(fits, data, static), None, length=looks)
    objective, mass, degrees = (jnp.swapaxes(one, 0, 1) for one in seen)
    return objective, mass, degrees


@functools.partial(jax.jit, static_argnames="static")
def _recovered(
    parameters: Any, x: jax.Array, labels: jax.Array, fits: _Fits, static: _Static
) -> jax.Array:
    """[k, n, L], not flattened."""

    def one(parameters: Any, fit: _Fits) -> jax.Array:
        seen = (labels - fit.label_mean) * fit.label_scale
        logits = static.outputs(parameters, (x - fit.mean) * fit.scale, seen)[2]
        return _degrees(logits, static.output)[1]

    return jax.vmap(one)(parameters, fits)


def _flattening(degrees: np.ndarray, labels: np.ndarray, target: float) -> float:
    """The t in [0, 1] at which the mean mass of the labels is the target, by bisection.

    The mass of d^t / sum d^t falls with t where labels have larger degrees than others; with t = 0
    all degrees are equal.
    """
    some = labels.sum(1) > 0
    logs, labels = np.log(np.maximum(degrees[some], np.finfo(np.float64).tiny)), labels[some]
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        mass = (softmax(middle * logs) * labels).sum(1).mean() if len(logs) else 1.0
        low, high = (middle, high) if mass < target else (low, middle)
    return high
