"""The contrastive loss written with loops, and the library's compiled once for many tests."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl import losses

# Compiling is most of the time these tests take.
QUICK = {"xla_backend_optimization_level": 0}


def _naive(
    anchors: Any,
    keys: Any,
    anchor_labels: Any,
    key_labels: Any,
    *,
    weighting: str,
    temperature: float = 0.3,
    absent: Any = None,
    threshold: float = 0.5,
    empty_matches_empty: bool = True,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Per-anchor values, reduced value and number of positives.

    `absent` [B, K] marks pairs that do not exist.
    """
    z, k, y, yk = (np.asarray(a, np.float64) for a in (anchors, keys, anchor_labels, key_labels))
    values, positives, sizes = [], [], []
    for i in range(len(z)):
        there = [p for p in range(len(k)) if absent is None or not absent[i][p]]
        scores = {p: sum(z[i][d] * k[p][d] for d in range(z.shape[1])) / temperature for p in there}
        top = max(scores.values(), default=0.0)
        log_sum = top + math.log(sum(math.exp(s - top) for s in scores.values()) or 1.0)
        cost = {p: log_sum - scores[p] for p in there}
        size = sum(y[i])
        sizes.append(size)
        total = 0.0
        if weighting.startswith("mulsupcon"):
            for j in range(y.shape[1]):
                carriers = sum(yk[p][j] for p in there)
                if carriers > 0:
                    total += y[i][j] * sum(yk[p][j] * cost[p] for p in there) / carriers
            positives.append(sum(1 for p in there if np.any((y[i] > 0) & (yk[p] > 0))))
            values.append(total / size if weighting == "mulsupcon_mean" and size else total)
            continue
        count = 0
        for p in there:
            mine = {j for j in range(y.shape[1]) if y[i][j] > 0}
            other = {j for j in range(y.shape[1]) if yk[p][j] > 0}
            if weighting == "any":
                weight = 1.0 if mine & other else None
            elif not mine and not other:
                weight = 1.0 if empty_matches_empty else None
            elif weighting == "all":
                weight = 1.0 if mine == other else None
            else:
                index = len(mine & other) / len(mine | other)
                weight = index if index >= threshold else None
            if weight is not None:
                count += 1
                total += weight * cost[p]
        positives.append(count)
        values.append(total / count if count else 0.0)
    divisor = {
        "mulsupcon": sum(sizes),
        "mulsupcon_mean": len(z),
        "all": len(z),
        "any": sum(1 for n in positives if n),
        "jaccard": sum(1 for n in positives if n),
    }[weighting]
    return np.array(values), sum(values) / divisor if divisor else 0.0, np.array(positives)


@pytest.fixture(scope="session")
def naive() -> Callable[..., tuple[np.ndarray, float, np.ndarray]]:
    """The reference loss in plain loops, float64."""
    return _naive


@functools.cache
def _compiled(**static: Any) -> Callable[..., Any]:
    def everything(
        anchors: jax.Array, keys: jax.Array, labels: Any, key_labels: Any, more: dict[str, Any]
    ) -> Any:
        def loss(z: jax.Array, k: jax.Array, reduce: bool = True) -> jax.Array:
            return losses.multi_positive_infonce(
                z, k, labels, key_labels, reduce=reduce, **static, **more
            )

        value, grads = jax.value_and_grad(loss, argnums=(0, 1))(anchors, keys)
        return value, loss(anchors, keys, reduce=False), grads

    return jax.jit(everything, compiler_options=QUICK)


def _evaluate(
    anchors: Any, keys: Any, anchor_labels: Any, key_labels: Any, **options: Any
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
    """Reduced value, per-anchor values, gradients of anchors and keys.

    Compiled once for equal shapes and settings, so that many tests can share a compilation.
    """
    settings = ("weighting", "chunk_size", "threshold", "empty_matches_empty")
    static = {name: options.pop(name) for name in settings if name in options}
    wide = [np.asarray(x, np.float64) for x in (anchors, keys, anchor_labels, key_labels)]
    more = {"temperature": 0.3} | {k: v for k, v in options.items() if v is not None}
    return _compiled(**static)(*wide, more)


@pytest.fixture(scope="session")
def quick_compile() -> dict[str, int]:
    """Compiler options for programs that are run once."""
    return QUICK


@pytest.fixture
def evaluate(x64: None) -> Callable[..., Any]:
    """The library's loss in float64, compiled: value, per-anchor values and gradients."""
    return _evaluate
