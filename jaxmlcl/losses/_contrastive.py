"""Contrastive losses on embeddings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._chunks import chunk_size_for, fold, take
from ._common import accumulation_dtype, check_floating, check_shape, divide, dot
from ._pairs import Keys, check_and_mask, known_key_labels, positive_pairs, shape_of
from ._problem import own_keys, prepare
from ._walk import add, embeddings_of, walk


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
    nobody = np.zeros((0, np.shape(key_labels)[1]), np.uint8)
    _, (part,) = check_and_mask(nobody, key_labels, key_valid=key_valid, dtype=dtype)
    return sum_classes(part._replace(embeddings=keys), dtype)


def sum_classes(keys: Keys, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Class sums [L, D] and counts [L] of keys that have been checked."""

    def add_up(start: Any, size: int, _: Any) -> tuple[jax.Array, jax.Array]:
        chunk = take(keys, start, size)
        labels = known_key_labels(chunk, dtype)
        return dot(labels.T, embeddings_of(chunk, dtype)), labels.sum(0)

    # As many keys at a time as if the labels were anchors.
    rows, num_labels = keys.labels.shape
    width = num_labels + keys.embeddings.shape[1]
    return fold(add_up, add, rows, chunk_size_for(num_labels, rows, per_key=width))


def multi_positive_infonce(
    anchors: ArrayLike,
    keys: ArrayLike | tuple[ArrayLike, ...],
    anchor_labels: ArrayLike,
    key_labels: ArrayLike | tuple[ArrayLike, ...],
    *,
    weighting: str = "mulsupcon",
    temperature: ArrayLike = 0.1,
    key_valid: Any = None,
    anchor_ids: ArrayLike | None = None,
    key_ids: Any = None,
    label_mask: ArrayLike | None = None,
    key_label_mask: Any = None,
    threshold: ArrayLike = 0.5,
    chunk_size: int | None = None,
    class_sums: tuple[ArrayLike, ArrayLike] | None = None,
    empty_matches_empty: bool = True,
    where: ArrayLike | None = None,
    reduce: bool = True,
    statistics: bool = False,
) -> Any:
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

    The `mulsupcon` weightings need no W: with class sums M_j = sum_p y_pj k_p / c_j the positive
    term is z_i . sum_j y_ij M_j. They also take label distributions (values in [0, 1]) for anchors
    and keys; a label that no key carries adds nothing. `any` counts every label above 0; `all` and
    `jaccard` need labels that are 0 or 1.

    The keys are walked over a chunk at a time, and W, where it is needed, is built chunk by chunk:
    nothing of size [B, K] or [K, D] is made beside the arguments. The derivative in the anchors
    comes out of the same walk; the keys that have one are walked over once more. Where all scores
    fit in a cache they are computed at once. docs/loss.md derives it.

    Masks act on value and gradient as if what they leave out were not there: whatever stands in a
    masked place (NaN included) has no effect. NaN anywhere else makes the loss NaN. When nothing
    is left to compare, the loss is 0 with zero gradient.

    Sums, softmax and scores are in at least float32, at full precision also where an accelerator
    would use a shorter format. Gradients flow to anchors and keys; use `jax.lax.stop_gradient` on
    keys that must not have one. It can be jitted, differentiated in both modes, vmapped and
    sharded.

    Args:
        anchors: [B, D] embeddings the loss rows are about.
        keys: [K, D] embeddings they are compared with; or a tuple of such arrays, compared as if
            they were concatenated, without a copy: the batch's keys and a queue's, for instance.
            `key_labels`, `key_valid`, `key_ids` and `key_label_mask` are then tuples too, None
            for a segment without a mask. Segments may differ in type.
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
        chunk_size: keys scored at a time; None: chosen from the shapes. The value does not depend
            on it beyond rounding.
        class_sums: (sums [L, D], counts [L]) over exactly the valid keys, as `losses.class_sums`
            returns them, for callers that keep them up to date; the positive term then
            differentiates into them instead of into `keys`. For the `mulsupcon` weightings only.
            With ids each anchor sees sums of its own: they are computed from the keys, and the
            given ones are not used.
        empty_matches_empty: whether `all` and `jaccard` take two empty label sets as equal.
        where: [B], False for anchors to leave out.
        reduce: False for the per-anchor values instead of the reduced one.
        statistics: whether to return what the walk can tell beside the loss.

    Returns:
        Scalar; with `reduce=False` loss_i [B], which the column "reduced value" combines (0 for
        anchors that are left out). With `statistics` a pair of that and a dictionary of scalars
        without gradient, means over anchors that `where` keeps:

        - `positives_per_anchor` (labelled anchors): its positives; for `mulsupcon` a key counts
          once for every label that is shared, as in the loss.
        - `valid_anchor_fraction`: share of the anchors that have a positive.
        - `positive_similarity`, `negative_similarity`: z . k of positives and of the other keys;
          for `mulsupcon` of the keys with and without a label, over all labels of the anchor.
        - `effective_negatives`: exp of the entropy of the softmax over keys, the number of keys
          that the anchor is in effect compared with.
        - `uniformity`: log mean_p exp((z . k_p - 1) / temperature); for unit vectors the Gaussian
          potential of Wang & Isola (ICML 2020) with their t = 1 / (2 temperature).
        - `alignment`, `in_batch_top1`: ||z_i - k_i||^2, and how often k_i is the best key of the
          first segment; only where keys are a tuple of several arrays, the first of which has a key
          for each anchor.

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
    problem = prepare(
        anchors,
        keys,
        anchor_labels,
        key_labels,
        weighting=weighting,
        temperature=temperature,
        key_valid=key_valid,
        anchor_ids=anchor_ids,
        key_ids=key_ids,
        label_mask=label_mask,
        key_label_mask=key_label_mask,
        threshold=threshold,
        chunk_size=chunk_size,
        class_sums=class_sums,
        empty_matches_empty=empty_matches_empty,
        where=where,
        statistics=statistics,
    )
    problem = problem.weighed(problem.label_counts())
    found = problem.complete(walk(problem.anchors, problem.segments, problem.rule))
    values, terms = problem.rows(found)
    loss = divide(values.sum(), terms.sum()) if reduce else values
    if not statistics:
        return loss
    own = own_keys(problem)
    return loss, {
        name: divide((value * weight).sum(), weight.sum())
        for name, (value, weight) in problem.statistics(found, own).items()
    }


