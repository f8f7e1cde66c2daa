"""The loss as people write it: jaxmlcl's own, and two forms in plain jnp.

All take (anchors [B, D], keys [K, D], anchor_labels [B, L], key_labels [K, L]), labels as uint8,
and give the reduced loss of `jaxmlcl.losses.multi_positive_infonce`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmlcl import sharding
from jaxmlcl.bench._problem import FACTORISED, TEMPERATURE, LossProblem
from jaxmlcl.losses import multi_positive_infonce

OURS, WEIGHTS, CLASS_SUMS = "jaxmlcl", "plain jnp, weight matrix", "plain jnp, class sums"
EAGER, COMPILED = "PyTorch eager", "PyTorch compiled"
JAX_FORMS = (OURS, WEIGHTS, CLASS_SUMS)
TORCH_FORMS = (EAGER, COMPILED)
Form = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def forms_of(problem: LossProblem, *, torch: bool) -> list[str]:
    """Names of the forms that can compute this problem."""
    plain = JAX_FORMS if problem.weighting in FACTORISED else JAX_FORMS[:2]
    return [*plain, *(TORCH_FORMS if torch else ())]


def form_of(name: str, problem: LossProblem, mesh: jax.sharding.Mesh | None) -> Form:
    """The function of arrays that a name stands for."""
    if name == OURS:
        options: dict[str, Any] = {"weighting": problem.weighting, "temperature": TEMPERATURE}
        if problem.chunk_size is not None:
            options["chunk_size"] = problem.chunk_size
        if mesh is None:
            return functools.partial(multi_positive_infonce, **options)
        options |= {"mesh": mesh, "strategy": problem.strategy}
        return functools.partial(sharding.multi_positive_infonce, **options)
    plain = {WEIGHTS: weight_matrix, CLASS_SUMS: class_sums}[name]
    return functools.partial(plain, weighting=problem.weighting)


def weight_matrix(
    anchors: jax.Array,
    keys: jax.Array,
    anchor_labels: jax.Array,
    key_labels: jax.Array,
    *,
    weighting: str,
) -> jax.Array:
    """Every pair's weight W [B, K], times its log probability."""
    log_p = jax.nn.log_softmax(_scores(anchors, keys))
    y, yk = anchor_labels.astype(log_p.dtype), key_labels.astype(log_p.dtype)
    sizes, key_sizes = y.sum(1), yk.sum(1)
    if weighting in FACTORISED:
        weights = (y / jnp.maximum(yk.sum(0), 1)) @ yk.T
        values = -(weights * log_p).sum(1)
        if weighting == "mulsupcon":
            return values.sum() / sizes.sum()
        return (values / jnp.maximum(sizes, 1)).mean()
    shared = y @ yk.T
    if weighting == "any":
        weights = (shared > 0).astype(log_p.dtype)
    elif weighting == "all":
        equal = (shared == sizes[:, None]) & (shared == key_sizes)
        weights = equal.astype(log_p.dtype)
    else:
        union = sizes[:, None] + key_sizes - shared
        index = jnp.where(union == 0, 1, shared / jnp.maximum(union, 1))
        weights = jnp.where(index >= 0.5, index, 0)
    positives = (weights > 0).sum(1)
    values = -(weights * log_p).sum(1) / jnp.maximum(positives, 1)
    if weighting == "all":
        return values.mean()
    return values.sum() / jnp.maximum((positives > 0).sum(), 1)


def class_sums(
    anchors: jax.Array,
    keys: jax.Array,
    anchor_labels: jax.Array,
    key_labels: jax.Array,
    *,
    weighting: str,
) -> jax.Array:
    """The positive term from the mean key of every label, without W."""
    scores = _scores(anchors, keys)
    y, yk = anchor_labels.astype(scores.dtype), key_labels.astype(scores.dtype)
    means = (yk.T @ keys.astype(scores.dtype)) / jnp.maximum(yk.sum(0), 1)[:, None]
    positive = (anchors.astype(scores.dtype) * (y @ means)).sum(1) / TEMPERATURE
    values = y.sum(1) * jax.nn.logsumexp(scores, axis=1) - positive
    if weighting == "mulsupcon":
        return values.sum() / y.sum()
    return (values / jnp.maximum(y.sum(1), 1)).mean()


def _scores(anchors: jax.Array, keys: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(anchors.dtype, jnp.float32)
    return jnp.matmul(anchors, keys.T, preferred_element_type=dtype) / TEMPERATURE


def counted_bytes(name: str, problem: LossProblem) -> int:
    """Bytes of the large arrays that a PyTorch form holds at once, at least."""
    number = max(4, problem.itemsize)
    scores = number * problem.anchors * problem.keys
    if problem.weighting not in FACTORISED:
        # Log probabilities, shared labels, weights and their product.
        return 4 * scores
    if name == COMPILED:
        # Fused: nothing but scores, their log probabilities and the gradient is kept.
        return 3 * scores
    rows = problem.anchors * problem.cardinality
    # The scores; and for every row those of its anchor, their log probabilities, who is positive,
    # and the product of the two.
    return int(scores + 4 * number * rows * problem.keys)
