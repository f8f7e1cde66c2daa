"""What holds for any data: masks drop, order and chunks do not matter, copies count as they should.

The shapes are few, so that little is compiled; everything else is drawn.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmlcl import losses

FACTORISED = ("mulsupcon", "mulsupcon_mean")
B, K, L, D, DROPPED = 4, 9, 3, 3, 3
T = 0.5
QUICK = {"xla_backend_optimization_level": 0}

weightings = pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def cases(draw: Any) -> dict[str, np.ndarray]:
    """Arrays with everything that is rare in life: empty and full label sets, equal keys."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.1, 0.5, 0.9]))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    keys = rng.normal(size=(K, D)) * scale
    if draw(st.booleans()):
        keys[1] = keys[0]
    return {
        "anchors": rng.normal(size=(B, D)),
        "keys": keys,
        "anchor_labels": (rng.random((B, L)) < share).astype(np.float64),
        "key_labels": (rng.random((K, L)) < share).astype(np.float64),
    }


def subset(size: int, taken: int) -> st.SearchStrategy[np.ndarray]:
    """Which of `size` rows are kept, when `taken` are dropped."""
    return st.permutations(range(size)).map(lambda order: np.isin(np.arange(size), order[taken:]))


@functools.cache
def compiled(weighting: str, chunk_size: int | None, copies: int = 1) -> Any:
    """Value, rows, gradients; with `copies` every key stands there that often."""

    def everything(z: Any, k: Any, labels: Any, key_labels: Any, masks: Any) -> Any:
        def loss(z: Any, k: Any, reduce: bool = True) -> Any:
            keys, of_keys = jnp.tile(k, (copies, 1)), jnp.tile(key_labels, (copies, 1))
            return losses.multi_positive_infonce(
                z,
                keys,
                labels,
                of_keys,
                weighting=weighting,
                temperature=T,
                chunk_size=chunk_size,
                reduce=reduce,
                **masks,
            )

        value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(z, k)
        return value, loss(z, k, reduce=False), gradients

    return jax.jit(everything, compiler_options=QUICK)


def run(
    weighting: str,
    case: dict[str, np.ndarray],
    chunk_size: int | None = 4,
    copies: int = 1,
    **masks: Any,
) -> Any:
    with jax.enable_x64(True):
        found = compiled(weighting, chunk_size, copies)(*case.values(), masks)
        return jax.tree.map(np.asarray, found)


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11), a, b)


@weightings
@quick
@given(case=cases(), valid=subset(K, DROPPED))
def test_invalid_keys_are_as_if_removed(
    weighting: str, case: dict[str, np.ndarray], valid: np.ndarray
) -> None:
    fewer = case | {name: case[name][valid] for name in ("keys", "key_labels")}
    value, rows, (to_anchors, to_keys) = run(weighting, fewer)
    spoiled = case | {
        name: np.where(valid[:, None], case[name], np.nan) for name in ("keys", "key_labels")
    }
    masked, masked_rows, (of_anchors, of_keys) = run(weighting, spoiled, key_valid=valid)
    close((masked, masked_rows, of_anchors, of_keys[valid]), (value, rows, to_anchors, to_keys))
    assert not of_keys[~valid].any()


@weightings
@quick
@given(case=cases(), kept=subset(B, 1))
def test_dropped_anchors_are_as_if_removed(
    weighting: str, case: dict[str, np.ndarray], kept: np.ndarray
) -> None:
    sides = ("anchors", "anchor_labels")
    value, rows, (to_anchors, to_keys) = run(
        weighting, case | {name: case[name][kept] for name in sides}
    )
    spoiled = case | {name: np.where(kept[:, None], case[name], np.nan) for name in sides}
    masked, masked_rows, (of_anchors, of_keys) = run(weighting, spoiled, where=kept)
    close(
        (masked, masked_rows[kept], of_anchors[kept], of_keys), (value, rows, to_anchors, to_keys)
    )
    assert not masked_rows[~kept].any()
    assert not of_anchors[~kept].any()


