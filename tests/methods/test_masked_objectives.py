"""What the objectives do with unknown labels: as with the same terms left out."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl import queue as momentum_queue
from jaxmlcl.losses import multi_positive_infonce
from jaxmlcl.methods import Classification, MulSupCon
from jaxmlcl.models import MLP, Projection
from jaxmlcl.training.objective import Batch, BatchSpec

FEATURES, LABELS, SIZE, WIDTH = 5, 3, 6, 4
ENCODER = MLP(hidden=(6,), dropout=0.0)
HEAD = Projection(width=WIDTH, dropout=0.0)
KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
KNOWN = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0]], bool)
TRUTH = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0]], bool)
QUEUE_TRUTH = GENERATOR.random((5, LABELS)) < 0.6
QUEUE_KNOWN = GENERATOR.random((5, LABELS)) < 0.6
QUEUE_KEYS = GENERATOR.normal(size=(5, WIDTH)).astype(np.float32)


def batch(views: int, known: np.ndarray | None) -> Batch:
    """Views are equal, so that equal networks give keys that equal the anchors."""
    x = np.random.default_rng(1).normal(size=(SIZE, FEATURES)).astype(np.float32)
    inputs = jnp.asarray(np.repeat(x[:, None], views, 1) if views > 1 else x)
    labels = jnp.asarray(TRUTH if known is None else TRUTH & known, jnp.float32)
    mask = None if known is None else jnp.asarray(known)
    return Batch(inputs, labels, jnp.arange(SIZE, dtype=jnp.int32), SIZE, mask)


def start(objective: Any, rows: Batch) -> tuple[Any, Any]:
    def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    mask = None if rows.label_mask is None else shape(rows.label_mask)
    spec = BatchSpec(shape(rows.inputs), shape(rows.labels), rows.step_samples, mask)
    params, state = objective.init(KEY, spec)
    return params, objective.before_step(params, state)


@pytest.mark.parametrize("weighting", ["mulsupcon", "jaccard"])
def test_mulsupcon_is_the_masked_loss_over_batch_and_queue(weighting: Any) -> None:
    rows = batch(2, KNOWN)
    objective = MulSupCon(ENCODER, HEAD, weighting, queue_capacity=8, queue_fill="partial")
    params, state = start(objective, rows)
    state = objective.after_step(state, (QUEUE_KEYS, QUEUE_TRUTH, np.arange(5), QUEUE_KNOWN))
    run = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, aux), gradients = run(params, state, rows, KEY)
    # Row 2, of which nothing is known, is a key and no anchor.
    keys, anchors = np.asarray(aux.emitted[0]), np.arange(SIZE) != 2
    pairs: dict[str, Any] = {
        "label_mask": KNOWN[anchors],
        "key_label_mask": np.concatenate([KNOWN, QUEUE_KNOWN]),
    }
    expected = multi_positive_infonce(
        keys[anchors],
        np.concatenate([keys, QUEUE_KEYS]),
        TRUTH[anchors],
        np.concatenate([TRUTH, QUEUE_TRUTH]),
        weighting=weighting,
        **pairs,
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # What the step leaves behind for the next.
    queue = objective.after_step(state, aux.emitted)["queue"]
    held = np.asarray(momentum_queue.contents(queue)[1][5:8])
    np.testing.assert_array_equal(held[KNOWN[:3]], TRUTH[:3][KNOWN[:3]])
    np.testing.assert_array_equal(momentum_queue.known_labels(queue)[5:8], KNOWN[:3])


def test_the_state_does_not_depend_on_what_is_known() -> None:
    # So that a stage can be restored for data of either kind.
    objective = MulSupCon(ENCODER, HEAD, "jaccard", queue_capacity=8)
    states = [start(objective, batch(2, known)) for known in (KNOWN, None)]
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) for state in states]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["bce", "focal", "asymmetric"])
def test_classification_learns_from_known_cells_alone(name: Any) -> None:
    objective = Classification(ENCODER, name)
    masked, full = batch(1, KNOWN), batch(1, None)
    params, state = start(objective, masked)
    run = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, _), gradient = run(params, state, masked, KEY)
    p = np.asarray(objective.scores(params, state, masked.inputs), np.float64)
    right = np.where(TRUTH, p, 1 - p)
    if name == "bce":
        assert float(loss) == pytest.approx(-np.log(right[KNOWN]).mean(), rel=1e-5)
    elif name == "focal":
        assert float(loss) == pytest.approx(
            -((1 - right) ** 2 * np.log(right))[KNOWN].mean(), rel=1e-5
        )
    # The rows of which nothing is known can hold anything, or not be there.
    rest = np.flatnonzero(KNOWN.any(1))
    fewer = Batch(
        masked.inputs[rest], masked.labels[rest], masked.ids[rest], 5, masked.label_mask[rest]
    )
    (dropped, _), without = run(params, state, fewer, KEY)
    assert float(dropped) == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    everything = dataclasses.replace(full, label_mask=jnp.ones((SIZE, LABELS), bool))
    (known, _), _ = run(params, state, everything, KEY)
    (plain, _), _ = run(params, state, full, KEY)
    assert float(known) == pytest.approx(float(plain), rel=1e-6)
    assert abs(float(plain) - float(loss)) > 1e-3
