"""The streamed walk: its derivatives are those of plain arithmetic, and so is every transform."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from jaxmlcl import losses

FACTORISED = ("mulsupcon", "mulsupcon_mean")
# Four chunks, of which the first is peeled, two are a loop and the last is ragged.
B, K, L, D, CHUNK = 4, 11, 3, 3, 3

RNG = np.random.default_rng(5)
POINT = {
    "anchors": RNG.normal(size=(B, D)),
    "keys": RNG.normal(size=(K, D)),
    "temperature": np.array(0.7),
}
LABELS = RNG.integers(0, 2, (B, L)).astype(np.float64)
KEY_LABELS = RNG.integers(0, 2, (K, L)).astype(np.float64)
LABELS[0], KEY_LABELS[0] = 1, 1
# Degrees of anchors and keys, some of them 0, where there is a derivative as well.
DEGREES = {
    "anchor_labels": LABELS * RNG.uniform(0.2, 0.9, LABELS.shape),
    "key_labels": KEY_LABELS * RNG.uniform(0.2, 0.9, KEY_LABELS.shape),
}
MASKS = {
    "key_valid": np.arange(K) != 4,
    "label_mask": RNG.random((B, L)) < 0.8,
    "key_label_mask": RNG.random((K, L)) < 0.8,
    "where": np.arange(B) != 1,
}
IDS = {"anchor_ids": np.arange(B), "key_ids": np.array([-1, 0, 7, 2, 2, 3, -1, 9, 0, 5, 2])}
CASES: dict[str, dict[str, Any]] = {"bare": {}, "masks": MASKS, "masks and ids": MASKS | IDS}
CHOSEN = [
    *(("mulsupcon", case) for case in CASES),
    ("mulsupcon_mean", "masks and ids"),
    ("any", "masks and ids"),
    ("all", "bare"),
    ("jaccard", "masks"),
]
# Where every order of the two modes is tried, and every argument by itself.
THOROUGH = [("mulsupcon", "masks and ids"), ("any", "masks and ids")]


def weights_of_sets(weighting: str, masks: dict[str, Any]) -> np.ndarray:
    """Weights [B, K] of 0/1 labels, before pairs are left out."""
    known = masks.get("label_mask", np.ones((B, L), bool))[:, None]
    key_known = masks.get("key_label_mask", np.ones((K, L), bool))[None]
    mine, other = (LABELS[:, None] > 0) & known, (KEY_LABELS[None] > 0) & key_known
    if weighting == "any":
        return (mine & other).any(-1) * 1.0
    both = known & key_known
    shared, either = (mine & other & both).sum(-1), ((mine | other) & both).sum(-1)
    index = np.where(either > 0, shared / np.maximum(either, 1), 1.0) * both.any(-1)
    return index * (index == 1 if weighting == "all" else index >= 0.5)


def dense(weighting: str, masks: dict[str, Any], point: dict[str, Any]) -> jax.Array:
    """The loss with every matrix [B, K] written out."""
    where = jnp.asarray(masks.get("where", np.ones(B, bool)))
    valid = jnp.asarray(masks.get("key_valid", np.ones(K, bool)))
    allowed = jnp.broadcast_to(valid[None], (B, K))
    if "key_ids" in masks:
        same = masks["anchor_ids"][:, None] == masks["key_ids"][None]
        allowed &= ~(same & (masks["key_ids"] >= 0)[None])
    scores = point["anchors"] @ point["keys"].T / point["temperature"]
    cost = jax.nn.logsumexp(scores, -1, keepdims=True, where=allowed) - scores
    if weighting in FACTORISED:
        y = point["anchor_labels"] * masks.get("label_mask", 1)
        of_keys = point["key_labels"] * masks.get("key_label_mask", 1)
        weights = (y / (allowed @ of_keys)) @ of_keys.T * allowed
        sizes = y.sum(-1)
        divisor = jnp.ones(B) if weighting == "mulsupcon" else sizes
        terms = sizes if weighting == "mulsupcon" else jnp.ones(B)
    else:
        weights = weights_of_sets(weighting, masks) * allowed
        positives = (weights > 0).sum(-1)
        divisor = jnp.maximum(positives, 1)
        terms = jnp.ones(B) if weighting == "all" else positives > 0
    rows = (weights * cost).sum(-1) / divisor
    return jnp.where(where, rows, 0).sum() / jnp.where(where, terms, 0).sum()


def streamed(weighting: str, masks: dict[str, Any], point: dict[str, Any]) -> jax.Array:
    labels = {"anchor_labels": LABELS, "key_labels": KEY_LABELS} | point
    return losses.multi_positive_infonce(weighting=weighting, chunk_size=CHUNK, **labels, **masks)


def point_of(weighting: str) -> dict[str, Any]:
    """What the loss of this weighting can be differentiated in."""
    return POINT | (DEGREES if weighting in FACTORISED else {})


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-11), a, b)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("weighting", "case"), CHOSEN)
def test_derivatives_are_those_of_the_dense_form(
    weighting: str, case: str, quick_compile: dict[str, int]
) -> None:
    """First and second order, in anchors, keys, temperature and degrees, together and alone."""
    masks, point = CASES[case], point_of(weighting)
    flat, unravel = ravel_pytree(point)
    direction = np.random.default_rng(1).normal(size=flat.shape)

    def plain(x: jax.Array) -> jax.Array:
        return dense(weighting, masks, unravel(x))

    def chunked(x: jax.Array) -> jax.Array:
        return streamed(weighting, masks, unravel(x))

    thorough = (weighting, case) in THOROUGH

    def slope(x: jax.Array) -> jax.Array:
        return jax.jvp(chunked, (x,), (direction,))[1]

    def gradient_alone(name: str) -> jax.Array:
        # The others have no tangent at all, which is another path through the rule.
        return jax.grad(lambda part: streamed(weighting, masks, point | {name: part}))(point[name])

    def everything() -> Any:
        expected = jax.value_and_grad(plain)(flat), jax.hessian(plain)(flat)
        first, second = jax.value_and_grad(chunked)(flat), jax.hessian(chunked)(flat)
        names = point if thorough else ("anchors", "keys")
        alone = {name: gradient_alone(name) for name in names}
        products = []
        if thorough:
            products = [
                jax.grad(slope)(flat),
                jax.grad(lambda x: jax.grad(chunked)(x) @ direction)(flat),
            ]
        return expected, (first, second), alone, products

    expected, found, alone, products = jax.jit(everything, compiler_options=quick_compile)()
    close(found, expected)
    (_, gradient), hessian = expected
    assert np.abs(hessian).max() > 0.01
    parts = unravel(gradient)
    close(alone, {name: parts[name] for name in alone})
    close(products, [hessian @ direction] * len(products))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("weighting", "case", "order", "modes"),
    [("mulsupcon", "bare", 2, ["rev"]), ("any", "masks and ids", 1, ["fwd", "rev"])],
)
def test_derivatives_are_slopes(weighting: str, case: str, order: int, modes: list[str]) -> None:
    loss = jax.jit(lambda point: streamed(weighting, CASES[case], point))
    check_grads(loss, (point_of(weighting),), order=order, modes=modes, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("weighting", "mapped_axes"),
    [("mulsupcon", ((0, None), (None, 0), (0, 0))), ("any", ((None, 0),))],
)
def test_vmap_of_the_gradient(
    weighting: str, mapped_axes: tuple[Any, ...], quick_compile: dict[str, int]
) -> None:
    """Over anchors, over keys, over both: as one after the other."""
    rng = np.random.default_rng(2)
    many = {name: rng.normal(size=(3, *POINT[name].shape)) for name in ("anchors", "keys")}
    fixed = point_of(weighting)

    def both(z: jax.Array, k: jax.Array) -> Any:
        def loss(z: jax.Array, k: jax.Array) -> jax.Array:
            return streamed(weighting, MASKS | IDS, fixed | {"anchors": z, "keys": k})

        return jax.value_and_grad(loss, argnums=(0, 1))(z, k)

    one = jax.jit(both, compiler_options=quick_compile)
    for axes in mapped_axes:
        arrays = [
            many[name] if axis == 0 else POINT[name]
            for name, axis in zip(("anchors", "keys"), axes, strict=True)
        ]
        mapped = jax.jit(jax.vmap(both, in_axes=axes), compiler_options=quick_compile)(*arrays)
        for i in range(3):
            single = one(
                *(x if axis is None else x[i] for x, axis in zip(arrays, axes, strict=True))
            )
            close(jax.tree.map(lambda x, i=i: x[i], mapped), single)


@pytest.mark.usefixtures("x64")
def test_remat_and_scan_around_the_loss(quick_compile: dict[str, int]) -> None:
    """As a training step uses it: recomputed in the backward pass, within a loop over steps."""
    fixed = point_of("mulsupcon")

    def loss(z: jax.Array, k: jax.Array) -> jax.Array:
        return streamed("mulsupcon", MASKS | IDS, fixed | {"anchors": z, "keys": k})

    def steps(z: jax.Array, k: jax.Array) -> jax.Array:
        def body(total: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
            return total + jax.checkpoint(loss)(scale * z, k), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.array([1.0, 0.5]))[0]

    def unrolled(z: jax.Array, k: jax.Array) -> jax.Array:
        return loss(z, k) + loss(0.5 * z, k)

    found, expected = jax.jit(
        lambda z, k: tuple(jax.value_and_grad(f, argnums=(0, 1))(z, k) for f in (steps, unrolled)),
        compiler_options=quick_compile,
    )(POINT["anchors"], POINT["keys"])
    close(found, expected)


@pytest.mark.usefixtures("x64")
def test_derivatives_in_given_class_sums(quick_compile: dict[str, int]) -> None:
    """First and second order; the walk is then for the denominators alone."""
    sums, counts = losses.class_sums(
        POINT["keys"], DEGREES["key_labels"], key_valid=MASKS["key_valid"]
    )
    point = {"anchors": POINT["anchors"], "sums": sums, "counts": counts, "keys": POINT["keys"]}
    flat, unravel = ravel_pytree(point)
    labels, valid = DEGREES["anchor_labels"], MASKS["key_valid"]

    def given(x: jax.Array) -> jax.Array:
        part = unravel(x)
        return losses.multi_positive_infonce(
            part["anchors"],
            part["keys"],
            **DEGREES,
            class_sums=(part["sums"], part["counts"]),
            key_valid=valid,
            weighting="mulsupcon_mean",
            chunk_size=CHUNK,
        )

    def plain(x: jax.Array) -> jax.Array:
        part = unravel(x)
        scores = part["anchors"] @ part["keys"].T / 0.1
        log_sum = jax.nn.logsumexp(scores, -1, where=valid)
        positive = part["anchors"] @ (part["sums"] / part["counts"][:, None]).T / 0.1
        rows = (labels * (log_sum[:, None] - positive)).sum(-1)
        return (rows / labels.sum(-1)).mean()

    found, expected = jax.jit(
        lambda x: tuple((f(x), jax.grad(f)(x), jax.hessian(f)(x)) for f in (given, plain)),
        compiler_options=quick_compile,
    )(flat)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), found, expected
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", ["mulsupcon", "any"])
def test_chunks_without_any_key(weighting: str, quick_compile: dict[str, int]) -> None:
    """Derivatives of both orders are finite, and zero where no chunk holds a key."""

    def derivatives(valid: jax.Array) -> Any:
        def loss(z: jax.Array) -> jax.Array:
            return streamed(weighting, {"key_valid": valid}, POINT | {"anchors": z})

        return jax.grad(loss)(POINT["anchors"]), jax.hessian(loss)(POINT["anchors"])

    run = jax.jit(derivatives, compiler_options=quick_compile)
    # All but the tail, all but the first, and all.
    for valid in (np.arange(K) >= 9, np.arange(K) < 3, np.zeros(K, bool)):
        for derivative in run(valid):
            assert np.isfinite(derivative).all()
            assert np.any(derivative) == np.any(valid)
