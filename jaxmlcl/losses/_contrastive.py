"""Multi-positive InfoNCE: one loss, and the weightings of its pairs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._common import (
    accumulation_dtype,
    check_floating,
    check_number,
    check_shape,
    divide,
    dot,
)
from ._weighting import (
    FACTORISED,
    Anchors,
    Keys,
    allowed_pairs,
    check_and_blank,
    fold,
    positive_pairs,
)


def normalize(x: ArrayLike, *, axis: int = -1, epsilon: float = 1e-12) -> jax.Array:
    """Scale vectors to unit L2 norm: x / ||x||.

    The norm is computed in at least float32. A vector not longer than `epsilon` has no direction:
    it becomes zero and passes zero gradient, so that one dead embedding cannot blow up a step.

    Args:
        x: vectors along `axis`, any shape.
        axis: the axis whose norm becomes 1.
        epsilon: length up to which a vector counts as zero.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        ValueError: `x` is not floating point.

    Example:
        >>> normalize(jax.numpy.array([[3.0, 4.0], [0.0, 0.0]]))
        Array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)
    """
    x = jnp.asarray(x)
    check_floating("x", x)
    wide = x.astype(accumulation_dtype(x))
    squared = jnp.square(wide).sum(axis, keepdims=True)
    short = squared <= epsilon**2
    unit = wide * jax.lax.rsqrt(jnp.where(short, 1, squared))
    return jnp.where(short, 0, unit).astype(x.dtype)


def class_sums(
    keys: ArrayLike, key_labels: ArrayLike, *, key_valid: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """Sum of the keys, and number of keys, of each label: (Y^T K, sum_p Y_pj).

    What `multi_positive_infonce` takes as `class_sums` when the caller already has it, from a
    queue that carries its sums along, for instance.

    Args:
        keys: [K, D].
        key_labels: [K, L], in [0, 1].
        key_valid: [K], False for keys that are not there.

    Returns:
        sums [L, D] and counts [L], in at least float32.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> class_sums([[1.0, 0.0], [0.0, 1.0]], [[1, 0], [1, 1]])[0]
        Array([[1., 1.],
               [0., 1.]], dtype=float32)
    """
    keys = jnp.asarray(keys)
    check_shape("keys", keys.shape, {"K": None, "D": None})
    check_floating("keys", keys)
    check_shape("key_labels", np.shape(key_labels), {"K": keys.shape[0], "L": None})
    dtype = accumulation_dtype(keys)
    _, of_keys = check_and_blank(
        jnp.zeros((0, np.shape(key_labels)[1])), key_labels, key_valid=key_valid, dtype=dtype
    )
    return _class_sums(_blank(keys.astype(dtype), of_keys.valid), of_keys.labels)


def _blank(rows: jax.Array, kept: jax.Array | None) -> jax.Array:
    return rows if kept is None else jnp.where(kept[:, None], rows, 0)


def _class_sums(embeddings: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return dot(labels.T, embeddings), labels.sum(0)


class _Walk(NamedTuple):
    """What the keys seen so far give each anchor, all [B]."""

    maximum: jax.Array  # of the scores; -inf before the first key that is allowed
    total: jax.Array  # sum of exp(score - maximum)
    weight: jax.Array  # sum of W
    weighted: jax.Array  # sum of W * score
    positives: jax.Array  # number of positives


def _finite(maximum: jax.Array) -> jax.Array:
    return jnp.where(maximum == -jnp.inf, 0, maximum)


def _combine(a: _Walk, b: _Walk) -> _Walk:
    maximum = jnp.maximum(a.maximum, b.maximum)
    shift = _finite(maximum)
    total = a.total * jnp.exp(a.maximum - shift) + b.total * jnp.exp(b.maximum - shift)
    return _Walk(
        maximum,
        total,
        a.weight + b.weight,
        a.weighted + b.weighted,
        a.positives + b.positives,
    )


def _log_sum_exp(walk: _Walk) -> jax.Array:
    """Log of the denominator; 0 for an anchor without keys. NaN stays NaN."""
    empty = walk.maximum == -jnp.inf
    return jnp.where(empty, 0, jnp.log(jnp.where(empty, 1, walk.total)) + _finite(walk.maximum))


def multi_positive_infonce(
    anchors: ArrayLike,
    keys: ArrayLike,
    anchor_labels: ArrayLike,
    key_labels: ArrayLike,
    *,
    weighting: str = "mulsupcon",
    temperature: ArrayLike = 0.1,
    key_valid: ArrayLike | None = None,
    anchor_ids: ArrayLike | None = None,
    key_ids: ArrayLike | None = None,
    label_mask: ArrayLike | None = None,
    key_label_mask: ArrayLike | None = None,
    threshold: float = 0.5,
    chunk_size: int | None = None,
    class_sums: tuple[ArrayLike, ArrayLike] | None = None,
    empty_matches_empty: bool = True,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Multi-label contrastive loss of anchors against keys.

    For anchor z_i, keys k_p and scores s_ip = z_i . k_p / temperature:

        loss_i = sum_p W_ip (lse_i - s_ip) / n_i,     lse_i = log sum_p exp(s_ip)

    Embeddings are taken as given; callers normalise. The weighting says what W, n_i and the
    reduction are (y: labels of the anchor, c_j: number of keys that carry label j, P_i: positives
    of the anchor, B: anchors that `where` keeps):

    ================ ============================== ======= ====================== ==============
    weighting        W_ip                           n_i     reduced value          no positive
    ================ ============================== ======= ====================== ==============
    `mulsupcon`      sum_j y_ij y_pj / c_j          1       sum_i / sum_i |y_i|    adds nothing
    `mulsupcon_mean` sum_j y_ij y_pj / c_j          |y_i|   sum_i / B              0, counts in B
    `any`            1 if a label is shared         |P_i|   mean over anchors      left out
                                                            that have a positive
    `jaccard`        |y_i and y_p| / |y_i or y_p|,  |P_i|   mean over anchors      left out
                     if >= threshold                        that have a positive
    `all`            1 if the labels are equal      |P_i|   sum_i / B              0, counts in B
    ================ ============================== ======= ====================== ==============

    The `mulsupcon` weightings never build W unless ids exclude pairs: with class sums M_j =
    sum_p y_pj k_p / c_j the positive term is z_i . sum_j y_ij M_j. They also take label
    distributions (values in [0, 1]) for anchors and keys; a label that no key carries adds
    nothing. `any` counts every label above 0; `all` and `jaccard` need labels that are 0 or 1.

    Masks act on value and gradient as if what they leave out were not there: whatever stands in a
    masked place (NaN included) has no effect. NaN anywhere else makes the loss NaN. When nothing
    is left to compare, the loss is 0 with zero gradient.

    Sums, softmax and scores are in at least float32, at full precision also where an accelerator
    would use a shorter format. Gradients flow to anchors and keys; use `jax.lax.stop_gradient` on
    keys that must not have one. It can be jitted, differentiated in both modes, vmapped and
    sharded.

    Args:
        anchors: [B, D] embeddings the loss rows are about.
        keys: [K, D] embeddings they are compared with.
        anchor_labels: [B, L] in [0, 1].
        key_labels: [K, L] in [0, 1].
        weighting: `all`, `any`, `mulsupcon`, `mulsupcon_mean` or `jaccard`.
        temperature: scale of the scores, > 0.
        key_valid: [K], False for keys that are not there (a queue that is partly filled).
        anchor_ids: [B] sample ids. Pairs with equal ids leave the positives, the counts c_j that
            this anchor sees, and the denominator. Negative ids match nothing: keys of the batch get
            -1, so that the anchor's own key stays a positive. None: nothing is left out.
        key_ids: [K] sample ids; given together with `anchor_ids`.
        label_mask: [B, L], False for unknown labels of an anchor, which then count as not
            present: in the positives, in |y_i| and, without `key_label_mask`, in the label set
            that `all` and `jaccard` compare.
        key_label_mask: [K, L], False for unknown labels of a key, which then count as not present:
            the key is no positive for them and not among the c_j. Given, `all` and `jaccard`
            compare each pair on the labels known to both, and a pair without any is no positive.
            None: every label of the keys is known, or has been zeroed by the caller.
        threshold: least Jaccard index of a positive, in [0, 1]; only `jaccard` uses it.
        chunk_size: keys scored at a time, so that no [B, K] array is kept, in the backward pass
            neither; None for all at once. The value does not depend on it beyond rounding.
        class_sums: (sums [L, D], counts [L]) over exactly the valid keys, as `losses.class_sums`
            returns them, for callers that keep them up to date; the positive term then
            differentiates into them instead of into `keys`. For the `mulsupcon` weightings only.
            With ids each anchor sees sums of its own: they are computed from the keys, and the
            given ones are not used.
        empty_matches_empty: whether `all` and `jaccard` take two empty label sets as equal.
        where: [B], False for anchors to leave out.
        reduce: False for the per-anchor values instead of the reduced one.

    Returns:
        Scalar; with `reduce=False` loss_i [B], which the column "reduced value" combines (0 for
        anchors that are left out).

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape. Labels are
            checked where their values are known, that is outside of jit.

    Example:
        >>> anchors = normalize(jax.numpy.array([[1.0, 0.0], [1.0, 1.0]]))
        >>> keys = normalize(jax.numpy.array([[2.0, 1.0], [1.0, -1.0], [0.0, 1.0]]))
        >>> labels = [[1, 1, 0], [0, 1, 0]]
        >>> key_labels = [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
        >>> loss = multi_positive_infonce(anchors, keys, labels, key_labels, temperature=0.5)
        >>> print(f"{loss:.6f}")
        0.980202

    Source: MulSupCon, AAAI 2024, eq. 4-6 (`mulsupcon`, `mulsupcon_mean`, `all`, `any`); `jaccard`
    is MultiSupConLoss of pytorch-metric-learning.
    """
    anchors, keys = jnp.asarray(anchors), jnp.asarray(keys)
    check_shape("anchors", anchors.shape, {"B": None, "D": None})
    check_shape("keys", keys.shape, {"K": None, "D": anchors.shape[1]})
    check_floating("anchors", anchors)
    check_floating("keys", keys)
    check_number("temperature", temperature, minimum=0, strict=True)
    dtype = accumulation_dtype(anchors, keys)
    of_anchors, of_keys = check_and_blank(
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
        dtype=dtype,
    )
    check_shape("anchor_labels", of_anchors.labels.shape, {"B": anchors.shape[0], "L": None})
    check_shape("key_labels", of_keys.labels.shape, {"K": keys.shape[0], "L": None})
    z = jnp.where(of_anchors.kept[:, None], anchors.astype(dtype), 0)
    z = z / jnp.asarray(temperature, dtype)
    k = _blank(keys.astype(dtype), of_keys.valid)
    labels = of_anchors.labels
    given = None if class_sums is None else _checked(class_sums, weighting, labels, z)

    factorised = weighting in FACTORISED and of_anchors.ids is None
    label_weights = None
    if weighting in FACTORISED and not factorised:
        label_weights = _label_weights(of_anchors, of_keys, chunk_size)

    def score(chunk: tuple[jax.Array, Keys]) -> _Walk:
        embeddings, chunk_keys = chunk
        scores = dot(z, embeddings.T)
        allowed = allowed_pairs(of_anchors, chunk_keys)
        kept = jnp.where(allowed, scores, -jnp.inf)
        maximum = jax.lax.stop_gradient(kept.max(-1, initial=-jnp.inf))
        total = jnp.exp(kept - _finite(maximum)[:, None]).sum(-1)
        if factorised:
            nothing = jnp.zeros_like(total)
            return _Walk(maximum, total, nothing, nothing, nothing)
        weights, positive = positive_pairs(
            of_anchors,
            chunk_keys,
            allowed,
            weighting=weighting,
            threshold=threshold,
            empty_matches_empty=empty_matches_empty,
            label_weights=label_weights,
        )
        weighted = (weights * scores).sum(-1)
        return _Walk(maximum, total, weights.sum(-1), weighted, positive.sum(-1, dtype=dtype))

    walk = fold(score, _combine, (k, of_keys), k.shape[0], chunk_size)
    if factorised:
        sums, counts = _class_sums(k, of_keys.labels) if given is None else given
        means = dot(_per_key(labels, counts), sums)
        # Row sums of W are the labels that some key carries.
        carried = jnp.where(counts == 0, 0, labels).sum(-1)
        walk = walk._replace(weight=carried, weighted=(z * means).sum(-1))
    values = walk.weight * _log_sum_exp(walk) - walk.weighted
    return _reduced(values, walk.positives, of_anchors, weighting, reduce)


