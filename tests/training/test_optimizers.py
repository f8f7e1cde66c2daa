"""Updates and schedules against formulas written out here, in numpy and plain Python."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmlcl.errors import ConfigError
from jaxmlcl.training.duration import epochs, examples, steps
from jaxmlcl.training.optimizers import (
    Constant,
    Cosine,
    OneCycle,
    Optimizer,
    Plateau,
    StepCounter,
    WarmRestarts,
    parameter_paths,
)
from jaxmlcl.training.step import advance_plateau

COUNT = StepCounter(batch_size=10, examples=200, total=100)
SHAPES = {
    "encoder/Dense_0/kernel": (3, 2),
    "encoder/Dense_0/bias": (2,),
    "encoder/BatchNorm_0/scale": (2,),
    "head/Dense_0/kernel": (2, 4),
    "head/Dense_0/bias": (4,),
}
Arrays = dict[str, np.ndarray]
Rule = Callable[[int, str, np.ndarray, np.ndarray], np.ndarray]


def nested(flat: Arrays) -> Any:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jnp.asarray(value)
    return tree


def flat(tree: Any) -> Arrays:
    paths = jax.tree.leaves(parameter_paths(tree))
    return dict(zip(paths, map(np.asarray, jax.tree.leaves(tree)), strict=True))


def draw(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {path: generator.normal(size=shape) for path, shape in SHAPES.items()}


def follow(optimizer: Optimizer, frozen: tuple[str, ...] = (), number: int = 3) -> list[Arrays]:
    """Parameters after each of a few steps with given gradients."""
    params = nested(draw(0))
    transform = optimizer.build(params, COUNT, frozen)
    state = transform.init(params)

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = transform.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    seen = []
    for index in range(number):
        params, state = step(params, state, nested(draw(index + 1)))
        seen.append(flat(params))
    return seen


def expect(seen: list[Arrays], rule: Rule) -> None:
    """`rule` gives the change of a parameter at a step (from 1) for its value and gradient."""
    params = draw(0)
    for index, found in enumerate(seen):
        gradients = draw(index + 1)
        for path in params:
            params[path] = params[path] + rule(index + 1, path, params[path], gradients[path])
            np.testing.assert_allclose(found[path], params[path], rtol=1e-12, atol=1e-12)


class Adam:
    """Kingma & Ba's first and second moments, corrected for their start at zero."""

    def __init__(self) -> None:
        self.first: dict[str, Any] = {}
        self.second: dict[str, Any] = {}

    def __call__(self, step: int, path: str, gradient: np.ndarray) -> np.ndarray:
        self.first[path] = 0.9 * self.first.get(path, 0.0) + 0.1 * gradient
        self.second[path] = 0.999 * self.second.get(path, 0.0) + 0.001 * gradient**2
        mean = self.first[path] / (1 - 0.9**step)
        square = self.second[path] / (1 - 0.999**step)
        return mean / (np.sqrt(square) + 1e-8)


class Momentum:
    def __init__(self, kept: float) -> None:
        self.kept = kept
        self.buffer: dict[str, Any] = {}

    def __call__(self, path: str, gradient: np.ndarray) -> np.ndarray:
        self.buffer[path] = self.kept * self.buffer.get(path, 0.0) + gradient
        return self.buffer[path]


def is_kernel(path: str) -> bool:
    return path.endswith("kernel")


pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("decay_all", [False, True])
def test_sgd_with_momentum_and_decay(decay_all: bool) -> None:
    optimizer = Optimizer("sgd", 0.1, momentum=0.8, weight_decay=0.3, decay_all=decay_all)
    momentum = Momentum(0.8)

    def rule(step: int, path: str, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        decay = 0.3 if decay_all or is_kernel(path) else 0.0
        return -0.1 * momentum(path, gradient + decay * value)

    expect(follow(optimizer), rule)


@pytest.mark.parametrize("decay_all", [False, True])
def test_adam_adds_decay_to_the_gradient(decay_all: bool) -> None:
    optimizer = Optimizer("adam", 0.01, weight_decay=0.3, decay_all=decay_all)
    adam = Adam()

    def rule(step: int, path: str, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        decay = 0.3 if decay_all or is_kernel(path) else 0.0
        return -0.01 * adam(step, path, gradient + decay * value)

    expect(follow(optimizer), rule)


def test_adamw_decays_beside_the_gradient() -> None:
    adam = Adam()

    def rule(step: int, path: str, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        decay = 0.3 if is_kernel(path) else 0.0
        return -0.01 * (adam(step, path, gradient) + decay * value)

    expect(follow(Optimizer("adamw", 0.01, weight_decay=0.3)), rule)


@pytest.mark.parametrize("decay_all", [False, True])
def test_lars_adapts_the_rate_to_each_array(decay_all: bool) -> None:
    optimizer = Optimizer(
        "lars",
        0.4,
        schedule=Cosine(),
        momentum=0.8,
        trust=0.02,
        weight_decay=0.3,
        decay_all=decay_all,
        rates=(("^encoder/", 0.5),),
    )
    momentum = Momentum(0.8)

    def rule(step: int, path: str, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        ratio = 1.0
        if decay_all or is_kernel(path):
            gradient = gradient + 0.3 * value
            ratio = 0.02 * math.sqrt((value**2).sum()) / math.sqrt((gradient**2).sum())
        # The rate falls over the steps and is inside the momentum, as in You et al.
        rate = 0.4 * (1 + math.cos(math.pi * (step - 1) / 100)) / 2
        factor = 0.5 if path.startswith("encoder") else 1.0
        return -momentum(path, rate * factor * ratio * gradient)

    expect(follow(optimizer), rule)


def test_lars_by_hand_and_as_optax() -> None:
    # Norm 5, gradient of norm 2, coefficient 0.1: ratio 0.25, and the rate 0.4 makes it 0.1.
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([7.0])}
    gradients = {"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.array([2.0])}
    ours = Optimizer("lars", 0.4, trust=0.1, momentum=0.5).build(params, COUNT)
    state = ours.init(params)
    first, state = ours.update(gradients, state, params)
    second, _ = ours.update(gradients, state, params)
    np.testing.assert_allclose(first["kernel"], [[0.0, -0.2]])
    np.testing.assert_allclose(second["kernel"], [[0.0, -0.3]])
    np.testing.assert_allclose(first["bias"], [-0.8])  # no adaptation: 0.4 * 2
    theirs = optax.lars(0.4, 0.2, trust_coefficient=0.1, momentum=0.5)
    ours = Optimizer("lars", 0.4, trust=0.1, momentum=0.5, weight_decay=0.2, decay_all=True).build(
        params, COUNT
    )
    expected, _ = theirs.update(gradients, theirs.init(params), params)
    found, _ = ours.update(gradients, ours.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_the_encoder_has_a_rate_of_its_own() -> None:
    # The first pattern that matches counts.
    optimizer = Optimizer(
        "sgd", 0.1, momentum=0.0, rates=(("bias$", 2.0), ("^encoder/", 0.25), ("kernel", 9.0))
    )

    def rule(step: int, path: str, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        factor = 2.0 if path.endswith("bias") else 0.25 if "encoder" in path else 9.0
        return -0.1 * factor * gradient

    expect(follow(optimizer), rule)


@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_clipping_is_by_the_norm_of_all_gradients(clip: float) -> None:
    # Before decay: what is added to the gradient is not clipped.
    optimizer = Optimizer("sgd", 0.1, momentum=0.0, weight_decay=0.2, clip_norm=clip)

    def rule(step: int, path: str, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        norm = math.sqrt(sum((g**2).sum() for g in draw(step).values()))
        assert 0.5 < norm < 1e3
        decay = 0.2 if is_kernel(path) else 0.0
        return -0.1 * (gradient * min(1.0, clip / norm) + decay * value)

    expect(follow(optimizer), rule)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_what_is_frozen_neither_moves_nor_decays_nor_counts_for_clipping(name: Any) -> None:
    optimizer = Optimizer(name, 0.1, weight_decay=0.3, decay_all=True, clip_norm=0.5)
    seen = follow(optimizer, frozen=("^encoder/",))
    adam, momentum = Adam(), Momentum(0.9)

    def rule(step: int, path: str, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        if path.startswith("encoder"):
            return np.zeros_like(value)
        norm = math.sqrt(sum((g**2).sum() for p, g in draw(step).items() if p.startswith("head")))
        gradient = gradient * min(1.0, 0.5 / norm)
        if name == "sgd":
            return -0.1 * momentum(path, gradient + 0.3 * value)
        if name == "adam":
            return -0.1 * adam(step, path, gradient + 0.3 * value)
        if name == "lars":
            gradient = gradient + 0.3 * value
            ratio = 1e-3 * np.linalg.norm(value) / np.linalg.norm(gradient)
            return -0.1 * momentum(path, ratio * gradient)
        return -0.1 * (adam(step, path, gradient) + 0.3 * value)

    expect(seen, rule)
    for path, value in draw(0).items():
        if path.startswith("encoder"):
            np.testing.assert_array_equal(seen[-1][path], value)


@pytest.mark.parametrize("factor", [-0.5, float("nan"), float("inf")])
def test_factors_of_rates_are_finite_and_not_negative(factor: float) -> None:
    said = f'rates: the factor of "^b" must be finite and at least 0, not {factor}'
    with pytest.raises(ConfigError) as caught:
        Optimizer(rates=(("^a", 0.0), ("^b", factor)))
    assert str(caught.value) == f"optimizer: {said}"


def test_frozen_and_rates_together() -> None:
    # The paths of rates are those of all parameters, also where some are frozen.
    optimizer = Optimizer("sgd", 0.1, momentum=0.0, rates=(("^head/.*kernel", 0.5),))
    seen = follow(optimizer, frozen=("Dense_0/kernel$", "scale"))[-1]
    start = draw(0)
    for path in ("encoder/Dense_0/kernel", "encoder/BatchNorm_0/scale", "head/Dense_0/kernel"):
        np.testing.assert_array_equal(seen[path], start[path])
    assert (seen["head/Dense_0/bias"] != start["head/Dense_0/bias"]).all()


@pytest.mark.parametrize(
    ("optimizer", "frozen", "said"),
    [
        (Optimizer(), ("^encodr/",), 'frozen: "^encodr/" matches no parameter'),
        (Optimizer(rates=(("^trunk", 0.1),)), (), 'optimizer.rates: "^trunk" matches no parameter'),
    ],
)
def test_patterns_that_match_nothing_are_refused(
    optimizer: Optimizer, frozen: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        optimizer.build(nested(draw(0)), COUNT, frozen)
    assert str(caught.value) == said + "; the groups are encoder, head"


# --------------------------------------------------------------------- schedules


def rates(schedule: Any, number: int, peak: float = 0.4) -> list[float]:
    rate = schedule.build(peak, COUNT)
    return np.asarray(jax.vmap(lambda step: rate(step) + 0.0)(jnp.arange(number))).tolist()


def test_constant() -> None:
    assert rates(Constant(), 3) == [0.4, 0.4, 0.4]


def test_cosine_with_warm_up() -> None:
    found = rates(Cosine(warmup=examples(100), final=0.1), 101)
    # 100 samples are 10 steps; then 90 steps from 0.4 down to 0.04.
    np.testing.assert_allclose(found[:11], [0.04 * step for step in range(11)], rtol=1e-6)
    for step, cosine in ((10, 1.0), (40, 0.5), (55, 0.0), (70, -0.5), (100, -1.0)):
        assert found[step] == pytest.approx(0.04 + 0.36 * (1 + cosine) / 2, rel=1e-6)
    assert rates(Cosine(), 101)[0] == pytest.approx(0.4)
    assert rates(Cosine(), 101)[50] == pytest.approx(0.2)
    assert rates(Cosine(), 101)[100] == pytest.approx(0.0, abs=1e-8)


def test_warm_restarts_as_pytorch_counts_them() -> None:
    # CosineAnnealingWarmRestarts(T_0=10, T_mult=2, eta_min=0.1): cycles at 0-10, 10-30, 30-70, ...
    def pytorch(step: int) -> float:
        start, length = 0, 10
        while step >= start + length:
            start, length = start + length, 2 * length
        return 0.1 + 0.3 * (1 + math.cos(math.pi * (step - start) / length)) / 2

    schedule = WarmRestarts(steps(10), multiplier=2.0, final=0.25)
    np.testing.assert_allclose(rates(schedule, 100), [pytorch(i) for i in range(100)], rtol=1e-9)
    # Held for 4 steps at a time, the rate is that of the first of them.
    held = WarmRestarts(steps(10), multiplier=2.0, final=0.25, hold=steps(4))
    expected = [pytorch(i // 4 * 4) for i in range(100)]
    np.testing.assert_allclose(rates(held, 100), expected, rtol=1e-9)
    # One epoch is 20 steps.
    epoch = WarmRestarts(epochs(0.5), multiplier=2.0, final=0.25)
    np.testing.assert_allclose(rates(epoch, 100), rates(schedule, 100))


def test_many_short_cycles() -> None:
    found = rates(WarmRestarts(steps(1), multiplier=1.0), 50)
    assert found == [0.4] * 50
    found = rates(WarmRestarts(steps(3), multiplier=1.5), 30)
    starts = [step for step, rate in enumerate(found) if rate == pytest.approx(0.4)]
    # Lengths 3, 4.5, 6.75, 10.125 rounded to the even or nearest whole number.
    assert starts == [0, 3, 7, 14, 24]


@pytest.mark.parametrize("rise", [0.3, 0.25, 0.0, 0.995])
def test_one_cycle_by_pytorchs_formula(rise: float) -> None:
    # Phases end at rise * total - 1 and at total - 1, a fraction of a step included.
    def formula(step: int) -> float:
        first, last, top = 0.4 / 25.0, 0.4 / 25.0 / 1e4, rise * 100 - 1
        low, high, done = (
            (first, 0.4, step / top if top else 1.0)
            if step <= top
            else (0.4, last, (step - top) / (99 - top))
        )
        return low + (high - low) * (1 - math.cos(math.pi * done)) / 2

    found = rates(OneCycle(rise=rise), 100)
    np.testing.assert_allclose(found, [formula(i) for i in range(100)], rtol=1e-6, atol=1e-9)
    assert found[-1] == pytest.approx(0.4 / 25e4)
    assert found[0] == pytest.approx(0.4 / 25.0) or rise == 0.0


@pytest.mark.parametrize("options", [{}, {"rise": 0.17, "start": 10.0, "end": 100.0}])
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_one_cycle_is_pytorchs(options: dict[str, float]) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    names = {"rise": "pct_start", "start": "div_factor", "end": "final_div_factor"}
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 0.4, total_steps=100, **{names[name]: value for name, value in options.items()}
    )
    expected = []
    for _ in range(100):
        expected.append(theirs.param_groups[0]["lr"])
        theirs.step()
        if len(expected) < 100:
            schedule.step()
    np.testing.assert_allclose(rates(OneCycle(**options), 100), expected, rtol=1e-9, atol=1e-12)


def test_one_cycle_of_one_or_few_steps_is_finite() -> None:
    for total in range(1, 8):
        count = StepCounter(batch_size=10, examples=200, total=total)
        found = [float(OneCycle().build(0.4, count)(jnp.asarray(step))) for step in range(total)]
        assert all(0 < rate <= 0.4 for rate in found)
        assert found[-1] == pytest.approx(0.4 / 25e4)


class ReduceLROnPlateau:
    """PyTorch's documented rule, mode min, threshold_mode rel."""

    def __init__(self, factor: float, patience: int, cooldown: int, threshold: float) -> None:
        self.factor, self.patience, self.cooldown = factor, patience, cooldown
        self.threshold = threshold
        self.rate, self.best, self.bad, self.waiting = 1.0, math.inf, 0, 0

    def step(self, loss: float) -> float:
        if loss < self.best * (1 - self.threshold):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.waiting > 0:
            self.waiting -= 1
            self.bad = 0
        if self.bad > self.patience:
            self.rate *= self.factor
            self.waiting, self.bad = self.cooldown, 0
        return self.rate


def scales(schedule: Plateau, losses: list[float]) -> list[float]:
    state = schedule.transform().init({})

    def body(state: Any, loss: jax.Array) -> Any:
        state = advance_plateau(schedule, state, loss)
        return state, state.scale

    return np.asarray(jax.lax.scan(body, state, jnp.array(losses))[1]).tolist()


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("cooldown", [0, 2])
@pytest.mark.parametrize("threshold", [1e-4, 0.2])
def test_plateau_is_pytorchs(patience: int, cooldown: int, threshold: float) -> None:
    generator = random.Random(7 * patience + cooldown)
    losses = [math.exp(-0.02 * i) * generator.uniform(0.5, 1.5) for i in range(120)]
    losses[17] = losses[18] = math.nan
    losses[50:60] = [losses[50]] * 10
    rule = ReduceLROnPlateau(0.5, patience, cooldown, threshold)
    expected = [rule.step(loss) for loss in losses]
    assert 0 < expected[-1] < 1
    found = scales(Plateau(0.5, patience, cooldown, threshold), losses)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_plateau_by_hand() -> None:
    # Two that are no better are borne, the third reduces; the one after it is not counted.
    losses = [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5]
    expected = [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    found = scales(Plateau(factor=0.1, patience=2, cooldown=1), losses)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
