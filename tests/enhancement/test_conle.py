"""ConLE: the objective, when it stops, many fits at once, and the transformer.

Compiling is most of what these tests do: nearly all of them share three programs, of one fit, of
one fit that is followed, and of three fits, so shapes and static options are the same throughout.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone

from jaxmlcl.enhancement import ENHANCERS, ConLE, expected_mass
from jaxmlcl.enhancement import conle as room
from jaxmlcl.errors import ConfigError
from jaxmlcl.losses import cross_view_contrastive, squared_distance, threshold_hinge
from jaxmlcl.models.enhancement import ConLENetwork
from tests.conftest import quick_jit

pytestmark = pytest.mark.usefixtures("conle_compiled_quickly")

QUICK: dict[str, Any] = {"learning_rate": 0.01, "hidden": 16, "width": 8, "batch_size": 32}
EVERYTHING = np.arange(60)
# Of the followed fit: sixty rows are one batch of 32, so an epoch is a step.
EPOCHS, EVERY, SEED = 200, 10, 3


def rows(num_labels: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell something of the labels; every row has one or two."""
    random = np.random.default_rng(seed)
    labels = np.eye(num_labels)[random.integers(0, num_labels, 60)]
    labels = np.maximum(labels, np.eye(num_labels)[random.integers(0, num_labels, 60)])
    return labels @ random.normal(size=(num_labels, 7)) + random.normal(size=(60, 7)), labels


def mass(distributions: np.ndarray, labels: np.ndarray) -> float:
    return float((distributions * labels).sum(1).mean())


def after(enhancer: ConLE, steps: int, seed: int) -> tuple[room._Problem, Any]:
    """The parameters of one fit after so many steps, whatever the mass."""
    endless = clone(enhancer).set_params(stop="epochs")
    problem = endless._problem(*rows(), [EVERYTHING], [seed], None)
    parameters, done = room._train(problem.data, problem.fits, problem.static, steps)
    assert done.tolist() == [steps]
    return problem, parameters


@quick_jit
def network_and_terms(parameters: Any, features: jax.Array, labels: jax.Array) -> tuple[Any, ...]:
    """The distributions, and the terms of the objective on all rows; the distance both ways."""
    x = (features - features.mean(0)) / features.std(0, ddof=1)
    seen = (labels - labels.mean(0)) / labels.std(0, ddof=1)
    network = ConLENetwork(4, QUICK["hidden"], QUICK["width"])
    z, q, logits = network.apply(parameters, x, seen)  # type: ignore[misc]
    degrees = jax.nn.softmax(logits)
    distance = {way: squared_distance(degrees, labels, reduction=way) for way in ("mean", "sum")}
    contrast = cross_view_contrastive(z, q, temperature=0.5)
    return degrees, contrast, distance, threshold_hinge(degrees, labels, margin=0.05)


def by_hand(problem: room._Problem, parameters: Any, enhancer: ConLE) -> tuple[float, np.ndarray]:
    """The objective on all rows, and the distributions."""
    own = jax.tree.map(lambda leaf: leaf[0], parameters)
    degrees, contrast, distance, hinge = network_and_terms(own, *problem.data)
    weights = TERMS[enhancer.variant]
    total = weights[0] * contrast + weights[1] * distance[enhancer.reduction] + weights[2] * hinge
    return float(total), np.asarray(degrees)


TERMS = {"full": (1, 0.5, 1.0), "h": (0, 0.5, 1.0), "l": (1, 0.5, 0.0)}
OBJECTIVES = [(variant, reduction) for variant in TERMS for reduction in ("mean", "sum")]


@pytest.fixture(scope="module")
def fitted(conle_compiled_quickly: None) -> ConLE:
    return ConLE(target_mass=0.6, **QUICK).fit(*rows())


@pytest.fixture(scope="module")
def followed(conle_compiled_quickly: None) -> room.Trajectory:
    return ConLE(epochs=EPOCHS, **QUICK).trajectory(*rows(), [SEED], every=EVERY)


