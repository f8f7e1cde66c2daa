"""From labels to the weight of each pair of anchor and key."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._common import check_choice, check_labels, check_number, check_shape, divide, dot

WEIGHTINGS = ("all", "any", "mulsupcon", "mulsupcon_mean", "jaccard")
FACTORISED = ("mulsupcon", "mulsupcon_mean")
LOGICAL = ("all", "jaccard")  # these compare label sets, which degrees in (0, 1) are not


# An array, or None where the case at hand has none.
Maybe = Any


class Keys(NamedTuple):
    """Keys as they were given, [K, ...]; `known_key_labels` and the walk blank what is masked."""

    embeddings: Maybe
    """[K, D]"""
    labels: Maybe
    """[K, L], of any type"""
    valid: Maybe = None
    """[K] bool"""
    ids: Maybe = None
    """[K]"""
    known: Maybe = None
    """[K, L] bool, True where the label is known"""


class Anchors(NamedTuple):
    """Anchors with labels and masks, [B, ...]; dropped rows and unknown labels are zeroed."""

    embeddings: Maybe
    """[B, D], divided by the temperature"""
    labels: Maybe
    """[B, L]"""
    kept: Maybe = None
    """[B] bool"""
    ids: Maybe = None
    """[B]"""
    known: Maybe = None
    """[B, L] bool; given where that of the keys is and the weighting compares sets of labels"""
    threshold: Maybe = None
    """Scalar, least Jaccard index"""
    label_weights: Maybe = None
    """[B, L] y_ij / c_ij, which `mulsupcon`'s weights of pairs are made of"""
    label_counts: Maybe = None
    """[B, L] or [L] c_ij"""


def segmented(value: Any, segments: int | None, argument: str) -> tuple[Any, ...]:
    """A per-key argument as a tuple, one entry for each segment; None segments: one array.

    Example:
        >>> segmented(None, 2, "key_ids")
        (None, None)
    """
    if segments is None:
        shape_of(argument, value)
        return (value,)
    if value is None:
        return (None,) * segments
    if not isinstance(value, tuple) or len(value) != segments:
        if isinstance(value, tuple):
            have = f"is a tuple of {len(value)}"
        else:
            have = f"has shape {list(shape_of(argument, value))}"
        raise ValueError(
            f"{argument} {have}; expected a tuple of {segments}, one entry for each array of keys"
        )
    return value


def shape_of(argument: str, value: Any) -> tuple[int, ...]:
    """Shape of what should be one array; arrays that make none together are refused."""
    try:
        return np.shape(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument} is a {type(value).__name__} of {len(value)}; expected one array, or a "
            "tuple of arrays for each argument of the keys"
        ) from None


def is_segmented(keys: Any) -> bool:
    """Whether keys are given as a tuple of segments, and not as one array."""
    return isinstance(keys, tuple) and any(np.ndim(part) >= 2 for part in keys)


def check_and_mask(
    anchor_labels: ArrayLike,
    key_labels: Any,
    *,
    dtype: Any,
    weighting: str = "mulsupcon",
    key_valid: Any = None,
    anchor_ids: ArrayLike | None = None,
    key_ids: Any = None,
    label_mask: ArrayLike | None = None,
    key_label_mask: Any = None,
    where: ArrayLike | None = None,
    threshold: ArrayLike = 0.5,
    chunk_size: int | None = None,
    num_anchors: int | None = None,
    num_keys: tuple[int, ...] | None = None,
    several: bool = False,
) -> tuple[Anchors, tuple[Keys, ...]]:
    """Check everything but the embeddings; blank the anchors' side, which is small.

    With `several` the arguments of keys are tuples, one entry for each segment.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    check_number("threshold", threshold, minimum=0, maximum=1)
    if chunk_size is not None:
        check_chunk_size(chunk_size)
    shape = shape_of("anchor_labels", anchor_labels)
    check_shape("anchor_labels", shape, {"B": num_anchors, "L": None})
    size, num_labels = np.shape(anchor_labels)
    for argument, array, expected in (
        ("anchor_ids", anchor_ids, {"B": size}),
        ("label_mask", label_mask, {"B": size, "L": num_labels}),
        ("where", where, {"B": size}),
    ):
        if array is not None:
            check_shape(argument, shape_of(argument, array), dict(expected))
    if (anchor_ids is None) != (key_ids is None):
        missing = "anchor_ids" if anchor_ids is None else "key_ids"
        raise ValueError(f"{missing} is None; expected both anchor_ids and key_ids, or neither")
    kept = None if where is None else jnp.asarray(where, bool)
    known = None if kept is None else kept[:, None]
    if label_mask is not None:
        mask = jnp.asarray(label_mask, bool)
        known = mask if known is None else known & mask
    binary = weighting in LOGICAL
    check_labels("anchor_labels", anchor_labels, known, binary=binary)
    of_anchors = jnp.asarray(anchor_labels).astype(dtype)
    if known is not None:
        of_anchors = jnp.where(known, of_anchors, 0)

    segments = len(num_keys) if several and num_keys is not None else None
    parts = []
    for number, labels in enumerate(segmented(key_labels, segments, "key_labels")):
        mark = f"[{number}]" if several else ""
        expected_keys = None if num_keys is None else num_keys[number]
        check_shape(f"key_labels{mark}", np.shape(labels), {"K": expected_keys, "L": num_labels})
        count = np.shape(labels)[0]
        masks = {}
        for argument, value, expected in (
            ("key_valid", key_valid, {"K": count}),
            ("key_ids", key_ids, {"K": count}),
            ("key_label_mask", key_label_mask, {"K": count, "L": num_labels}),
        ):
            array = segmented(value, segments, argument)[number]
            if array is not None:
                name = f"{argument}{mark}"
                check_shape(name, shape_of(name, array), dict(expected))
            masks[argument] = array
        if (anchor_ids is None) != (masks["key_ids"] is None):
            raise ValueError(f"key_ids{mark} is None; expected [K] with K = {count}")
        keys = Keys(
            None,
            jnp.asarray(labels),
            _array(masks["key_valid"], bool),
            _ids(f"key_ids{mark}", masks["key_ids"]),
            _array(masks["key_label_mask"], bool),
        )
        check_labels(f"key_labels{mark}", labels, _known(keys), binary=binary)
        parts.append(keys)
    compared = None
    if binary and any(keys.known is not None for keys in parts):
        # Only the weightings that compare sets look at which labels are known; to the others a
        # label that is unknown is a 0.
        compared = jnp.ones((1, 1), bool) if known is None else known
        compared = jnp.broadcast_to(compared, of_anchors.shape)
    own_ids = _ids("anchor_ids", anchor_ids)
    limit = jnp.asarray(threshold, dtype)
    return Anchors(None, of_anchors, kept, own_ids, compared, limit), tuple(parts)


def _ids(argument: str, value: Any) -> jax.Array | None:
    """Sample ids; what would not stay the same number in JAX's integers is refused."""
    if value is None:
        return None
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.size and not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{argument} is {array.dtype} {list(array.shape)}; expected integers")
    kept = jnp.asarray(array)
    if isinstance(array, np.ndarray) and array.size:
        limits = jnp.iinfo(kept.dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(
                f"{argument} {list(array.shape)} go from {array.min()} to {array.max()}; expected "
                f"numbers that fit {kept.dtype}"
            )
    return kept


def _array(value: Any, dtype: Any = None) -> jax.Array | None:
    return None if value is None else jnp.asarray(value, dtype)


def _known(keys: Keys) -> jax.Array | None:
    """Which labels count, [K, L] or [K, 1]; None where all do."""
    known = None if keys.valid is None else keys.valid[:, None]
    if keys.known is not None:
        known = keys.known if known is None else known & keys.known
    return known


def known_key_labels(keys: Keys, dtype: Any) -> jax.Array:
    """Labels [K, L] in the type of the sums, zero where unknown and where the key is not there."""
    labels, known = jnp.asarray(keys.labels).astype(dtype), _known(keys)
    return labels if known is None else jnp.where(known, labels, 0)


def check_chunk_size(chunk_size: int) -> None:
    """Refuse anything but a positive whole number."""
    # NumPy's whole numbers are registered as Integral.
    whole = isinstance(chunk_size, numbers.Integral) and not isinstance(chunk_size, bool)
    if not whole or chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size!r}; expected a whole number of keys >= 1")


