"""Losses on logits: binary cross-entropy, focal and asymmetric."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._common import (
    accumulation_dtype,
    check_choice,
    check_floating,
    check_labels,
    check_number,
    check_shape,
    divide,
)

REDUCTIONS = ("mean", "sum", "sum_labels")
# The asymmetric loss as published takes the logarithm of max(probability, 1e-8).
LOG_FLOOR = 1e-8


def binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: str = "mean",
    label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Sigmoid cross-entropy of every label.

        -y log sigma(x) - (1 - y) log(1 - sigma(x))

    The reduction is over the known entries of the kept rows:

    ============ ============================= ===============================================
    reduction    value                         rows with `reduce=False`, and how they combine
    ============ ============================= ===============================================
    `mean`       mean over entries             mean of the row; weigh rows by their known entries
    `sum`        sum over entries              sum of the row; sum
    `sum_labels` sum over labels, mean over    sum of the row; mean over kept rows
                 rows
    ============ ============================= ===============================================

    Args:
        logits: [B, L].
        labels: [B, L] in [0, 1].
        reduction: `mean`, `sum` or `sum_labels`.
        label_mask: [B, L], False for unknown labels, which are left out.
        where: [B], False for rows to leave out.
        reduce: False for per-row values.

    Returns:
        Scalar, or [B] with `reduce=False` (0 for rows left out), in at least float32. 0 with zero
        gradient where nothing is known.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> loss = binary_cross_entropy([[2.0, -1.0]], [[1, 0]])
        >>> print(f"{loss:.6f}")
        0.220095

    Source: MulSupCon's downstream loss (`mean`); C-GMVAE (`sum_labels`).
    """
    x, y, known = _prepare(logits, labels, reduction, label_mask, where)
    losses = y * jax.nn.softplus(-x) + (1 - y) * jax.nn.softplus(x)
    return _reduced(losses, known, where, reduction, reduce)