@weightings
@quick
@given(case=cases(), order=st.permutations(range(K)))
def test_order_of_keys_does_not_matter(
    weighting: str, case: dict[str, np.ndarray], order: list[int]
) -> None:
    moved = case | {name: case[name][order] for name in ("keys", "key_labels")}
    value, rows, (to_anchors, to_keys) = run(weighting, case)
    again, rows_again, (of_anchors, of_keys) = run(weighting, moved)
    close((again, rows_again, of_anchors, of_keys), (value, rows, to_anchors, to_keys[order]))


def weight_of_rows(weighting: str, case: dict[str, np.ndarray]) -> np.ndarray:
    """sum_p W_ip / n_i, what log_sum_i is multiplied by."""
    labels, of_keys = case["anchor_labels"], case["key_labels"]
    shared = labels @ of_keys.T
    if weighting in FACTORISED:
        carried = (labels * of_keys.any(0)).sum(1)
        sizes = labels.sum(1)
        return carried / np.maximum(sizes, 1) if weighting == "mulsupcon_mean" else carried
    either = labels.sum(1)[:, None] + of_keys.sum(1)[None] - shared
    index = np.where(either > 0, shared / np.maximum(either, 1), 1)
    weights = {"any": (shared > 0) * 1.0, "all": (index == 1) * 1.0, "jaccard": index}[weighting]
    positive = weights >= 0.5
    return (weights * positive).sum(1) / np.maximum(positive.sum(1), 1)


@weightings
@quick
@given(case=cases())
def test_copies_of_every_key_add_a_logarithm(weighting: str, case: dict[str, np.ndarray]) -> None:
    """Weights are shared among the copies; each denominator is multiplied by their number."""
    _, rows, (to_anchors, to_keys) = run(weighting, case)
    _, twice, (of_anchors, of_keys) = run(weighting, case, copies=2)
    close(twice, rows + weight_of_rows(weighting, case) * np.log(2))
    # The gradient of a key is shared among its copies, and here added up again.
    close((of_anchors, of_keys), (to_anchors, to_keys))


@pytest.mark.parametrize("chunk_size", [None, *range(1, K + 2)])
def test_chunks_change_nothing(chunk_size: int | None) -> None:
    """Of a weighting that factorises and one that does not, in turn."""
    weighting = "mulsupcon" if (chunk_size or 0) % 2 else "jaccard"

    @quick
    @given(case=cases(), valid=subset(K, DROPPED))
    def check(case: dict[str, np.ndarray], valid: np.ndarray) -> None:
        close(
            run(weighting, case, chunk_size, key_valid=valid),
            run(weighting, case, 4, key_valid=valid),
        )

    check()


@weightings
@quick
@given(
    case=cases(),
    valid=subset(K, DROPPED),
    kept=subset(B, 1),
    seed=st.integers(0, 2**32 - 1),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_what_is_masked_has_no_effect(
    weighting: str,
    case: dict[str, np.ndarray],
    valid: np.ndarray,
    kept: np.ndarray,
    seed: int,
    bad: float,
) -> None:
    """All masks at once: to the last bit."""
    rng = np.random.default_rng(seed)
    masks: dict[str, Any] = {
        "key_valid": valid,
        "where": kept,
        "label_mask": rng.random((B, L)) < 0.7,
        "key_label_mask": rng.random((K, L)) < 0.7,
        "anchor_ids": rng.integers(-1, 4, B),
        "key_ids": rng.integers(-1, 4, K),
    }
    spoiled = {
        "anchors": np.where(kept[:, None], case["anchors"], bad),
        "keys": np.where(valid[:, None], case["keys"], bad),
        "anchor_labels": np.where(masks["label_mask"] & kept[:, None], case["anchor_labels"], bad),
        "key_labels": np.where(masks["key_label_mask"] & valid[:, None], case["key_labels"], bad),
    }
    shown, hidden = run(weighting, case, **masks), run(weighting, spoiled, **masks)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(shown))
    jax.tree.map(np.testing.assert_array_equal, hidden, shown)
