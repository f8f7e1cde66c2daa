"""From labels to the weight of each pair of anchor and key."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._common import check_choice, check_labels, check_number, check_shape, divide, dot

WEIGHTINGS = ("all", "any", "mulsupcon", "mulsupcon_mean", "jaccard")
FACTORISED = ("mulsupcon", "mulsupcon_mean")
LOGICAL = ("all", "jaccard")  # these compare label sets, which degrees in (0, 1) are not


class Keys(NamedTuple):
    """Labels and masks of the keys; those of invalid keys are zeroed."""

    labels: jax.Array  # [K, L]
    valid: jax.Array | None  # [K]
    ids: jax.Array | None  # [K]
    known: jax.Array | None  # [K, L], 1 where the label is known


class Anchors(NamedTuple):
    """Labels and masks of the anchors; dropped rows and unknown labels are zeroed."""

    labels: jax.Array  # [B, L]
    kept: jax.Array  # [B]
    ids: jax.Array | None  # [B]
    known: jax.Array | None  # [B, L], as that of the keys; given where theirs is


def check_and_blank(
    anchor_labels: ArrayLike,
    key_labels: ArrayLike,
    *,
    dtype: Any,
    weighting: str = "mulsupcon",
    key_valid: ArrayLike | None = None,
    anchor_ids: ArrayLike | None = None,
    key_ids: ArrayLike | None = None,
    label_mask: ArrayLike | None = None,
    key_label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    threshold: float = 0.5,
    chunk_size: int | None = None,
) -> tuple[Anchors, Keys]:
    """Check everything but the embeddings and blank what the masks leave out."""
    check_choice("weighting", weighting, WEIGHTINGS)
    check_number("threshold", threshold, minimum=0, maximum=1)
    if chunk_size is not None:
        check_chunk_size(chunk_size)
    check_shape("anchor_labels", np.shape(anchor_labels), {"B": None, "L": None})
    num_anchors, num_labels = np.shape(anchor_labels)
    check_shape("key_labels", np.shape(key_labels), {"K": None, "L": num_labels})
    num_keys = np.shape(key_labels)[0]
    for argument, array, expected in (
        ("key_valid", key_valid, {"K": num_keys}),
        ("anchor_ids", anchor_ids, {"B": num_anchors}),
        ("key_ids", key_ids, {"K": num_keys}),
        ("label_mask", label_mask, {"B": num_anchors, "L": num_labels}),
        ("key_label_mask", key_label_mask, {"K": num_keys, "L": num_labels}),
        ("where", where, {"B": num_anchors}),
    ):
        if array is not None:
            check_shape(argument, np.shape(array), dict(expected))
    if (anchor_ids is None) != (key_ids is None):
        missing = "anchor_ids" if anchor_ids is None else "key_ids"
        raise ValueError(f"{missing} is None; expected both anchor_ids and key_ids, or neither")

    valid = None if key_valid is None else jnp.asarray(key_valid, bool)
    kept = jnp.ones(num_anchors, bool) if where is None else jnp.asarray(where, bool)
    known = kept[:, None]
    if label_mask is not None:
        known &= jnp.asarray(label_mask, bool)
    binary = weighting in LOGICAL
    masked = label_mask is not None or where is not None
    check_labels("anchor_labels", anchor_labels, known if masked else None, binary=binary)
    key_known = None if valid is None else valid[:, None]
    if key_label_mask is not None:
        mask = jnp.asarray(key_label_mask, bool)
        key_known = mask if key_known is None else mask & key_known
    check_labels("key_labels", key_labels, key_known, binary=binary)
    of_anchors = jnp.where(known, jnp.asarray(anchor_labels, dtype), 0)
    of_keys = jnp.asarray(key_labels, dtype)
    if key_known is not None:
        of_keys = jnp.where(key_known, of_keys, 0)
    # Only the weightings that compare sets look at which labels are known; to the others a label
    # that is unknown is a 0.
    anchor_compared = key_compared = None
    if key_label_mask is not None and binary:
        anchor_compared = jnp.broadcast_to(known, of_anchors.shape).astype(dtype)
        key_compared = jnp.asarray(key_known, dtype)
    own_ids, ids = (None if x is None else jnp.asarray(x) for x in (anchor_ids, key_ids))
    return (
        Anchors(of_anchors, kept, own_ids, anchor_compared),
        Keys(of_keys, valid, ids, key_compared),
    )


def check_chunk_size(chunk_size: int) -> None:
    """Refuse anything but a positive whole number."""
    # NumPy's whole numbers are registered as Integral.
    whole = isinstance(chunk_size, numbers.Integral) and not isinstance(chunk_size, bool)
    if not whole or chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size!r}; expected a whole number of keys >= 1")


def allowed_pairs(anchors: Anchors, keys: Keys) -> jax.Array:
    """True where a pair takes part at all: [B, K], or [1, K] without ids."""
    num_keys = keys.labels.shape[0]
    allowed = jnp.ones((1, num_keys), bool) if keys.valid is None else keys.valid[None, :]
    if anchors.ids is None or keys.ids is None:
        return allowed
    same = (anchors.ids[:, None] == keys.ids[None, :]) & (keys.ids >= 0)[None, :]
    return allowed & ~same


def positive_pairs(
    anchors: Anchors,
    keys: Keys,
    allowed: jax.Array,
    *,
    weighting: str,
    threshold: float,
    empty_matches_empty: bool,
    label_weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weights [B, K] and positives [B, K] (bool) of the given anchors and keys.

    `label_weights` [B, L] is y_ij / c_ij, which the weights of `mulsupcon` are made of; without it
    they are left at 1, which is enough to know the positives.
    """
    shared = dot(anchors.labels, keys.labels.T)
    if anchors.known is None or keys.known is None:
        sizes, key_sizes = anchors.labels.sum(-1)[:, None], keys.labels.sum(-1)[None, :]
    else:
        # The sizes of both label sets among the labels known to both; pairs without any are out.
        sizes, key_sizes = dot(anchors.labels, keys.known.T), dot(anchors.known, keys.labels.T)
        allowed &= dot(anchors.known, keys.known.T) > 0
    if weighting == "all":
        positive = (shared == sizes) & (shared == key_sizes)
        if not empty_matches_empty:
            positive &= shared > 0
        weights = jnp.ones_like(shared)
    elif weighting == "jaccard":
        union = sizes + key_sizes - shared
        of_two_empty = 1.0 if empty_matches_empty else 0.0
        weights = jnp.where(union > 0, divide(shared, union), of_two_empty)
        positive = weights >= threshold
        if not empty_matches_empty:
            positive &= union > 0
    else:
        positive = shared > 0
        weights = jnp.ones_like(shared)
        if label_weights is not None:
            weights = dot(label_weights, keys.labels.T)
    positive &= allowed
    return jnp.where(positive, weights, 0), positive


