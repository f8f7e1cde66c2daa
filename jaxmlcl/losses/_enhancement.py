"""Losses of label enhancement: two views of a sample, and distributions beside 0/1 labels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._chunks import fold
from ._common import (
    accumulation_dtype,
    check_choice,
    check_floating,
    check_labels,
    check_number,
    check_shape,
    concrete,
    divide,
    dot,
)
from ._pairs import check_chunk_size
from ._problem import prepare
from ._walk import walk

DENOMINATORS = ("paper", "with_pos", "pyldl")
FORMS = ("max", "pairs")
DISTANCE_REDUCTIONS = ("sum", "mean")
SHORTEST = 1e-8
# Pairs up to which all scores are held at once, three blocks [n, n] and their derivatives: faster
# than the walk, which makes the products of the two views twice.
_DENSE_PAIRS = 2**24
# From this temperature on, sums of exp(h / t) and their squares fit float32 as they are, for all
# that _DENSE_PAIRS lets through: no maximum is taken off first.
_WARM = 1 / 32
# From this temperature and number of rows on, a sample's similarity to itself is a small part of
# its sum, and is subtracted afterwards: cheaper than a mask over all pairs.
_HOT, _MANY = 0.4, 128


def cross_view_contrastive(
    z: ArrayLike,
    q: ArrayLike,
    *,
    temperature: ArrayLike = 0.5,
    denominator: str = "paper",
    chunk_size: int | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Contrast of two views of every sample, each against both views of all other samples.

    With h the cosine similarity and t the temperature, for sample m

        l_Zm = -h(z_m, q_m) / t + log sum_{s != m} (exp(h(z_m, z_s) / t) + exp(h(z_m, q_s) / t))
        l_Qm = -h(q_m, z_m) / t + log sum_{s != m} (exp(h(q_m, q_s) / t) + exp(h(q_m, z_s) / t))

    and the loss is the mean of l_Zm + l_Qm. What the sums hold beside the 2(n - 1) terms:

    ============ ============================================================================
    denominator  adds
    ============ ============================================================================
    `paper`      nothing: the positive is left out, so the loss has no lower bound of 0
    `with_pos`   the positive, exp(h(z_m, q_m) / t), as in NT-Xent
    `pyldl`      1, as PyLDL does, whose self-similarities are set to 0 before the exponential
    ============ ============================================================================

    A vector shorter than 1e-8 is divided by 1e-8 instead of by its length, and passes no gradient.

    Args:
        z: [n, d], one view.
        q: [n, d], the other.
        temperature: scale of the similarities, > 0. Up to 4096 rows the loss is faster where this
            is a number, not traced, of at least 1/32.
        denominator: `paper`, `with_pos` or `pyldl`.
        chunk_size: keys scored at a time; None: all at once up to 4096 rows, beyond that chosen
            from the shapes. The value does not depend on it beyond rounding.
        where: [n], False for rows to leave out, as anchors and as keys.
        reduce: False for per-row values l_Zm + l_Qm.

    Returns:
        Scalar, or [n] with `reduce=False` (0 for rows left out), in at least float32. 0 with zero
        gradient where fewer than two rows are kept.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> z = jax.numpy.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> q = jax.numpy.array([[2.0, 1.0], [1.0, -1.0], [0.0, 1.0]])
        >>> print(f"{cross_view_contrastive(z, q):.6f}")
        2.089458

    Source: ConLE, IJCAI 2023, eq. 4-8.
    """
    z, q = jnp.asarray(z), jnp.asarray(q)
    check_shape("z", z.shape, {"n": None, "d": None})
    check_shape("q", q.shape, {"n": z.shape[0], "d": z.shape[1]})
    check_floating("z", z)
    check_floating("q", q)
    check_number("temperature", temperature, minimum=0, strict=True)
    check_choice("denominator", denominator, DENOMINATORS)
    if chunk_size is not None:
        check_chunk_size(chunk_size)
    rows = z.shape[0]
    kept = jnp.ones(rows, bool)
    if where is not None:
        check_shape("where", np.shape(where), {"n": rows})
        kept = jnp.asarray(where, bool)
        z, q = jnp.where(kept[:, None], z, 0), jnp.where(kept[:, None], q, 0)
    z, q = _unit(z.astype(accumulation_dtype(z, q))), _unit(q.astype(accumulation_dtype(z, q)))
    positive = (z * q).sum(-1) / temperature
    known = concrete(temperature)
    if chunk_size is not None or rows**2 > _DENSE_PAIRS:
        logs = _log_sums_walked
    elif known is not None and known >= _WARM:
        many = where is None and rows >= _MANY and bool(known >= _HOT)
        logs = functools.partial(_log_sums_warm, masked=not many)
    else:
        logs = _log_sums_dense
    of_z, of_q = logs(z, q, kept, temperature, denominator == "with_pos", chunk_size)
    if denominator == "pyldl":
        of_z, of_q = jnp.logaddexp(of_z, 0), jnp.logaddexp(of_q, 0)
    number = kept.sum(dtype=z.dtype)
    values = jnp.where(kept & (number > 1), of_z + of_q - 2 * positive, 0)
    return divide(values.sum(), number) if reduce else values


