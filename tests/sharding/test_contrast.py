"""The collective strategies give the one-device loss, and move what they promise to move.

Run in a process of its own, with 8 devices, where there are fewer.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxmlcl import losses, sharding
from jaxmlcl.losses import parts
from jaxmlcl.sharding import contrast
from tests.devices import check_devices, needs_eight, run_in_eight_devices, starts_eight

QUICK = {"xla_backend_optimization_level": 0}
B, Q, L, D = 16, 40, 6, 5


@starts_eight
def test_in_eight_devices() -> None:
    run_in_eight_devices(__file__)


def test_the_process_has_the_devices_it_asked_for() -> None:
    check_devices()


def mesh() -> jax.sharding.Mesh:
    return sharding.MeshSpec(data=4, fsdp=2).build()


def case(seed: int, queue: str, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Batch and queue; anchor 0 has no label, anchor 1 has all, anchor 2 is left out."""
    rng = np.random.default_rng(seed)

    def unit(rows: int) -> np.ndarray:
        x = rng.normal(size=(rows, D))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)

    labels = rng.integers(0, 2, (B, L)).astype(np.uint8)
    labels[0], labels[1] = 0, 1
    valid = {
        "full": np.ones(Q, bool),
        "filling": np.arange(Q) < 11,
        "empty": np.zeros(Q, bool),
    }[queue]
    old = unit(Q)
    old[~valid] = np.nan  # what is not there must not be looked at
    return {
        "anchors": unit(B),
        "keys": unit(B),
        "queue": old,
        "labels": labels,
        "queue_labels": rng.integers(0, 2, (Q, L)).astype(np.uint8),
        "valid": valid,
        "ids": np.arange(B),
        "queue_ids": rng.integers(-1, B, Q),
        "known": rng.random((B, L)) < 0.9,
        "queue_known": rng.random((Q, L)) < 0.9,
        "where": np.arange(B) != 2,
    }


def loss_of(function: Any, weighting: str, masks: bool, **options: Any) -> Any:
    """(anchors, keys, queue, rest) -> loss, statistics."""

    def loss(anchors: Any, keys: Any, queue: Any, rest: dict[str, Any]) -> Any:
        given: dict[str, Any] = {}
        if masks:
            given = {
                "anchor_ids": rest["ids"],
                "key_ids": (jnp.full(B, -1), rest["queue_ids"]),
                "label_mask": rest["known"],
                "key_label_mask": (rest["known"], rest["queue_known"]),
                "where": rest["where"],
            }
        return function(
            anchors,
            (keys, queue),
            rest["labels"],
            (rest["labels"], rest["queue_labels"]),
            key_valid=(None, rest["valid"]),
            weighting=weighting,
            statistics=True,
            temperature=0.2,
            **given,
            **options,
        )

    return loss


def gradient(loss: Any) -> Any:
    return jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=QUICK
    )


@functools.cache
def one_device(weighting: str, masks: bool) -> Any:
    return gradient(loss_of(losses.multi_positive_infonce, weighting, masks))


def split(arrays: dict[str, Any], replicated: bool) -> dict[str, Any]:
    rows = NamedSharding(mesh(), PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh(), PartitionSpec())
    return {
        name: jax.device_put(x, whole if replicated and name.startswith("queue") else rows)
        for name, x in arrays.items()
    }