@pytest.fixture(scope="module")
def objectives(fitted: ConLE) -> list[float]:
    """The objective of each of OBJECTIVES on all rows, at the fit's parameters."""
    statics = [
        ConLE(variant, reduction=reduction, **QUICK)
        ._problem(*rows(), [EVERYTHING], [0], None)
        .static
        for variant, reduction in OBJECTIVES
    ]
    problem = fitted._fits.problem
    own, fit = jax.tree.map(lambda leaf: leaf[0], (fitted._fits.parameters, problem.fits))

    @quick_jit
    def all_of_them(own: Any, features: jax.Array, labels: jax.Array) -> list[jax.Array]:
        x = (features - fit.mean) * fit.scale
        seen = (labels - fit.label_mean) * fit.label_scale
        return [
            room._objective(own, x, seen, labels, fit.numbers, static, None) for static in statics
        ]

    return [float(value) for value in all_of_them(own, *problem.data)]


@pytest.mark.parametrize("place", range(len(OBJECTIVES)), ids=map("-".join, OBJECTIVES))
def test_the_objective_is_the_sum_of_its_terms(
    fitted: ConLE, objectives: list[float], place: int
) -> None:
    variant, reduction = OBJECTIVES[place]
    problem, parameters = fitted._fits.problem, fitted._fits.parameters
    enhancer = ConLE(variant, reduction=reduction, **QUICK)  # type: ignore[arg-type]
    total, degrees = by_hand(problem, parameters, enhancer)
    assert objectives[place] == pytest.approx(total, rel=1e-5)
    found = room._recovered(parameters, *problem.data, problem.fits, problem.static)
    np.testing.assert_allclose(found[0], degrees, atol=1e-6)


def follows(enhancer: ConLE, followed: room.Trajectory) -> None:
    """What is followed is what is trained, and its objective is the sum of the terms."""
    problem, parameters = after(enhancer, EVERY, SEED)
    total, degrees = by_hand(problem, parameters, enhancer)
    assert followed.steps[0] == EVERY
    assert followed.objective[0, 0] == pytest.approx(total, rel=1e-4)
    np.testing.assert_allclose(followed.distributions[0, 0], degrees, atol=1e-4)
    assert followed.mass[0, 0] == pytest.approx(mass(degrees, rows()[1]), abs=1e-4)


def test_what_is_followed_is_what_is_trained(followed: room.Trajectory) -> None:
    follows(ConLE(**QUICK), followed)
    assert followed.steps.tolist() == list(range(EVERY, EPOCHS + 1, EVERY))


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "reduction"), OBJECTIVES[1:])
def test_every_variant_is_trained(variant: Any, reduction: str) -> None:
    enhancer = ConLE(variant, reduction=reduction, epochs=20, **QUICK)
    found = enhancer.trajectory(*rows(), [SEED], every=EVERY)
    follows(enhancer, found)
    assert found.objective[0, 1] < found.objective[0, 0]


@pytest.mark.slow
def test_gradient_descent_trains_too() -> None:
    features, labels = rows()
    enhancer = ConLE(optimizer="sgd", stop="epochs", calibrate=False, epochs=100, **QUICK)
    found = enhancer.fit_transform(features, labels)
    assert mass(found, labels) > labels.sum(1).mean() / 4 + 0.1


def test_training_starts_at_equal_degrees_and_ends_at_the_labels(
    followed: room.Trajectory,
) -> None:
    _, labels = rows()
    problem, parameters = after(ConLE(**QUICK), 0, SEED)
    start = room._recovered(parameters, *problem.data, problem.fits, problem.static)
    np.testing.assert_allclose(start, 0.25, atol=1e-7)
    assert followed.mass[0, 0] < 0.6
    assert followed.mass[0, -1] > 0.95
    assert followed.objective[0, -1] < followed.objective[0, 0] - 1
    away = np.abs(followed.distributions[0, -1] - labels / labels.sum(1, keepdims=True))
    assert away.max() < 0.15
    assert away.mean() < 0.03


