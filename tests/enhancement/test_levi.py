"""LEVI: its loss in NumPy, its optimiser, and fits that do not know of one another."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.enhancement import LEVI, levi
from jaxmlcl.enhancement._base import softmax
from jaxmlcl.errors import ConfigError
from jaxmlcl.random import make_key, row_words

SMALL = {"hidden": 7, "latent": 5, "epochs": 30}


def made(n: int = 12, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(n, 4)), generator.integers(0, 2, (n, labels)).astype(float)


def elu(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.expm1(values))


def test_loss_is_the_papers(x64: None) -> None:
    x, y = made()
    recipe = dataclasses.replace(LEVI(**SMALL)._recipe(3), dropout=0.0, alpha=0.3, beta=0.7)
    key = make_key(1)
    parameters = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64), levi.initial(make_key(2), 4, 3, 7, 5)
    )
    weight = np.ones(12)
    weight[3] = 0
    loss = jax.jit(levi.loss, static_argnums=1)
    found = loss(parameters, recipe, x, y, jnp.arange(12), jnp.asarray(weight), key, 4)

    def dense(part: str, layer: int, values: np.ndarray) -> np.ndarray:
        held = parameters[part][layer]
        return values @ np.asarray(held["kernel"]) + np.asarray(held["bias"])

    hidden = np.tanh(dense("encoder", 1, elu(dense("encoder", 0, np.hstack([x, y])))))
    out = dense("encoder", 2, hidden)
    mean, deviation = out[:, :5], np.log1p(np.exp(out[:, 5:])) + 1e-8
    z = mean + deviation * np.asarray(levi._normal(row_words(key, 4, 0, jnp.arange(12)), 5))
    back = dense("decoder", 2, elu(dense("decoder", 1, np.tanh(dense("decoder", 0, z)))))
    degree = 1 / (1 + np.exp(-z[:, -3:]))
    entropy = -(y * np.log(degree) + (1 - y) * np.log(1 - degree)).mean(1)
    divergence = (0.5 * (mean**2 + deviation**2 - 2 * np.log(deviation) - 1)).mean(1)
    each = entropy + 0.3 * divergence + 0.7 * ((back - x) ** 2).mean(1)
    assert found == pytest.approx(np.delete(each, 3).mean(), rel=1e-9)


def test_noise_is_normal_and_finite() -> None:
    words = row_words(make_key(0), jnp.arange(4000))
    drawn = np.asarray(jax.jit(levi._normal, static_argnums=1)(words, 500))
    assert np.isfinite(drawn).all()
    assert drawn.mean() == pytest.approx(0, abs=0.003)
    assert drawn.std() == pytest.approx(1, abs=0.003)
    assert (np.abs(drawn) > 1.96).mean() == pytest.approx(0.05, abs=0.001)


def test_weights_start_with_the_published_spread() -> None:
    initial = jax.jit(levi.initial, static_argnums=(1, 2, 3, 4))
    made = initial(make_key(0), 300, 20, 400, 50)
    assert [layer["kernel"].shape for layer in made["encoder"]] == [
        (320, 400),
        (400, 400),
        (400, 100),
    ]
    assert [layer["kernel"].shape for layer in made["decoder"]] == [
        (50, 400),
        (400, 400),
        (400, 300),
    ]
    for layer in (*made["encoder"], *made["decoder"]):
        wide, narrow = layer["kernel"].shape
        assert float(layer["kernel"].std()) == pytest.approx((2 / (wide + narrow)) ** 0.5, rel=0.02)
        assert (layer["bias"] == np.float32(0.01)).all()
    # No two layers have the same numbers.
    scaled = [made[part][1]["kernel"] for part in ("encoder", "decoder")]
    assert abs(np.corrcoef(scaled[0].ravel(), scaled[1].ravel())[0, 1]) < 0.02


@pytest.mark.slow
def test_steps_are_adams_with_decay_in_the_gradient() -> None:
    x, y = made()
    recipe = dataclasses.replace(
        LEVI(**SMALL, milestones=(2,), decay=0.5, weight_decay=0.1)._recipe(3), epochs=4
    )
    rows, weight, key = jnp.arange(12), jnp.ones(12), make_key(3)
    xs, ys = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    trained = levi._train(recipe, xs, ys, rows, weight, key)
    start, noise = jax.random.split(key)
    parameters = levi.initial(start, 4, 3, 7, 5)
    leaves, tree = jax.tree.flatten(parameters)
    first = [np.zeros(leaf.shape) for leaf in leaves]
    second = [np.zeros(leaf.shape) for leaf in leaves]
    slope = jax.jit(jax.grad(levi.loss), static_argnums=1)
    for epoch in range(4):
        current = jax.tree.unflatten(tree, [jnp.asarray(leaf, jnp.float32) for leaf in leaves])
        gradient = slope(current, recipe, xs, ys, rows, weight, noise, epoch)
        rate = 1e-3 * (0.5 if epoch >= 2 else 1.0)
        for i, own in enumerate(jax.tree.leaves(gradient)):
            own = np.asarray(own, np.float64) + 0.1 * np.asarray(leaves[i])
            first[i] = 0.9 * first[i] + 0.1 * own
            second[i] = 0.999 * second[i] + 0.001 * own**2
            step = first[i] / (1 - 0.9 ** (epoch + 1))
            step /= np.sqrt(second[i] / (1 - 0.999 ** (epoch + 1))) + 1e-8
            leaves[i] = np.asarray(leaves[i], np.float64) - rate * step
    for found, expected in zip(jax.tree.leaves(trained), leaves, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
def test_degrees_stay_within_e_and_follow_the_labels() -> None:
    x, y = made()
    found = LEVI(hidden=30, latent=5, epochs=300).fit_transform(x, y)
    assert (found.max(1) / found.min(1) < np.e).all()
    some = (y.min(1) == 0) & (y.max(1) == 1)
    assert (np.where(y == 1, found, 1).min(1) > np.where(y == 0, found, 0).max(1))[some].all()


@pytest.mark.slow
def test_without_training_it_is_the_encoder() -> None:
    x, y = made()
    found = LEVI(**SMALL, learning_rate=0.0, random_state=5).fit_transform(x, y)
    start, _ = jax.random.split(make_key(5))
    encoder = levi.initial(start, 4, 3, 7, 5)["encoder"]
    scaled = (x - x.min()) / (x.max() - x.min())
    mean, _ = levi._encode(encoder, jnp.asarray(np.hstack([scaled, y]), jnp.float32), None)
    degree = 1 / (1 + np.exp(-np.asarray(mean, np.float64)[:, -3:]))
    np.testing.assert_allclose(found, softmax(degree), atol=1e-6)


@pytest.mark.slow
def test_fits_do_not_know_of_other_fits_or_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made()
    rows = [np.arange(8), np.arange(12), np.array([11, 2, 5])]
    together = LEVI(**SMALL).fit_many(x, y, rows, [0, 1, 2])
    assert together.shape == (3, 12, 3)
    for part, seed, found in zip(rows, range(3), together, strict=True):
        alone = LEVI(**SMALL).fit_many(x, y, [part], [seed])[0]
        np.testing.assert_allclose(found, alone, atol=1e-5)
        # Rows that were left out can be anything.
        other, labels = x + 5, 1 - y
        other[part], labels[part] = x[part], y[part]
        changed = LEVI(**SMALL).fit_many(other, labels, [part], [seed])[0]
        np.testing.assert_allclose(changed[part], found[part], atol=1e-5)
    # As many at a time as fit into memory.
    monkeypatch.setattr(levi, "_HELD", 1)
    np.testing.assert_allclose(LEVI(**SMALL).fit_many(x, y, rows, [0, 1, 2]), together, atol=1e-5)


def test_misuse_is_refused() -> None:
    x, y = made()
    for options, said in (
        ({"hidden": 0}, "LEVI: hidden must be a whole number of at least 1, not 0"),
        ({"dropout": 1.0}, "LEVI: dropout must be a number of at least 0 and at most 1, not 1.0"),
        ({"milestones": 5}, "LEVI: milestones must be whole numbers, not 5"),
    ):
        with pytest.raises(ConfigError, match=said):
            LEVI(**options).fit(x, y)
