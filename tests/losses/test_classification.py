"""Binary cross-entropy, focal and asymmetric loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.metrics import log_loss

from jaxmlcl import losses

LOSSES: dict[str, Callable[..., jax.Array]] = {
    "binary_cross_entropy": losses.binary_cross_entropy,
    "focal": losses.focal,
    "focal with alpha": lambda *a, **k: losses.focal(*a, alpha=0.25, **k),
    "asymmetric": lambda *a, **k: losses.asymmetric(*a, gradient_through_weight=True, **k),
}
RNG = np.random.default_rng(11)
LOGITS = RNG.normal(size=(5, 4)) * 3
LABELS = RNG.integers(0, 2, (5, 4)).astype(np.float64)
MASK = RNG.integers(0, 2, (5, 4)).astype(bool)
MASK[1] = False
WHERE = np.array([1, 1, 0, 1, 1], bool)


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Callable[..., jax.Array]:
    return LOSSES[request.param]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_golden(golden: dict[str, Any], dtype: str, tolerance: float) -> None:
    close = {"rtol": 0, "atol": tolerance}
    for name, function, index in (
        ("bce_mean", losses.binary_cross_entropy, (0, 0)),
        ("asl_sum", LOSSES["asymmetric"], (0, 1)),
        ("focal_mean", losses.focal, (0, 0)),
    ):
        entry = golden[name]
        labels = np.array(entry["inputs"]["Y"])
        value, grad = jax.jit(jax.value_and_grad(function))(
            jnp.asarray(entry["inputs"]["logits"], dtype), labels
        )
        assert value.dtype == dtype
        expected = entry["value"]
        if name == "focal_mean":
            with_alpha = losses.focal(
                jnp.asarray(entry["inputs"]["logits"], dtype), labels, alpha=0.25
            )
            np.testing.assert_allclose(with_alpha, expected["alpha025"], **close)
            expected = expected["no_alpha"]
        np.testing.assert_allclose(value, expected, **close)
        np.testing.assert_allclose(grad[index], entry["grad"]["value"], **close)


@pytest.mark.usefixtures("x64")
def test_binary_cross_entropy_is_log_loss() -> None:
    probabilities = 1 / (1 + np.exp(-LOGITS))
    expected = log_loss(LABELS.ravel(), probabilities.ravel())
    np.testing.assert_allclose(losses.binary_cross_entropy(LOGITS, LABELS), expected, rtol=1e-12)
    np.testing.assert_allclose(
        losses.binary_cross_entropy(LOGITS, LABELS, reduction="sum_labels"), 4 * expected
    )


@pytest.mark.usefixtures("x64")
def test_focal_and_asymmetric_contain_binary_cross_entropy() -> None:
    plain = losses.binary_cross_entropy(LOGITS, LABELS)
    np.testing.assert_allclose(losses.focal(LOGITS, LABELS, gamma=0.0), plain)
    asymmetric = losses.asymmetric(
        LOGITS, LABELS, gamma_negative=0.0, gamma_positive=0.0, clip=0.0, reduction="mean"
    )
    np.testing.assert_allclose(asymmetric, plain)


@pytest.mark.usefixtures("x64")
def test_asymmetric_by_hand() -> None:
    """sigma(0) = 1/2, so the negative has q = 0.55 and the weight 0.45^4."""
    logits, labels = np.array([[0.0, 0.0]]), np.array([[1, 0]])
    expected = 0.5 * math.log(2) - 0.45**4 * math.log(0.55)
    np.testing.assert_allclose(losses.asymmetric(logits, labels), expected)
    # Weight constant: d/dx of -w log p is -w (1 - p), of -w log(1.05 - p) is w p (1 - p) / 0.55.
    grad = jax.grad(losses.asymmetric)(logits, labels)
    np.testing.assert_allclose(grad, [[-0.5 * 0.5, 0.45**4 * 0.25 / 0.55]])
    # Weight differentiated too: - (-p (1 - p)) log p, and -4 0.45^3 p (1 - p) log 0.55.
    through = jax.grad(LOSSES["asymmetric"])(logits, labels)
    more = [0.25 * math.log(0.5), -4 * 0.45**3 * 0.25 * math.log(0.55)]
    np.testing.assert_allclose(through - grad, [more])


@pytest.mark.usefixtures("x64")
def test_negatives_within_the_margin_cost_nothing() -> None:
    far = np.array([[-3.0, -40.0]])  # sigma(-3) = 0.047 < 0.05
    for gamma in (0.0, 0.5, 4.0):
        value, grad = jax.value_and_grad(
            lambda x, g=gamma: losses.asymmetric(
                x, np.zeros((1, 2)), gamma_negative=g, gradient_through_weight=True
            )
        )(far)
        assert value == 0
        assert not grad.any()


@pytest.mark.usefixtures("x64")
def test_derivatives(loss: Callable[..., jax.Array]) -> None:
    check_grads(jax.jit(lambda x: loss(x, LABELS)), (LOGITS,), order=1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "sum_labels"])
def test_unknown_entries_and_dropped_rows(loss: Callable[..., jax.Array], reduction: str) -> None:
    """Against a loop over single entries; what is masked is NaN."""
    known = MASK & WHERE[:, None]
    logits, labels = (np.where(known, x, np.nan).astype(np.float32) for x in (LOGITS, LABELS))
    options = {"reduction": reduction, "label_mask": MASK, "where": WHERE}
    alone = jax.vmap(jax.vmap(lambda x, y: loss(x[None, None], y[None, None], reduction="sum")))
    single = np.where(known, jax.jit(alone)(LOGITS, LABELS), 0)
    sums = np.sum(single, axis=1)
    divisor = {"mean": known.sum(), "sum": 1, "sum_labels": WHERE.sum()}[reduction]
    value, grad = jax.jit(jax.value_and_grad(lambda x: loss(x, labels, **options)))(logits)
    np.testing.assert_allclose(value, sums.sum() / divisor, rtol=1e-5)
    assert not np.any(np.asarray(grad)[~known])
    assert np.isfinite(grad).all()
    rows = jax.jit(lambda x: loss(x, labels, **options, reduce=False))(logits)
    np.testing.assert_allclose(
        rows, sums / np.maximum(known.sum(1), 1) if reduction == "mean" else sums, rtol=1e-5
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "sum_labels"])
def test_nothing_known_is_zero(loss: Callable[..., jax.Array], reduction: str) -> None:
    for mask in ({"label_mask": np.zeros((5, 4))}, {"where": np.zeros(5)}):
        value, grad = jax.value_and_grad(
            lambda x, m=mask: loss(x, LABELS, reduction=reduction, **m)
        )(jnp.asarray(LOGITS))
        assert value == 0
        assert not grad.any()


def test_nan_shows_and_large_logits_are_finite(loss: Callable[..., jax.Array]) -> None:
    logits = jnp.asarray(LOGITS).at[0, 0].set(jnp.nan)
    assert np.isnan(loss(logits, LABELS))
    extreme = jnp.array([[500.0, -500.0, 500.0, -500.0]])
    value, grad = jax.value_and_grad(loss)(extreme, np.array([[1, 1, 0, 0]]))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_bfloat16_jit_and_vmap(loss: Callable[..., jax.Array]) -> None:
    rounded = jnp.asarray(LOGITS, jnp.bfloat16)
    wide = loss(rounded.astype(jnp.float32), LABELS)
    narrow = jax.jit(loss)(rounded, LABELS)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)
    stacked = jax.vmap(loss)(jnp.stack([rounded, 2 * rounded]), np.stack([LABELS, LABELS]))
    np.testing.assert_allclose(stacked[1], loss(2 * rounded, LABELS), rtol=1e-6)


def test_soft_labels_mix(loss: Callable[..., jax.Array]) -> None:
    x = np.array([[0.7]])
    zero, one = (loss(x, np.array([[y]])) for y in (0, 1))
    np.testing.assert_allclose(loss(x, np.array([[0.25]])), 0.75 * zero + 0.25 * one, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(4), np.ones(4)), r"logits has shape \[4\]; expected \[B, L\]"),
        ((np.ones((2, 4)), np.ones((4, 2))), r"labels has shape \[4, 2\]; .* with B = 2, L = 4"),
        ((np.ones((2, 4), int), np.ones((2, 4))), r"logits is int\d+ \[2, 4\]; expected floating"),
        ((np.ones((2, 4)), np.full((2, 4), 3)), r"labels \[2, 4\] has 3 at \[0, 0\]"),
    ],
)
def test_bad_arrays(
    loss: Callable[..., jax.Array], arguments: tuple[Any, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*arguments)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"reduction is 'means'; .* did you mean 'mean'"):
        losses.binary_cross_entropy(LOGITS, LABELS, reduction="means")
    with pytest.raises(ValueError, match=r"where has shape \[4\]; expected \[B\] with B = 5"):
        losses.binary_cross_entropy(LOGITS, LABELS, where=np.ones(4))
    with pytest.raises(ValueError, match=r"label_mask has shape \[5\]; expected \[B, L\]"):
        losses.binary_cross_entropy(LOGITS, LABELS, label_mask=np.ones(5))
    with pytest.raises(ValueError, match=r"gamma is -1; expected a number at least 0"):
        losses.focal(LOGITS, LABELS, gamma=-1)
    with pytest.raises(ValueError, match=r"alpha is 2.0; expected a number at least 0 and at most"):
        losses.focal(LOGITS, LABELS, alpha=2.0)
    with pytest.raises(ValueError, match=r"clip is -0.1; expected"):
        losses.asymmetric(LOGITS, LABELS, clip=-0.1)