@pytest.mark.parametrize("calibrate", [True, False])
def test_it_stops_where_the_mass_is_first_reached(calibrate: bool) -> None:
    features, labels = rows()
    enhancer = ConLE(target_mass=0.6, calibrate=calibrate, **QUICK).fit(features, labels)
    end = 0.8 if calibrate else 0.6

    def trained(steps: int) -> np.ndarray:
        problem, parameters = after(enhancer, steps, 0)
        return room._recovered(parameters, *problem.data, problem.fits, problem.static)[0]

    assert enhancer.steps_ % 5 == 0
    degrees = np.asarray(trained(enhancer.steps_), np.float64)
    assert mass(trained(enhancer.steps_ - 5), labels) < end <= mass(degrees, labels)
    # What was trained beyond the target is flattened to it, by one number.
    if not calibrate:
        assert enhancer.flattening_ == 1
        np.testing.assert_allclose(enhancer.distributions_, degrees, atol=1e-6)
        return
    assert 0 < enhancer.flattening_ < 1
    assert mass(enhancer.distributions_, labels) == pytest.approx(0.6, abs=1e-5)
    flat = degrees**enhancer.flattening_
    np.testing.assert_allclose(
        enhancer.distributions_, flat / flat.sum(1, keepdims=True), atol=1e-6
    )


def test_what_has_not_come_to_the_target_is_left_as_it_is() -> None:
    features, labels = rows()
    enhancer = ConLE(target_mass=0.9, stop="epochs", epochs=10, **QUICK).fit(features, labels)
    assert enhancer.steps_ == 10
    assert enhancer.flattening_ == pytest.approx(1, abs=1e-9)
    assert mass(enhancer.distributions_, labels) < 0.7


def test_a_flattening_by_hand() -> None:
    # One row: the label has .8 and the other .2; (.8 / .2)^t = .6 / .4 at t = log 1.5 / log 4.
    found = room._flattening(np.array([[0.8, 0.2]]), np.array([[1.0, 0.0]]), 0.6)
    assert found == pytest.approx(np.log(1.5) / np.log(4))
    # Rows without labels say nothing.
    both = np.array([[0.8, 0.2], [0.9, 0.1]])
    assert room._flattening(both, np.array([[1.0, 0], [0, 0]]), 0.6) == pytest.approx(found)


def test_the_target_comes_from_the_labels() -> None:
    features, labels = rows()
    enhancer = ConLE(**QUICK).fit(features, labels)
    assert enhancer.target_mass_ == pytest.approx(expected_mass(labels), abs=1e-6)
    assert mass(enhancer.distributions_, labels) == pytest.approx(expected_mass(labels), abs=1e-5)


FOLDS = (EVERYTHING, np.arange(0, 54), np.arange(6, 59))


def test_many_fits_are_the_single_ones() -> None:
    features, labels = rows()
    enhancer = ConLE(target_mass=0.6, **QUICK)
    together = enhancer.fit_many(features, labels, FOLDS, [1, 2, 3])
    assert together.shape == (3, 60, 4)
    np.testing.assert_allclose(together.sum(-1), 1, atol=1e-12)
    for found, fold, seed in zip(together, FOLDS, [1, 2, 3], strict=True):
        # Beside others the same comes out; all are filled up to as many rows.
        alone = enhancer.fit_many(features, labels, [FOLDS[0], fold, FOLDS[1]], [0, seed, 9])[1]
        np.testing.assert_allclose(found, alone, atol=2e-5)
    # Rows that fill up a shorter fit do not count: changing what they hold changes nothing.
    changed = features.copy()
    changed[:6] += 100.0
    changed[59] -= 100.0
    second = enhancer.fit_many(changed, labels, FOLDS, [1, 2, 3])
    np.testing.assert_allclose(together[2, 6:59], second[2, 6:59], atol=1e-6)
    assert np.abs(together[0] - second[0]).max() > 1e-3


def test_a_fit_alone_is_the_one_among_many(fitted: ConLE) -> None:
    features, labels = rows()
    enhancer = ConLE(target_mass=0.6, **QUICK)
    many = enhancer.fit_many(features, labels, FOLDS, [0, 1, 2])
    np.testing.assert_allclose(many[0], fitted.distributions_, atol=1e-3)