def squared_distance(
    distributions: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: str = "sum",
    label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Squared distance of every distribution from its labels.

        sum_j (d_j - l_j)^2

    The reduction is over the kept rows: `sum`, as printed, grows with their number, so a weight
    beside a loss that is a mean means something else for every n; `mean` does not.

    Args:
        distributions: [n, L].
        labels: [n, L] in [0, 1].
        reduction: `sum` or `mean`.
        label_mask: [n, L], False for unknown labels, which are left out.
        where: [n], False for rows to leave out.
        reduce: False for per-row values.

    Returns:
        Scalar, or [n] with `reduce=False` (0 for rows left out), in at least float32. 0 with zero
        gradient where nothing is known.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> print(f"{squared_distance([[0.5, 0.3, 0.2]], [[1, 1, 0]]):.6f}")
        0.780000

    Source: ConLE, IJCAI 2023, eq. 11.
    """
    check_choice("reduction", reduction, DISTANCE_REDUCTIONS)
    d, y, known, kept = _prepare(distributions, labels, label_mask, where, binary=False)
    values = jnp.where(known, jnp.square(d - y), 0).sum(-1)
    if not reduce:
        return values
    return values.sum() if reduction == "sum" else divide(values.sum(), kept.sum(dtype=d.dtype))


def threshold_hinge(
    distributions: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.05,
    form: str = "max",
    label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Hinge that keeps the degrees of a row's labels above those of all others.

        max:    max(max_{l_j = 0} d_j - min_{l_k = 1} d_k + margin, 0)
        pairs:  sum over j with l_j = 0 and k with l_k = 1 of max(d_j - d_k + margin, 0)

    The loss is the mean over the kept rows. A row without a 0 or without a 1 has nothing to
    compare: its value is 0.

    Args:
        distributions: [n, L].
        labels: [n, L], 0 or 1.
        margin: least difference that costs nothing, >= 0.
        form: `max` or `pairs`.
        label_mask: [n, L], False for unknown labels, which are left out.
        where: [n], False for rows to leave out.
        reduce: False for per-row values.

    Returns:
        Scalar, or [n] with `reduce=False` (0 for rows left out), in at least float32. 0 with zero
        gradient where no row is kept.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> loss = threshold_hinge([[0.5, 0.3, 0.2]], [[1, 0, 1]])
        >>> print(f"{loss:.6f}")
        0.150000

    Source: ConLE, IJCAI 2023, eq. 14 (`max`) and 13 (`pairs`), which the paper takes as equal.
    """
    check_number("margin", margin, minimum=0)
    check_choice("form", form, FORMS)
    d, y, known, kept = _prepare(distributions, labels, label_mask, where, binary=True)
    positive, negative = known & (y > 0), known & (y == 0)
    if form == "max":
        both = positive.any(-1) & negative.any(-1)
        # Where one side is missing no infinity may reach the difference.
        highest = jnp.where(negative, d, -jnp.inf).max(-1, initial=-jnp.inf)
        lowest = jnp.where(positive, d, jnp.inf).min(-1, initial=jnp.inf)
        gap = jnp.where(both, highest, 0) - jnp.where(both, lowest, 0)
        values = jnp.where(both, jnp.maximum(gap + margin, 0), 0)
    else:
        rows, num_labels = d.shape
        lower = jnp.moveaxis(jnp.stack([d, positive.astype(d.dtype)]), 2, 0)

        def pairs(start: object, size: int, part: jax.Array) -> jax.Array:
            """What `size` of the labels add as positives, [n]."""
            del start, size
            below, there = part[:, 0].T[:, None, :], part[:, 1].T[:, None, :] > 0
            there &= negative[:, :, None]
            cost = jnp.where(there, jnp.maximum(d[:, :, None] - below + margin, 0), 0)
            return cost.sum((-1, -2))

        at_once = max(_DENSE_PAIRS // max(rows * num_labels, 1), 1)
        values = fold(pairs, jnp.add, num_labels, at_once, lower)
    return divide(values.sum(), kept.sum(dtype=d.dtype)) if reduce else values


def _unit(x: jax.Array) -> jax.Array:
    """x / max(||x||, 1e-8); no gradient where the length is clamped."""
    squared = jnp.square(x).sum(-1, keepdims=True)
    short = squared <= SHORTEST**2
    return jnp.where(
        short,
        jax.lax.stop_gradient(x) / SHORTEST,
        x * jax.lax.rsqrt(jnp.where(short, 1, squared)),
    )


def _log_sums_warm(
    z: jax.Array,
    q: jax.Array,
    kept: jax.Array,
    temperature: ArrayLike,
    with_positive: bool,
    chunk_size: int | None,
    *,
    masked: bool,
) -> tuple[jax.Array, jax.Array]:
    """Logarithms of both denominators [n] for a temperature that needs no maximum.

    Rows that are left out are zero; they and a row alone get any finite value.
    """
    del chunk_size
    root = jnp.sqrt(jnp.asarray(temperature, z.dtype))
    z, q = z / root, q / root
    of_z, of_q = _sums(masked, with_positive, z, q, kept.astype(z.dtype))
    if not masked:
        of_z -= jnp.exp(jnp.square(z).sum(-1))
        of_q -= jnp.exp(jnp.square(q).sum(-1))
        if not with_positive:
            pairs = jnp.exp((z * q).sum(-1))
            of_z, of_q = of_z - pairs, of_q - pairs
    # The logarithm of nothing would make the gradient NaN. NaN itself shall show.
    of_z, of_q = (jnp.log(jnp.where(total <= 0, 1, total)) for total in (of_z, of_q))
    return of_z, of_q


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sums(
    masked: bool, with_positive: bool, z: jax.Array, q: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """sum_s kept_s (exp(z_m . z_s) + exp(z_m . q_s)) [n], and with the views exchanged.

    With `masked` without s = m, but for the positive exp(z_m . q_m) where it is wanted.

    Rows that are not kept must be zero and stay so: the derivative relies on it. It is written so
    that its transpose has one pass and one product for each block that is symmetric, from the
    exponentials of the value: exp(z z^T) has the cotangent w_m + w_s, and no maximum or mask has
    any.
    """
    return _summed(*_exponentials(masked, with_positive, z, q), kept)


@_sums.defjvp
def _sums_jvp(masked: bool, with_positive: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (z, q, kept), (dz, dq, _) = primals, tangents
    zz, qq, zq = _exponentials(masked, with_positive, z, q)
    # exp(z z^T) is symmetric, so that the rows of E * (dz z^T) and its columns are both halves of
    # the change.
    of_z, of_q = zz * dot(dz, z.T), qq * dot(dq, q.T)
    across = zq * (dot(dz, q.T) + dot(z, dq.T))
    change = (
        of_z.sum(1) + of_z.sum(0) + across.sum(1),
        of_q.sum(1) + of_q.sum(0) + across.sum(0),
    )
    return _summed(zz, qq, zq, kept), change


def _exponentials(
    masked: bool, with_positive: bool, z: jax.Array, q: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """exp of z z^T, q q^T and z q^T, 0 on the diagonals that do not count."""

    def block(a: jax.Array, b: jax.Array, masked: bool) -> jax.Array:
        e = jnp.exp(dot(a, b.T))
        return jnp.where(jnp.eye(len(a), dtype=bool), 0, e) if masked else e

    return block(z, z, masked), block(q, q, masked), block(z, q, masked and not with_positive)


def _summed(
    zz: jax.Array, qq: jax.Array, zq: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums by rows and by columns; as products they need no pass with a mask of kept rows."""
    return dot(zz, kept) + dot(zq, kept), dot(qq, kept) + dot(kept, zq)


def _log_sums_dense(
    z: jax.Array,
    q: jax.Array,
    kept: jax.Array,
    temperature: ArrayLike,
    with_positive: bool,
    chunk_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Logarithms of both denominators [n], -inf for empty ones, from three products."""
    del chunk_size
    pairs = kept[:, None] & kept[None, :]
    others = pairs & ~jnp.eye(len(kept), dtype=bool)
    zz = jnp.where(others, dot(z / temperature, z.T), -jnp.inf)
    qq = jnp.where(others, dot(q / temperature, q.T), -jnp.inf)
    zq = jnp.where(pairs if with_positive else others, dot(z / temperature, q.T), -jnp.inf)
    logs = []
    for own, axis in ((zz, 1), (qq, 0)):  # both are symmetric; zq is read by rows, then columns
        peak = jnp.maximum(own.max(axis, initial=-jnp.inf), zq.max(axis, initial=-jnp.inf))
        shift = jax.lax.stop_gradient(jnp.where(peak == -jnp.inf, 0, peak))
        across = jnp.expand_dims(shift, axis)
        total = jnp.exp(own - across).sum(axis) + jnp.exp(zq - across).sum(axis)
        empty = total == 0
        logs.append(jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1, total)) + shift))
    return logs[0], logs[1]


def _log_sums_walked(
    z: jax.Array,
    q: jax.Array,
    kept: jax.Array,
    temperature: ArrayLike,
    with_positive: bool,
    chunk_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    """The same from walks over both views, some keys at a time."""
    rows = jnp.arange(len(kept), dtype=jnp.int32)
    nothing = np.zeros((len(kept), 0), np.uint8)
    logs = []
    for anchors, other in ((z, q), (q, z)):
        problem = prepare(
            anchors,
            (anchors, other),
            nothing,
            (nothing, nothing),
            temperature=temperature,
            key_valid=(kept, kept),
            anchor_ids=rows,
            # Negative ids match nothing: the positive stays.
            key_ids=(rows, jnp.full_like(rows, -1) if with_positive else rows),
            chunk_size=chunk_size,
        )
        rule = problem.rule._replace(weighting=None, class_sums=False)
        logs.append(walk(problem.anchors, problem.segments, rule).log_sum)
    return logs[0], logs[1]


def _prepare(
    distributions: ArrayLike,
    labels: ArrayLike,
    label_mask: ArrayLike | None,
    where: ArrayLike | None,
    *,
    binary: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Distributions and labels [n, L], blanked where left out; known entries; kept rows [n]."""
    d = jnp.asarray(distributions)
    check_shape("distributions", d.shape, {"n": None, "L": None})
    check_floating("distributions", d)
    rows, num_labels = d.shape
    check_shape("labels", np.shape(labels), {"n": rows, "L": num_labels})
    known, kept = jnp.ones(d.shape, bool), jnp.ones(rows, bool)
    if label_mask is not None:
        check_shape("label_mask", np.shape(label_mask), {"n": rows, "L": num_labels})
        known &= jnp.asarray(label_mask, bool)
    if where is not None:
        check_shape("where", np.shape(where), {"n": rows})
        kept = jnp.asarray(where, bool)
        known &= kept[:, None]
    masked = label_mask is not None or where is not None
    check_labels("labels", labels, known if masked else None, binary=binary)
    dtype = accumulation_dtype(d)
    d, y = d.astype(dtype), jnp.asarray(labels, dtype)
    return jnp.where(known, d, 0), jnp.where(known, y, 0), known, kept