def allowed_pairs(anchors: Anchors, keys: Keys) -> jax.Array | None:
    """True where a pair takes part at all: [B, K], [1, K] without ids, None where all do."""
    allowed = None if keys.valid is None else keys.valid[None, :]
    if anchors.ids is None or keys.ids is None:
        return allowed
    other = (anchors.ids[:, None] != keys.ids[None, :]) | (keys.ids < 0)[None, :]
    return other if allowed is None else allowed & other


def positive_pairs(
    anchors: Anchors, keys: Keys, *, weighting: str, empty_matches_empty: bool, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Weights [B, K] and positives [B, K] (bool) of the given anchors and keys.

    Without `anchors.label_weights` the weights of `mulsupcon` are left at 1, which is enough to
    know the positives.
    """
    of_keys, allowed = known_key_labels(keys, dtype), allowed_pairs(anchors, keys)
    if weighting in FACTORISED and anchors.label_weights is not None:
        # Masked by what is allowed only: a degree of 0 has a derivative.
        weights = dot(anchors.label_weights, of_keys.T)
        weights = weights if allowed is None else jnp.where(allowed, weights, 0)
        return weights, weights > 0
    labels = jnp.asarray(anchors.labels)
    shared = dot(labels, of_keys.T)
    if weighting in ("all", "jaccard"):
        sizes, key_sizes, common = _compared_sizes(anchors, keys, labels, of_keys)
        if common is not None:
            allowed = common if allowed is None else allowed & common
    weights = jnp.ones_like(shared)
    if weighting == "all":
        positive = (shared == sizes) & (shared == key_sizes)
        if not empty_matches_empty:
            positive &= shared > 0
    elif weighting == "jaccard":
        union = sizes + key_sizes - shared
        of_two_empty = 1.0 if empty_matches_empty else 0.0
        # A ratio of counts, not a function of degrees: it has no derivative.
        weights = jax.lax.stop_gradient(jnp.where(union > 0, divide(shared, union), of_two_empty))
        positive = weights >= jnp.asarray(anchors.threshold)
        if not empty_matches_empty:
            positive &= union > 0
    else:
        positive = shared > 0
    if allowed is not None:
        positive &= allowed
    return jnp.where(positive, weights, 0), positive


def _compared_sizes(
    anchors: Anchors, keys: Keys, labels: jax.Array, of_keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Sizes of both label sets among the labels known to both, and pairs that have any."""
    if anchors.known is None:
        return labels.sum(-1)[:, None], of_keys.sum(-1)[None, :], None
    mine, theirs = anchors.known.astype(labels.dtype), _known(keys)
    theirs = jnp.ones((1, 1), bool) if theirs is None else theirs
    theirs = jnp.broadcast_to(theirs, of_keys.shape).astype(labels.dtype)
    return dot(labels, theirs.T), dot(mine, of_keys.T), dot(mine, theirs.T) > 0