def test_held_out_rows_are_enhanced_from_their_features_and_labels() -> None:
    features, labels = rows()
    # Sixty rows drawn from forty: as many as elsewhere, and twenty are held out.
    drawn, held = np.random.default_rng(0).integers(0, 40, 60), slice(40, 60)
    enhancer = ConLE(target_mass=0.6, **QUICK)
    fitted = clone(enhancer).fit(features[drawn], labels[drawn])
    found = fitted.transform(features[held], labels[held])
    many = enhancer.fit_many(features, labels, [drawn], [0])
    np.testing.assert_allclose(found, many[0, held], atol=1e-6)
    np.testing.assert_allclose(fitted.distributions_, many[0, drawn], atol=1e-6)
    assert mass(found, labels[held]) > labels.sum(1).mean() / 4
    with pytest.raises(ValueError, match="fitted were 7 features and 4 labels"):
        fitted.transform(features[:, :5], labels)


def test_sweeps_give_each_fit_its_number() -> None:
    features, labels = rows()
    enhancer = ConLE(stop="epochs", epochs=3, **QUICK)
    three = enhancer.fit_many(
        features, labels, (EVERYTHING, *FOLDS[:2]), [0, 0, 0], {"lambda_1": [0.1, 10.0, 0.5]}
    )
    for found, value in zip(three[:2], (0.1, 10.0), strict=True):
        alone = clone(enhancer).set_params(lambda_1=value).fit_transform(features, labels)
        # Adam divides small slopes by their own size, so programs differ by more than rounding.
        np.testing.assert_allclose(found, alone, atol=1e-3)
    assert np.abs(three[0] - three[1]).max() > 1e-2


@pytest.mark.parametrize(
    "output",
    [
        "softmax",
        pytest.param("softmax_twice", marks=pytest.mark.slow),
        pytest.param("raw_then_softmax", marks=pytest.mark.slow),
    ],
)
def test_outputs_are_distributions(output: Any) -> None:
    enhancer = ConLE(output=output, stop="epochs", calibrate=False, epochs=100, **QUICK)
    found = enhancer.fit_transform(*rows())
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (found > 0).all()
    ratio = (found.max(1) / found.min(1)).max()
    # Two softmaxes keep any two degrees within a factor of e; labels of 0 and 1, raw, nearly so.
    assert ratio > 10 if output == "softmax" else ratio < 4


def test_degrees_by_hand() -> None:
    logits = jnp.array([[0.0, np.log(3.0)]])
    for output, trained, given in (
        ("softmax", [0.25, 0.75], [0.25, 0.75]),
        ("softmax_twice", [0.25, 0.75], [1 / (1 + np.exp(0.5)), 1 / (1 + np.exp(-0.5))]),
        ("raw_then_softmax", [0.0, np.log(3.0)], [0.25, 0.75]),
    ):
        found = room._degrees(logits, output)
        np.testing.assert_allclose(found[0], [trained], atol=1e-6)
        np.testing.assert_allclose(found[1], [given], atol=1e-6)


def test_rows_without_labels_and_with_all_are_distributions() -> None:
    features, labels = rows()
    labels[0], labels[1] = 0, 1
    found = ConLE(**QUICK).fit_transform(features, labels)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)


def test_constant_features_and_seeds() -> None:
    features, labels = rows()
    features[:, 2] = 7.0
    first, again, other = (
        ConLE(random_state=seed, **QUICK).fit_transform(features, labels) for seed in (1, 1, 2)
    )
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


def test_it_is_a_transformer() -> None:
    enhancer = ConLE("h", learning_rate=0.5)
    copied = clone(enhancer)
    assert copied.get_params() == enhancer.get_params()
    assert copied.get_params()["variant"] == "h"
    assert ENHANCERS["conle"] is ConLE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "g"}, 'variant "g" is none of full, h, l'),
        ({"output": "sigmoid"}, "none of softmax"),
        ({"stop": "oracle"}, "none of mass, epochs"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"lambda_1": -1.0}, "lambda_1 must be at least 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"target_mass": 1.5}, "target_mass must be in"),
    ],
)
def test_misuse_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConLE(**options).fit(*rows())