def fold(
    step: Callable[[Any], Any],
    combine: Callable[[Any, Any], Any],
    keys: Any,
    num_keys: int,
    chunk_size: int | None,
) -> Any:
    """Combine `step` over the keys, a pytree of [K, ...]: all at once or `chunk_size` at a time.

    The first chunk starts the carry and a ragged tail is one more static call, so nothing is
    padded. `step` is recomputed in the backward pass: what is kept does not grow as B x K.
    """
    if chunk_size is None or chunk_size >= num_keys:
        return step(keys)
    step = jax.checkpoint(step)
    chunk_size = operator.index(chunk_size)
    whole = num_keys // chunk_size
    carry = step(jax.tree.map(lambda x: x[:chunk_size], keys))
    if whole > 1:
        chunks = jax.tree.map(
            lambda x: x[chunk_size : whole * chunk_size].reshape(
                whole - 1, chunk_size, *x.shape[1:]
            ),
            keys,
        )
        carry, _ = jax.lax.scan(
            lambda carry, chunk: (combine(carry, step(chunk)), None), carry, chunks
        )
    if num_keys % chunk_size:
        carry = combine(carry, step(jax.tree.map(lambda x: x[whole * chunk_size :], keys)))
    return carry


def pair_statistics(
    anchor_labels: ArrayLike,
    key_labels: ArrayLike,
    *,
    weighting: str = "mulsupcon",
    key_valid: ArrayLike | None = None,
    anchor_ids: ArrayLike | None = None,
    key_ids: ArrayLike | None = None,
    label_mask: ArrayLike | None = None,
    key_label_mask: ArrayLike | None = None,
    threshold: float = 0.5,
    empty_matches_empty: bool = True,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
) -> dict[str, jax.Array]:
    """How many positives the anchors of `multi_positive_infonce` have.

    A pair is positive where the anchor and the key share a label (`any`, `mulsupcon`,
    `mulsupcon_mean`), have the same labels (`all`), or have a Jaccard index of at least
    `threshold` (`jaccard`). Arguments are those of `multi_positive_infonce`.

    Args:
        anchor_labels: [B, L].
        key_labels: [K, L].
        weighting: one of `all`, `any`, `mulsupcon`, `mulsupcon_mean`, `jaccard`.
        key_valid: [K], False for keys that are not there.
        anchor_ids: [B] sample ids; pairs with equal ids are left out, negative ids match nothing.
        key_ids: [K] sample ids.
        label_mask: [B, L], False for unknown labels of an anchor.
        key_label_mask: [K, L], the same for keys.
        threshold: least Jaccard index of a positive, in [0, 1].
        empty_matches_empty: whether `all` and `jaccard` pair two empty label sets.
        where: [B], False for anchors to leave out.
        chunk_size: keys looked at a time; None for all at once.

    Returns:
        `positives_per_anchor`: positives of an anchor, mean over the labelled anchors;
        `valid_anchor_fraction`: share of the anchors that have a positive. Float32 scalars.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> statistics = pair_statistics([[1, 1], [0, 0]], [[1, 0], [0, 1], [0, 0]])
        >>> {name: float(value) for name, value in statistics.items()}
        {'positives_per_anchor': 2.0, 'valid_anchor_fraction': 0.5}
    """
    anchors, keys = check_and_blank(
        anchor_labels,
        key_labels,
        weighting=weighting,
        key_valid=key_valid,
        anchor_ids=anchor_ids,
        key_ids=key_ids,
        label_mask=label_mask,
        key_label_mask=key_label_mask,
        where=where,
        threshold=threshold,
        chunk_size=chunk_size,
        dtype=jnp.float32,
    )

    def count(chunk: Keys) -> jax.Array:
        _, positive = positive_pairs(
            anchors,
            chunk,
            allowed_pairs(anchors, chunk),
            weighting=weighting,
            threshold=threshold,
            empty_matches_empty=empty_matches_empty,
        )
        return positive.sum(-1, dtype=jnp.float32)

    positives = fold(count, jnp.add, keys, keys.labels.shape[0], chunk_size)
    labelled = (anchors.labels > 0).any(-1)
    return {
        "positives_per_anchor": divide(
            jnp.where(labelled, positives, 0).sum(), labelled.sum(dtype=jnp.float32)
        ),
        "valid_anchor_fraction": divide(
            (anchors.kept & (positives > 0)).sum(dtype=jnp.float32),
            anchors.kept.sum(dtype=jnp.float32),
        ),
    }
