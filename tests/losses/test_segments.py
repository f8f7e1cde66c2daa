"""Keys in parts (a batch and a queue) are compared as if they were one array."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl import losses

B, K, L, D = 4, 11, 3, 3
PER_KEY = ("key_valid", "key_ids", "key_label_mask")

RNG = np.random.default_rng(21)
ANCHORS, KEYS = RNG.normal(size=(B, D)), RNG.normal(size=(K, D))
LABELS = RNG.integers(0, 2, (B, L)).astype(np.uint8)
KEY_LABELS = np.vstack([LABELS, RNG.integers(0, 2, (K - B, L))]).astype(np.uint8)
MASKS: dict[str, Any] = {
    "key_valid": np.arange(K) % 4 != 3,
    "key_label_mask": RNG.random((K, L)) < 0.8,
    "label_mask": RNG.random((B, L)) < 0.8,
    "where": np.arange(B) != 2,
    "anchor_ids": np.arange(B),
    "key_ids": np.array([-1, -1, -1, -1, 0, 7, 3, 3, 2, 0, 8]),
}
WITHOUT_IDS = {name: mask for name, mask in MASKS.items() if not name.endswith("ids")}


def parted(masks: dict[str, Any], *cuts: int) -> dict[str, Any]:
    """What belongs to keys as a tuple, cut at the given rows."""
    return {
        name: tuple(jnp.split(mask, cuts)) if name in PER_KEY else mask
        for name, mask in masks.items()
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("weighting", "masks"),
    [
        ("mulsupcon", {}),
        ("mulsupcon_mean", WITHOUT_IDS),
        ("mulsupcon", MASKS),
        ("any", MASKS),
        ("all", MASKS),
        ("jaccard", WITHOUT_IDS),
    ],
)
def test_parts_equal_the_whole(
    weighting: str, masks: dict[str, Any], quick_compile: dict[str, int]
) -> None:
    """Value, gradients, per-anchor values and what is measured; parts of any size, none too."""

    def found(cuts: tuple[int, ...], chunk_size: int | None) -> Any:
        def loss(z: jax.Array, k: jax.Array, **options: Any) -> Any:
            keys, key_labels, more = k, KEY_LABELS, masks
            if cuts:
                keys, key_labels = (tuple(jnp.split(x, cuts)) for x in (k, KEY_LABELS))
                more = parted(masks, *cuts)
            return losses.multi_positive_infonce(
                z,
                keys,
                LABELS,
                key_labels,
                temperature=0.4,
                weighting=weighting,
                chunk_size=chunk_size,
                **more,
                **options,
            )

        both = jax.value_and_grad(
            lambda z, k: loss(z, k, statistics=True), argnums=(0, 1), has_aux=True
        )
        (value, measured), gradients = both(ANCHORS, KEYS)
        return (value, gradients, loss(ANCHORS, KEYS, reduce=False)), measured

    forms = (((B,), 3), ((2, 2, 9), 4), ((B,), None))
    (whole, measured), *others = jax.jit(
        lambda: [found((), None), *(found(*form) for form in forms)],
        compiler_options=quick_compile,
    )()
    for form, (parts, of_parts) in zip(forms, others, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), parts, whole)
        # Each anchor's own key is known where the first part has one for each.
        own = {"alignment", "in_batch_top1"} if form[0] == (B,) else set()
        assert set(of_parts) == set(measured) | own
        for name, figure in measured.items():
            np.testing.assert_allclose(of_parts[name], figure, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_short_queue_beside_a_wide_batch(
    chunk_size: int | None, quick_compile: dict[str, int]
) -> None:
    """Each part keeps its type: sums are in float32, gradients in the type of their keys."""
    batch = KEYS[:B].astype(np.float32)
    queue = jnp.asarray(KEYS[B:], jnp.bfloat16)
    wide = np.asarray(queue, np.float32)

    def loss(z: jax.Array, batch: jax.Array, queue: jax.Array) -> jax.Array:
        return losses.multi_positive_infonce(
            z, (batch, queue), LABELS, (KEY_LABELS[:B], KEY_LABELS[B:]), chunk_size=chunk_size
        )

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), compiler_options=quick_compile)
    anchors = ANCHORS.astype(np.float32)
    value, gradients = both(anchors, batch, queue)
    expected, wide_gradients = both(anchors, batch, wide)
    assert value.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [jnp.float32, jnp.float32, jnp.bfloat16]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for a, b in zip(gradients, wide_gradients, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-8, atol=1e-6)


def test_one_part_is_the_array_itself() -> None:
    one = losses.multi_positive_infonce(ANCHORS, KEYS, LABELS, KEY_LABELS)
    same = losses.multi_positive_infonce(ANCHORS, (KEYS,), LABELS, (KEY_LABELS,))
    np.testing.assert_array_equal(one, same)


BATCH, QUEUE = KEYS[:B], KEYS[B:]
BOTH = {"keys": (BATCH, QUEUE), "key_labels": (KEY_LABELS[:B], KEY_LABELS[B:])}
ONE = {"keys": KEYS, "key_labels": KEY_LABELS}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (BOTH | {"keys": (BATCH, QUEUE[:, :2])}, r"keys\[1\] has shape \[7, 2\]; .* D = 3"),
        (BOTH | {"keys": (BATCH, QUEUE[0])}, r"keys\[1\] has shape \[3\]; expected \[K, D\]"),
        (BOTH | {"keys": [BATCH, QUEUE]}, r"keys is a list of 2; expected one array, or a tuple"),
        (BOTH | {"keys": ()}, r"keys has shape \[0\]; expected \[K, D\]"),
        (BOTH | {"keys": (BATCH, QUEUE.astype(int))}, r"keys\[1\] is int\d+ \[7, 3\]; .* floating"),
        (BOTH | {"key_labels": KEY_LABELS}, r"key_labels has shape \[11, 3\]; .* a tuple of 2"),
        (BOTH | {"key_labels": (KEY_LABELS,)}, r"key_labels is a tuple of 1; .* a tuple of 2"),
        (
            BOTH | {"key_labels": (KEY_LABELS[:B], KEY_LABELS)},
            r"key_labels\[1\] has shape \[11, 3\]; expected \[K, L\] with K = 7, L = 3",
        ),
        (
            BOTH | {"key_labels": (LABELS[:, :2],) * 2},
            r"key_labels\[0\] has shape \[4, 2\]; .* L = 3",
        ),
        (BOTH | {"key_valid": np.ones(K)}, r"key_valid has shape \[11\]; .* a tuple of 2"),
        (BOTH | {"key_valid": (None, np.ones(4))}, r"key_valid\[1\] has shape \[4\]; .* K = 7"),
        (
            BOTH | {"key_label_mask": (np.ones((B, 1)), None)},
            r"key_label_mask\[0\] has shape \[4, 1\]; expected \[K, L\] with K = 4, L = 3",
        ),
        (
            BOTH | {"anchor_ids": np.arange(B), "key_ids": (None, np.arange(7))},
            r"key_ids\[0\] is None; expected \[K\] with K = 4",
        ),
        (BOTH | {"key_ids": (np.arange(B), np.arange(7))}, r"anchor_ids is None; expected both"),
        (
            ONE | {"key_labels": BOTH["key_labels"]},
            r"key_labels is a tuple of 2; expected one array",
        ),
        (
            ONE | {"key_valid": (np.ones(B), np.ones(7))},
            r"key_valid is a tuple of 2; expected one array",
        ),
    ],
)
def test_parts_that_do_not_fit(given: dict[str, Any], message: str, traced: bool) -> None:
    """Named by argument and part, while tracing as well."""

    def loss(given: dict[str, Any]) -> jax.Array:
        return losses.multi_positive_infonce(anchors=ANCHORS, anchor_labels=LABELS, **given)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(loss, given) if traced else loss(given)


def test_values_that_do_not_fit_name_their_part() -> None:
    spoiled = KEY_LABELS[B:] * 2
    with pytest.raises(
        ValueError, match=r"key_labels\[1\] \[7, 3\] has 2 at \[\d, \d\]; .* \[0, 1\]"
    ):
        losses.multi_positive_infonce(ANCHORS, (BATCH, QUEUE), LABELS, (KEY_LABELS[:B], spoiled))
    # What is not there is not looked at.
    valid = (None, ~spoiled.any(1))
    losses.multi_positive_infonce(
        ANCHORS, (BATCH, QUEUE), LABELS, (KEY_LABELS[:B], spoiled), key_valid=valid
    )
