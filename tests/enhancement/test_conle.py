"""ConLE: the objective, when it stops, many fits at once, and the transformer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone

from jaxmlcl.enhancement import ENHANCERS, ConLE
from jaxmlcl.enhancement import conle as room
from jaxmlcl.errors import ConfigError
from jaxmlcl.losses import cross_view_contrastive, squared_distance, threshold_hinge


def rows(n: int = 60, num_labels: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell something of the labels; every row has one or two."""
    random = np.random.default_rng(seed)
    labels = np.eye(num_labels)[random.integers(0, num_labels, n)]
    labels = np.maximum(labels, np.eye(num_labels)[random.integers(0, num_labels, n)])
    return labels @ random.normal(size=(num_labels, 7)) + random.normal(size=(n, 7)), labels


QUICK: dict[str, Any] = {"learning_rate": 0.003, "hidden": 16, "width": 8, "batch_size": 32}


@pytest.mark.parametrize(
    ("variant", "terms"),
    [("full", (1, 0.5, 1.0)), ("h", (0, 0.5, 1.0)), ("l", (1, 0.5, 0.0))],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_objective_is_the_sum_of_its_terms(
    variant: Any, terms: tuple[float, ...], reduction: str
) -> None:
    features, labels = rows()
    enhancer = ConLE(variant, reduction=reduction, **QUICK)
    followed = enhancer.set_params(epochs=2).trajectory(features, labels, [3])
    fitted = enhancer.set_params(stop="epochs").fit(features, labels)
    problem = enhancer._problem(features, labels, [np.arange(60)], [3], None)
    parameters, _ = room._train(
        problem.data, problem.fits, problem.static, 2 * problem.static.per_epoch
    )
    x, mean, scale = (jnp.asarray(v) for v in (features, problem.fits.mean, problem.fits.scale))
    own = jax.tree.map(lambda leaf: leaf[0], parameters)
    z, q, logits = problem.static.network.apply(own, (x - mean[0]) * scale[0], problem.data[1])
    degrees = jax.nn.softmax(logits)
    total = (
        terms[0] * cross_view_contrastive(z, q, temperature=0.5)
        + terms[1] * squared_distance(degrees, labels, reduction=reduction)
        + terms[2] * threshold_hinge(degrees, labels, margin=0.05)
    )
    assert followed.objective[0, -1] == pytest.approx(float(total), rel=1e-5)
    np.testing.assert_allclose(followed.distributions[0, -1], degrees, atol=1e-6)
    assert fitted.steps_ == 2 * problem.static.per_epoch


def test_training_starts_at_equal_degrees_and_ends_at_the_labels() -> None:
    features, labels = rows()
    enhancer = ConLE(epochs=400, **QUICK)
    followed = enhancer.trajectory(features, labels, [0], every=10)
    assert followed.mass[0, 0] < 0.5
    assert followed.mass[0, -1] > 0.95
    last = followed.distributions[0, -1]
    np.testing.assert_allclose(last, labels / labels.sum(1, keepdims=True), atol=0.1)


def test_it_stops_where_the_mass_is_first_reached() -> None:
    features, labels = rows()
    fitted = ConLE(target_mass=0.6, **QUICK).fit(features, labels)
    mass = (fitted.distributions_ * labels).sum(1).mean()
    assert 0.6 <= mass < 0.65
    before = ConLE(target_mass=0.6, stop="epochs", epochs=1, **QUICK)
    problem = before._problem(features, labels, [np.arange(60)], [0], None)
    parameters, _ = room._train(problem.data, problem.fits, problem.static, fitted.steps_ - 5)
    earlier = before._recover(
        room._Fitted(parameters, np.zeros(1), np.zeros(1), problem), features, labels
    )
    assert (earlier[0] * labels).sum(1).mean() < 0.6


def test_the_target_comes_from_the_labels() -> None:
    features, labels = rows()
    from jaxmlcl.enhancement._mass import expected_mass

    fitted = ConLE(**QUICK).fit(features, labels)
    assert fitted.target_mass_ == pytest.approx(expected_mass(labels), abs=1e-6)


def test_many_fits_are_the_single_ones() -> None:
    features, labels = rows()
    folds = [np.arange(60), np.arange(0, 54), np.arange(6, 59)]
    enhancer = ConLE(target_mass=0.6, **QUICK)
    together = enhancer.fit_many(features, labels, folds, [1, 2, 3])
    assert together.shape == (3, 60, 4)
    np.testing.assert_allclose(together.sum(-1), 1, atol=1e-12)
    for found, fold, seed in zip(together, folds, [1, 2, 3], strict=True):
        # The order of rows depends on how many there are at most, hence the same padding.
        alone = enhancer.fit_many(features, labels, [folds[0], fold], [0, seed])[1]
        np.testing.assert_allclose(found, alone, atol=2e-5)
    # Rows that fill up a shorter fit do not count: changing what they hold changes nothing.
    longer = [np.arange(60), folds[2]]
    first = enhancer.fit_many(features, labels, longer, [1, 3])[1]
    changed = features.copy()
    changed[:6] += 100.0
    changed[59] -= 100.0
    second = enhancer.fit_many(changed, labels, longer, [1, 3])[1]
    np.testing.assert_allclose(first[6:59], second[6:59], atol=1e-6)


def test_held_out_rows_are_enhanced_from_their_features_and_labels() -> None:
    features, labels = rows(80)
    fitted = ConLE(target_mass=0.6, **QUICK).fit(features[:60], labels[:60])
    found = fitted.transform(features[60:], labels[60:])
    many = ConLE(target_mass=0.6, **QUICK).fit_many(features, labels, [np.arange(60)], [0])
    np.testing.assert_allclose(found, many[0, 60:], atol=1e-6)
    assert (found * labels[60:]).sum(1).mean() > labels.sum(1).mean() / 4
    with pytest.raises(ValueError, match="fitted were 7 features and 4 labels"):
        fitted.transform(features[:, :5], labels)


def test_sweeps_give_each_fit_its_number() -> None:
    features, labels = rows()
    everything = [np.arange(60)] * 2
    enhancer = ConLE(stop="epochs", epochs=3, **QUICK)
    both = enhancer.fit_many(features, labels, everything, [0, 0], {"lambda_1": [0.1, 10.0]})
    for found, value in zip(both, (0.1, 10.0), strict=True):
        alone = clone(enhancer).set_params(lambda_1=value).fit_transform(features, labels)
        np.testing.assert_allclose(found, alone, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3


@pytest.mark.parametrize("output", ["softmax", "softmax_twice", "raw_then_softmax"])
def test_outputs_are_distributions(output: Any) -> None:
    features, labels = rows()
    found = ConLE(output=output, stop="epochs", epochs=200, **QUICK).fit_transform(features, labels)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (found > 0).all()
    ratio = (found.max(1) / found.min(1)).max()
    # Two softmaxes keep any two degrees within a factor of e; labels of 0 and 1, raw, nearly so.
    assert ratio > 10 if output == "softmax" else ratio < 4


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