def focal(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    reduction: str = "mean",
    label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Cross-entropy that looks away from labels already right.

        -alpha_t (1 - p_t)^gamma log p_t,     p_t = sigma(x) if y = 1 else 1 - sigma(x)

    with alpha_t = `alpha` for y = 1, 1 - `alpha` for y = 0, and 1 where `alpha` is None. Labels
    strictly between 0 and 1 mix the two terms.

    Args:
        logits: [B, L].
        labels: [B, L] in [0, 1].
        gamma: focusing exponent, >= 0; 0 is binary cross-entropy.
        alpha: weight of the positives, in [0, 1], or None.
        reduction: as in `binary_cross_entropy`.
        label_mask: [B, L], False for unknown labels, which are left out.
        where: [B], False for rows to leave out.
        reduce: False for per-row values.

    Returns:
        Scalar, or [B] with `reduce=False`, as in `binary_cross_entropy`.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> loss = focal([[2.0, -1.0]], [[1, 0]])
        >>> print(f"{loss:.6f}")
        0.012231

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, eq. 5.
    """
    check_number("gamma", gamma, minimum=0)
    if alpha is not None:
        check_number("alpha", alpha, minimum=0, maximum=1)
    x, y, known = _prepare(logits, labels, reduction, label_mask, where)
    of_positive = _power(jax.nn.sigmoid(-x), gamma) * jax.nn.softplus(-x)
    of_negative = _power(jax.nn.sigmoid(x), gamma) * jax.nn.softplus(x)
    if alpha is not None:
        of_positive, of_negative = alpha * of_positive, (1 - alpha) * of_negative
    return _reduced(y * of_positive + (1 - y) * of_negative, known, where, reduction, reduce)


def asymmetric(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    clip: float = 0.05,
    gradient_through_weight: bool = False,
    reduction: str = "sum",
    label_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduce: bool = True,
) -> jax.Array:
    """Focal loss with separate exponents and a margin for the negatives (ASL).

        y = 1:  -(1 - p)^gamma_positive log p                         p = sigma(x)
        y = 0:  -(1 - q)^gamma_negative log q,                        q = min(1 - p + clip, 1)

    Logarithms are of max(., 1e-8), as in the official code: beyond that the loss is flat. Labels
    strictly between 0 and 1 mix the two terms.

    Args:
        logits: [B, L].
        labels: [B, L] in [0, 1].
        gamma_negative: focusing exponent of the negatives, >= 0.
        gamma_positive: focusing exponent of the positives, >= 0.
        clip: probability margin of the negatives, in [0, 1]; 0 for none.
        gradient_through_weight: whether the focusing weight is differentiated. The value is the
            same; the official plain class does not, its optimised class does.
        reduction: as in `binary_cross_entropy`; the default is the official sum over all entries.
        label_mask: [B, L], False for unknown labels, which are left out.
        where: [B], False for rows to leave out.
        reduce: False for per-row values.

    Returns:
        Scalar, or [B] with `reduce=False`, as in `binary_cross_entropy`.

    Raises:
        ValueError: an argument that does not fit; the message names it and its shape.

    Example:
        >>> loss = asymmetric([[2.0, -1.0]], [[1, 0]])
        >>> print(f"{loss:.6f}")
        0.015698

    Source: Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021, eq. 7.
    """
    check_number("gamma_negative", gamma_negative, minimum=0)
    check_number("gamma_positive", gamma_positive, minimum=0)
    check_number("clip", clip, minimum=0, maximum=1)
    x, y, known = _prepare(logits, labels, reduction, label_mask, where)
    p, not_p = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
    q = jnp.minimum(not_p + clip, 1)
    # 1 - q is p - clip cut off at 0, which stays exact for small p.
    weight_positive = _power(not_p, gamma_positive)
    weight_negative = _power(jnp.maximum(p - clip, 0), gamma_negative)
    if not gradient_through_weight:
        weight_positive, weight_negative = jax.lax.stop_gradient((weight_positive, weight_negative))
    of_positive = -weight_positive * jnp.log(jnp.maximum(p, LOG_FLOOR))
    of_negative = -weight_negative * jnp.log(jnp.maximum(q, LOG_FLOOR))
    return _reduced(y * of_positive + (1 - y) * of_negative, known, where, reduction, reduce)


def _power(base: jax.Array, exponent: ArrayLike) -> jax.Array:
    """base ** exponent for base >= 0, with zero instead of infinite slope at 0."""
    zero = base <= 0
    at_zero = jnp.where(jnp.asarray(exponent) == 0, 1, 0)
    return jnp.where(zero, at_zero, jnp.where(zero, 1, base) ** exponent)


def _prepare(
    logits: ArrayLike,
    labels: ArrayLike,
    reduction: str,
    label_mask: ArrayLike | None,
    where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits and labels [B, L] with the entries left out blanked, and which are known."""
    x = jnp.asarray(logits)
    check_choice("reduction", reduction, REDUCTIONS)
    check_shape("logits", x.shape, {"B": None, "L": None})
    check_floating("logits", x)
    rows, num_labels = x.shape
    check_shape("labels", np.shape(labels), {"B": rows, "L": num_labels})
    known = jnp.ones(x.shape, bool)
    if label_mask is not None:
        check_shape("label_mask", np.shape(label_mask), {"B": rows, "L": num_labels})
        known &= jnp.asarray(label_mask, bool)
    if where is not None:
        check_shape("where", np.shape(where), {"B": rows})
        known &= jnp.asarray(where, bool)[:, None]
    masked = label_mask is not None or where is not None
    check_labels("labels", labels, known if masked else None)
    dtype = accumulation_dtype(x)
    x, y = x.astype(dtype), jnp.asarray(labels, dtype)
    if masked:
        x, y = jnp.where(known, x, 0), jnp.where(known, y, 0)
    return x, y, known


def _reduced(
    losses: jax.Array, known: jax.Array, where: ArrayLike | None, reduction: str, reduce: bool
) -> jax.Array:
    losses = jnp.where(known, losses, 0)
    rows, entries = losses.sum(-1), known.sum(-1, dtype=losses.dtype)
    if not reduce:
        return divide(rows, entries) if reduction == "mean" else rows
    if reduction == "sum":
        return rows.sum()
    if reduction == "mean":
        return divide(rows.sum(), entries.sum())
    kept = jnp.ones(rows.shape, bool) if where is None else jnp.asarray(where, bool)
    return divide(rows.sum(), kept.sum(dtype=losses.dtype))