def compare(weighting: str, masks: bool, strategy: str, replicated: bool, dtype: Any) -> None:
    function = functools.partial(
        sharding.multi_positive_infonce,
        mesh=mesh(),
        strategy=strategy,
        replicated=(False, replicated),
    )
    program = gradient(loss_of(function, weighting, masks))
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    for seed, queue in enumerate(("full", "filling", "empty")):
        arrays = case(seed, queue, dtype)
        own = [arrays.pop(name) for name in ("anchors", "keys", "queue")]
        (value, measured), grads = one_device(weighting, masks)(*own, arrays)
        placed = split(dict(zip(("anchors", "keys", "queue"), own, strict=True)), replicated)
        (sharded, sharded_measured), sharded_grads = program(
            *placed.values(), split(arrays, replicated)
        )
        assert sharded.dtype == dtype
        np.testing.assert_allclose(sharded, value, rtol=tolerance)
        for ours, theirs in zip(sharded_grads, grads, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
        assert sharded_measured.keys() == measured.keys()
        for name, figure in measured.items():
            np.testing.assert_allclose(
                sharded_measured[name], figure, rtol=1e3 * tolerance, atol=tolerance, err_msg=name
            )


@needs_eight
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strategy", sharding.STRATEGIES)
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_equal_to_one_device(weighting: str, strategy: str) -> None:
    compare(weighting, False, strategy, False, np.float64)


@needs_eight
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strategy", sharding.STRATEGIES)
@pytest.mark.parametrize("weighting", ["mulsupcon_mean", "jaccard"])
def test_equal_to_one_device_with_every_mask(weighting: str, strategy: str) -> None:
    compare(weighting, True, strategy, False, np.float64)


@needs_eight
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strategy", sharding.STRATEGIES)
def test_equal_to_one_device_with_a_replicated_queue(strategy: str) -> None:
    compare("mulsupcon", True, strategy, True, np.float64)


@needs_eight
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strategy", sharding.STRATEGIES)
@pytest.mark.parametrize("weighting", ["mulsupcon", "mulsupcon_mean"])
def test_equal_to_one_device_without_reduce_scatters(
    weighting: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where processes on CPUs talk by Gloo, whose reduce-scatter is wrong at times.
    monkeypatch.setattr(contrast, "_by_gloo", lambda share: share > 0)
    compare(weighting, True, strategy, False, np.float64)
    arrays = case(0, "full")
    own = [arrays.pop(name) for name in ("anchors", "keys", "queue")]
    function = functools.partial(
        sharding.multi_positive_infonce, mesh=mesh(), strategy=strategy, replicated=(False, False)
    )
    program = gradient(loss_of(function, weighting, True))
    placed = split(dict(zip(("anchors", "keys", "queue"), own, strict=True)), False)
    text = program.lower(*placed.values(), split(arrays, False)).compile().as_text()
    assert "collective-permute" in text if strategy == "ring" else "all-reduce" in text
    assert "reduce-scatter" not in text


@needs_eight
@pytest.mark.parametrize("strategy", sharding.STRATEGIES)
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_equal_to_one_device_in_float32(weighting: str, strategy: str) -> None:
    compare(weighting, False, strategy, False, np.float32)


@needs_eight
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strategy", ["auto", *sharding.STRATEGIES])
def test_class_sums_and_rows(strategy: str) -> None:
    arrays = split(case(3, "full"), False)

    def loss(function: Any, arrays: dict[str, Any], **options: Any) -> Any:
        keys = jnp.concatenate([arrays["keys"], arrays["queue"]])
        labels = jnp.concatenate([arrays["labels"], arrays["queue_labels"]])
        return function(
            arrays["anchors"],
            keys,
            arrays["labels"],
            labels,
            class_sums=losses.class_sums(keys, labels),
            reduce=False,
            **options,
        )

    expected = jax.jit(functools.partial(loss, losses.multi_positive_infonce))(arrays)
    rows = jax.jit(
        lambda arrays: loss(sharding.multi_positive_infonce, arrays, mesh=mesh(), strategy=strategy)
    )(arrays)
    assert rows.shape == (B,)
    np.testing.assert_allclose(rows, expected, rtol=1e-12)


COLLECTIVE = re.compile(
    r"= \(?([^=]*?)\)? (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)"
    r"(?:-start)?\("
)
BYTES = {"f32": 4, "s32": 4, "u8": 1, "pred": 1, "f64": 8, "bf16": 2}


def collectives(strategy: str, weighting: str, rows: int, capacity: int) -> dict[str, list[int]]:
    """Bytes of every collective's result in value and gradient of the loss alone, by kind."""
    labels, dim = 24, 32
    place = NamedSharding(mesh(), PartitionSpec(("data", "fsdp")))

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def loss(z: Any, k: Any, queue: Any, y: Any, queue_labels: Any, valid: Any) -> Any:
        return sharding.multi_positive_infonce(
            z,
            (k, queue),
            y,
            (y, queue_labels),
            key_valid=(None, valid),
            mesh=mesh(),
            strategy=strategy,
            weighting=weighting,
        )

    compiled = (
        jax.jit(
            jax.value_and_grad(loss),
            out_shardings=(NamedSharding(mesh(), PartitionSpec()), place),
        )
        .lower(
            array(rows, dim),
            array(rows, dim),
            array(capacity, dim),
            array(rows, labels, dtype=jnp.uint8),
            array(capacity, labels, dtype=jnp.uint8),
            array(capacity, dtype=bool),
        )
        .compile()
    )
    found: dict[str, list[int]] = {}
    for result, kind in COLLECTIVE.findall(compiled.as_text()):
        size = 0
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            size += BYTES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
        found.setdefault(kind, []).append(size)
    return found


@needs_eight
@pytest.mark.parametrize("weighting", ["mulsupcon", "any"])
def test_gather_anchors_moves_nothing_of_the_keys(weighting: str) -> None:
    small = collectives("gather_anchors", weighting, 64, 1024)
    large = collectives("gather_anchors", weighting, 64, 4096)
    assert small == large, "nothing depends on the number of keys"
    assert set(small) == {"all-gather", "all-reduce", "reduce-scatter"}
    pairwise = weighting == "any"
    # Anchors (labels with them where pairs are weighed), and cotangents of sums per anchor.
    assert sum(small["all-gather"]) == 4 * 64 * 32 + 4 * 64 * (24 + 2 if pairwise else 1)
    # Maxima [B], scalars, class sums and counts.
    assert sum(small["all-reduce"]) <= 4 * (64 + 2) + (0 if pairwise else 4 * (24 * 32 + 24))
    # A device's rows: the anchors' gradient, and sums per anchor.
    assert sum(small["reduce-scatter"]) == 4 * 8 * 32 + 4 * 8 * (4 if pairwise else 1)


@needs_eight
def test_gather_keys_moves_keys_and_no_labels() -> None:
    found = collectives("gather_keys", "mulsupcon", 64, 1024)
    assert set(found) == {"all-gather", "all-reduce"}
    assert sum(found["all-gather"]) == 4 * (64 + 1024) * 32 + 1024
    assert sum(found["all-reduce"]) <= 4 * (24 * 32 + 24 + 2)


@needs_eight
def test_ring_moves_a_device_share_at_a_time() -> None:
    found = collectives("ring", "mulsupcon", 64, 1024)
    assert set(found) == {"collective-permute", "all-reduce"}
    # The first passing and the one in the loop, each of keys, queue and validity.
    assert Counter(found["collective-permute"]) == {4 * 8 * 32: 2, 4 * 128 * 32: 2, 128: 2}


@needs_eight
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("strategy", sharding.STRATEGIES)
@pytest.mark.parametrize("masks", [False, True])
def test_other_meshes_and_keys_that_are_everywhere(
    masks: bool, strategy: str, devices: int
) -> None:
    """Two devices have nobody between them; 37 keys that are on each do not divide."""
    few = sharding.MeshSpec().build(jax.devices()[:devices])
    whole, rows = (NamedSharding(few, PartitionSpec(*p)) for p in ((), (("data", "fsdp"),)))
    size, capacity = 12, 37
    arrays = {
        name: x[: size if x.shape[0] == B else capacity] for name, x in case(5, "filling").items()
    }

    def loss(function: Any, options: dict[str, Any], arrays: dict[str, Any]) -> Any:
        if masks:
            options = {
                **options,
                "anchor_ids": arrays["ids"],
                "key_ids": (jnp.full(size, -1), arrays["queue_ids"]),
            }
        program = loss_of(function, "mulsupcon", False, **options)
        return jax.value_and_grad(
            lambda z: program(z, arrays["keys"], arrays["queue"], arrays), has_aux=True
        )(arrays["anchors"])

    expected = jax.jit(functools.partial(loss, losses.multi_positive_infonce, {}))(arrays)
    placed = {
        name: jax.device_put(x, rows if x.shape[0] == size else whole) for name, x in arrays.items()
    }
    for replicated in ((False, True), (True, True)):
        options = {"mesh": few, "strategy": strategy, "replicated": replicated}
        found = jax.jit(
            functools.partial(loss, sharding.multi_positive_infonce, options),
            compiler_options=QUICK,
        )(placed)
        assert found[0][1].keys() == expected[0][1].keys()
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def problem(rows: int, capacity: int, weighting: str = "mulsupcon", **masks: Any) -> Any:
    return parts.prepare(
        jnp.ones((rows, 8)),
        (jnp.ones((rows, 8)), jnp.ones((capacity, 8))),
        np.ones((rows, 4), np.uint8),
        (np.ones((rows, 4), np.uint8), np.ones((capacity, 4), np.uint8)),
        weighting=weighting,
        **masks,
    )


def test_counted_bytes_by_hand() -> None:
    counted = sharding.strategy_bytes(problem(16, 64), (False, False), 4)
    # Keys: 16 + 64 rows of 8 float32; three quarters of them come from elsewhere.
    assert counted["gather_keys"] == counted["ring"] == 80 * 8 * 4 * 3 // 4
    # Anchors there, their gradient back, maximum and total of each.
    assert counted["gather_anchors"] == (2 * 16 * 8 * 4 + 2 * 16 * 4) * 3 // 4
    # A queue that is everywhere does not travel.
    there = sharding.strategy_bytes(problem(16, 64), (False, True), 4)
    assert there["gather_keys"] == 16 * 8 * 4 * 3 // 4
    # Labels travel with what they weigh.
    weighed = sharding.strategy_bytes(problem(16, 64, "any"), (False, False), 4)
    assert weighed["gather_keys"] == 80 * (8 * 4 + 4) * 3 // 4
    # So do the weights of anchors, where ids make them differ, and ids with both.
    ids = {"anchor_ids": np.arange(16), "key_ids": (np.arange(16), np.arange(64))}
    counted = sharding.strategy_bytes(problem(16, 64, **ids), (False, False), 4)
    assert counted["gather_keys"] == 80 * (8 * 4 + 4 + 4) * 3 // 4
    assert counted["gather_anchors"] == 16 * (2 * 8 * 4 + 4 + 4 * 4 + 5 * 4) * 3 // 4


@needs_eight
def test_auto_takes_the_fewest_bytes() -> None:
    few_anchors = collectives("auto", "mulsupcon", 64, 4096)
    assert few_anchors == collectives("gather_anchors", "mulsupcon", 64, 4096)
    many_anchors = collectives("auto", "mulsupcon", 1024, 64)
    assert many_anchors == collectives("gather_keys", "mulsupcon", 1024, 64)


@needs_eight
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": np.ones((12, D))}, r"anchors has shape \[12, 5\]; expected \[B, D\] with B"),
        ({"queue": np.ones((30, D))}, r"keys\[1\] has shape \[30, 5\]; expected \[K, D\] with K"),
        ({"strategy": "gather"}, r"strategy is 'gather'; expected one of auto, gather_keys"),
        ({"replicated": (True,)}, r"replicated has 1 entries; expected 2"),
        ({"replicated": [False, True]}, r"replicated is \[False, True\]; expected a bool"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arrays = case(0, "full") | change
    rows, capacity = len(arrays["anchors"]), len(arrays["queue"])
    with pytest.raises(ValueError, match=message):
        sharding.multi_positive_infonce(
            arrays["anchors"],
            (arrays["keys"], arrays["queue"]),
            np.ones((rows, L)),
            (arrays["labels"], np.ones((capacity, L))),
            mesh=mesh(),
            strategy=arrays.get("strategy", "auto"),
            replicated=arrays.get("replicated", False),
        )


def test_one_device_needs_no_mesh() -> None:
    arrays = case(0, "full", np.float32)
    loss = loss_of(sharding.multi_positive_infonce, "mulsupcon", False)
    expected = loss_of(losses.multi_positive_infonce, "mulsupcon", False)
    own = [arrays.pop(name) for name in ("anchors", "keys", "queue")]
    assert loss(*own, arrays)[0] == expected(*own, arrays)[0]
