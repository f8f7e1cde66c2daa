"""Losses on 8 devices equal losses on one; run in a process of its own where there are fewer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmlcl import losses, queue
from tests.devices import check_devices, needs_eight, run_in_eight_devices, starts_eight


@starts_eight
def test_in_eight_devices() -> None:
    run_in_eight_devices(__file__)


def test_the_process_has_the_devices_it_asked_for() -> None:
    check_devices()


def shardings() -> tuple[NamedSharding, NamedSharding]:
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    return rows, NamedSharding(mesh, PartitionSpec())


def problem() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "anchors": np.array(losses.normalize(rng.normal(size=(16, 5)))),
        "keys": np.array(losses.normalize(rng.normal(size=(40, 5)))),
        "anchor_labels": rng.integers(0, 2, (16, 6)).astype(np.uint8),
        "key_labels": rng.integers(0, 2, (40, 6)).astype(np.uint8),
        "key_valid": rng.integers(0, 4, 40) > 0,
        "anchor_ids": np.arange(16),
        "key_ids": rng.integers(-1, 16, 40),
        "where": np.arange(16) != 3,
    }


@needs_eight
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("weighting", "with_ids"),
    [*((name, False) for name in losses.WEIGHTINGS), ("mulsupcon", True), ("any", True)],
)
def test_sharded_equals_one_device(
    weighting: str, with_ids: bool, quick_compile: dict[str, int]
) -> None:
    rows, replicated = shardings()
    case = problem()
    if not with_ids:
        del case["anchor_ids"], case["key_ids"]

    def both(anchors: jax.Array, keys: jax.Array, rest: dict[str, jax.Array]) -> Any:
        value, grads = jax.value_and_grad(
            lambda z, k: losses.multi_positive_infonce(z, k, weighting=weighting, **rest),
            argnums=(0, 1),
        )(anchors, keys)
        return (value, losses.pair_statistics(weighting=weighting, **rest)), grads

    anchors, keys = case.pop("anchors"), case.pop("keys")
    (value, statistics), grads = jax.jit(both, compiler_options=quick_compile)(anchors, keys, case)
    sharded = jax.device_put((anchors, keys, case), rows)
    (sharded_value, sharded_statistics), sharded_grads = jax.jit(
        both, out_shardings=(replicated, (rows, rows)), compiler_options=quick_compile
    )(*sharded)
    np.testing.assert_allclose(sharded_value, value, rtol=1e-12)
    for a, b in zip(sharded_grads, grads, strict=True):
        assert len(a.sharding.device_set) == 8
        np.testing.assert_allclose(a, b, atol=1e-13)
    for name, figure in statistics.items():
        np.testing.assert_allclose(sharded_statistics[name], figure, rtol=1e-6)


@needs_eight
@pytest.mark.parametrize("name", ["binary_cross_entropy", "focal", "asymmetric"])
def test_classification_sharded_equals_one_device(name: str) -> None:
    rows, _ = shardings()
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(16, 3)).astype(np.float32), rng.integers(0, 2, (16, 3))
    both = jax.jit(jax.value_and_grad(getattr(losses, name)))
    value, grad = both(logits, labels)
    sharded_value, sharded_grad = both(*jax.device_put((logits, labels), rows))
    np.testing.assert_allclose(sharded_value, value, rtol=1e-6)
    np.testing.assert_allclose(sharded_grad, grad, atol=1e-7)


@needs_eight
def test_sharded_queue_equals_one_device() -> None:
    rows, replicated = shardings()
    places = queue.Queue(keys=rows, labels=rows, ids=rows, count=replicated)
    one = queue.init(24, 4, 3)
    many = jax.jit(lambda: queue.init(24, 4, 3), out_shardings=places)()
    np.testing.assert_allclose(many.keys, one.keys, atol=1e-6)
    many = jax.device_put(one, places)
    add = jax.jit(lambda *a: queue.enqueue(*a))
    add_sharded = jax.jit(lambda *a: queue.enqueue(*a), donate_argnums=0, out_shardings=places)
    for step in range(5):
        rng = np.random.default_rng(step)
        batch = (
            rng.normal(size=(16, 4)).astype(np.float32),
            rng.integers(0, 2, (16, 3)).astype(np.uint8),
            np.arange(16, dtype=np.int32) + 16 * step,
        )
        one = add(one, *batch)
        many = add_sharded(many, *jax.device_put(batch, rows))
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(many.keys.sharding.device_set) == 8
    assert add_sharded._cache_size() == 1
    assert jnp.all(queue.contents(many)[3])