def log_denominator(
    anchors: ArrayLike,
    keys: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    key_valid: ArrayLike | None = None,
    anchor_ids: ArrayLike | None = None,
    key_ids: ArrayLike | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Log of each anchor's softmax denominator: log sum_p exp(z_i . k_p / temperature).

    For losses whose positives are known without labels, and which differ in what the denominator
    leaves out: equal ids leave out an anchor itself, or itself and its positive. The keys are
    walked over as in `multi_positive_infonce`, with the same derivatives.

    Args:
        anchors: [B, D].
        keys: [K, D].
        temperature: scale of the scores, > 0.
        key_valid: [K], False for keys that are not there.
        anchor_ids: [B]; keys of the same id are left out, negative ids match nothing.
        key_ids: [K]; given together with `anchor_ids`.
        chunk_size: keys scored at a time; None: chosen from the shapes.

    Returns:
        [B]; -inf, with zero gradient, for an anchor without keys.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> z = jax.numpy.eye(3)
        >>> rows = jax.numpy.arange(3)
        >>> log_denominator(z, z, temperature=1.0, anchor_ids=rows, key_ids=rows).round(4)
        Array([0.6931, 0.6931, 0.6931], dtype=float32)
    """
    unlabelled = [
        np.zeros((*shape_of(name, x)[:1], 0), np.uint8)
        for name, x in (("anchors", anchors), ("keys", keys))
    ]
    problem = prepare(
        anchors,
        keys,
        *unlabelled,
        temperature=temperature,
        key_valid=key_valid,
        anchor_ids=anchor_ids,
        key_ids=key_ids,
        chunk_size=chunk_size,
    )
    rule = problem.rule._replace(weighting=None, class_sums=False)
    return walk(problem.anchors, problem.segments, rule).log_sum


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
        chunk_size: keys looked at a time; None: chosen from the shapes.

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
    anchors, (keys,) = check_and_mask(
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

    def count(start: Any, size: int, _: Any) -> jax.Array:
        _, positive = positive_pairs(
            anchors,
            take(keys, start, size),
            weighting=weighting,
            empty_matches_empty=empty_matches_empty,
            dtype=jnp.float32,
        )
        return positive.sum(-1, dtype=jnp.float32)

    num_anchors, num_keys = np.shape(anchor_labels)[0], np.shape(key_labels)[0]
    chunk = chunk_size_for(num_anchors, num_keys, chunk_size, per_key=np.shape(key_labels)[1])
    positives = fold(count, jnp.add, num_keys, chunk)
    kept = jnp.ones(num_anchors, bool) if anchors.kept is None else anchors.kept
    labelled = kept & (jnp.asarray(anchors.labels) > 0).any(-1)
    return {
        "positives_per_anchor": divide(
            jnp.where(labelled, positives, 0).sum(), labelled.sum(dtype=jnp.float32)
        ),
        "valid_anchor_fraction": divide(
            (kept & (positives > 0)).sum(dtype=jnp.float32), kept.sum(dtype=jnp.float32)
        ),
    }