def _checked(
    class_sums: tuple[ArrayLike, ArrayLike], weighting: str, labels: jax.Array, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The caller's class sums, refused where they do not fit."""
    if weighting not in FACTORISED:
        raise ValueError(
            f"class_sums is given with weighting {weighting!r}, which does not factorise over "
            f"labels; expected None, or weighting {' or '.join(FACTORISED)}"
        )
    sums, counts = (jnp.asarray(x) for x in class_sums)
    check_shape("class_sums[0]", sums.shape, {"L": labels.shape[1], "D": z.shape[1]})
    check_shape("class_sums[1]", counts.shape, {"L": labels.shape[1]})
    return sums.astype(z.dtype), counts.astype(z.dtype)


def _per_key(labels: jax.Array, counts: jax.Array) -> jax.Array:
    """y_ij / c_j, and 0 for a label that no key carries."""
    return jnp.where(counts == 0, 0, divide(labels, counts))


def _label_weights(anchors: Anchors, keys: Keys, chunk_size: int | None) -> jax.Array:
    """y_ij / c_ij [B, L], with the counts c_ij that are left when ids exclude pairs."""

    def count(chunk: Keys) -> jax.Array:
        return dot(allowed_pairs(anchors, chunk).astype(chunk.labels.dtype), chunk.labels)

    counts = fold(count, jnp.add, keys, keys.labels.shape[0], chunk_size)
    return _per_key(anchors.labels, counts)


def _reduced(
    values: jax.Array, positives: jax.Array, anchors: Anchors, weighting: str, reduce: bool
) -> jax.Array:
    """Divide by what the weighting divides by; `values` are sum_p W (lse - s), [B]."""
    sizes = anchors.labels.sum(-1)
    if weighting == "mulsupcon_mean":
        values = divide(values, sizes)
    elif weighting != "mulsupcon":
        values = divide(values, positives)
    values = jnp.where(anchors.kept, values, 0)
    if not reduce:
        return values
    if weighting == "mulsupcon":
        normaliser = sizes.sum()
    elif weighting in ("any", "jaccard"):
        normaliser = (anchors.kept & (positives > 0)).sum(dtype=values.dtype)
    else:
        normaliser = anchors.kept.sum(dtype=values.dtype)
    return divide(values.sum(), normaliser)
