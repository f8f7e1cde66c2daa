"""What the walk costs: loops over the keys, copies of what belongs to them, memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl import losses

FACTORISED = ("mulsupcon", "mulsupcon_mean")
# Every size is its own, so that a shape tells what it belongs to.
B, K, L, D, CHUNK = 8, 1003, 5, 6, 16


def shapes(num_keys: int = K, dim: int = D, num_labels: int = L, dtype: Any = "float32") -> Any:
    """Anchors, keys and everything else, as in a step with a queue."""

    def array(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    rest = {
        "anchor_labels": array(B, num_labels, dtype="uint8"),
        "key_labels": array(num_keys, num_labels, dtype="uint8"),
        "key_valid": array(num_keys, dtype="bool"),
        "anchor_ids": array(B, dtype="int32"),
        "key_ids": array(num_keys, dtype="int32"),
    }
    return array(B, dim, dtype=dtype), array(num_keys, dim, dtype=dtype), rest


def without_ids(rest: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rest.items() if not name.endswith("ids")}


def equations(program: Any) -> Iterator[Any]:
    """Every equation of a program, those within loops and calls included."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(inner)


def loops(program: Any) -> int:
    return sum(equation.primitive.name in ("scan", "while") for equation in equations(program))


def program(
    anchors: Any, keys: Any, rest: Any, *, wrt: Any = 0, statistics: bool = False, **options: Any
) -> Any:
    """Value and gradient as a program of JAX."""

    def loss(z: Any, k: Any, rest: Any) -> Any:
        settings = {"chunk_size": CHUNK, "statistics": statistics} | options
        return losses.multi_positive_infonce(z, k, **rest, **settings)

    both = jax.value_and_grad(loss, argnums=wrt, has_aux=statistics)
    return jax.make_jaxpr(both)(anchors, keys, rest)


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_one_loop_for_anchors_two_with_keys(weighting: str, statistics: bool) -> None:
    anchors, keys, rest = shapes()
    options = {"weighting": weighting, "statistics": statistics}
    bare = without_ids(rest)
    assert loops(program(anchors, keys, bare, wrt=0, **options)) == 1
    assert loops(program(anchors, keys, bare, wrt=1, **options)) == 2
    assert loops(program(anchors, keys, bare, wrt=(0, 1), **options)) == 2
    # Ids give each anchor its own number of keys for each label: those are counted first, from
    # the labels alone.
    counted = 1 if weighting in FACTORISED else 0
    assert loops(program(anchors, keys, rest, wrt=0, **options)) == 1 + counted
    assert loops(program(anchors, keys, rest, wrt=(0, 1), **options)) == 2 + counted


@pytest.mark.parametrize("weighting", ["mulsupcon", "any"])
def test_keys_that_are_stopped_are_not_walked_again(weighting: str) -> None:
    anchors, keys, rest = shapes()

    def loss(z: Any, k: Any, rest: Any) -> Any:
        return losses.multi_positive_infonce(
            z, jax.lax.stop_gradient(k), **rest, weighting=weighting, chunk_size=CHUNK
        )

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    assert loops(jax.make_jaxpr(both)(anchors, keys, without_ids(rest))) == 1


@pytest.mark.parametrize("weighting", ["mulsupcon", "any"])
def test_only_the_segment_that_moves_is_walked_again(weighting: str) -> None:
    """The batch's keys, which are one chunk, have a gradient; the queue has none."""
    anchors, queue, rest = shapes()
    batch = jax.ShapeDtypeStruct((CHUNK, D), "float32")
    labels = jax.ShapeDtypeStruct((CHUNK, L), "uint8")

    def loss(z: Any, k: Any, q: Any, labels: Any, rest: Any) -> Any:
        rest = rest | {
            "key_labels": (labels, rest["key_labels"]),
            "key_valid": (None, rest["key_valid"]),
        }
        return losses.multi_positive_infonce(
            z, (k, q), **rest, weighting=weighting, chunk_size=CHUNK
        )

    for wrt, walks in (((0, 1), 1), ((0, 2), 2)):
        both = jax.value_and_grad(loss, argnums=wrt)
        found = jax.make_jaxpr(both)(anchors, batch, queue, labels, without_ids(rest))
        assert loops(found) == walks
        if wrt == (0, 1):
            assert biggest(found) <= K


def biggest(program: Any) -> int:
    """Elements of the largest array that is computed.

    Bits taken as another type are no copy (what is compiled of them is looked at below).
    """
    views = ("bitcast_convert_type", "optimization_barrier")
    sizes = [
        out.aval.size
        for equation in equations(program)
        for out in equation.outvars
        if equation.primitive.name not in views
    ]
    return max(sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_nothing_of_the_size_of_the_keys_is_computed(weighting: str, dtype: str) -> None:
    """No [B, K], no [K, D] and no [K, L] in another type: one vector [K] is the most."""
    anchors, keys, rest = shapes(dtype=dtype)
    for given in (rest, without_ids(rest)):
        for statistics in (False, True):
            found = program(anchors, keys, given, weighting=weighting, statistics=statistics, wrt=0)
            assert biggest(found) <= K
    # Where keys move, their gradient is put together and nothing else.
    assert biggest(program(anchors, keys, rest, weighting=weighting, wrt=(0, 1))) <= K * D


@pytest.mark.parametrize(
    ("weighting", "dtype", "ids"),
    [
        ("mulsupcon", "float32", False),
        ("mulsupcon", "bfloat16", True),
        ("any", "float32", True),
        ("jaccard", "bfloat16", False),
    ],
)
def test_compiled_program_copies_no_keys(weighting: str, dtype: str, ids: bool) -> None:
    """Of all that the compiler makes, only what it was given has K rows."""
    anchors, keys, rest = shapes(dtype=dtype)
    rest = rest if ids else without_ids(rest)

    def loss(z: Any, k: Any, rest: Any) -> Any:
        return losses.multi_positive_infonce(z, k, **rest, weighting=weighting, chunk_size=CHUNK)

    text = jax.jit(jax.value_and_grad(loss)).lower(anchors, keys, rest).compile().as_text()
    assert loops_of(text) == (2 if weighting == "mulsupcon" and ids else 1)
    made = {
        shape
        for shape, operation in re.findall(r"= (\w+\[[\d,]+\])\S* ([\w-]+)\(", text)
        if operation not in ("parameter", "get-tuple-element", "bitcast", "bitcast-convert")
    }
    assert any(f"[{B},{CHUNK}]" in shape for shape in made), "the pattern finds arrays"
    for rows in (f"[{K},{D}]", f"[{D},{K}]", f"[{B},{K}]", f"[{K},{B}]", f"[{K},{L}]"):
        assert not [shape for shape in made if rows in shape]
    if dtype == "bfloat16":
        assert f"f32[{K}," not in text


def loops_of(text: str) -> int:
    return len(re.findall(r" while\(", text))


def temporaries(
    weighting: str,
    wrt: Any,
    num_keys: int,
    num_labels: int = L,
    dtype: str = "float32",
    **options: Any,
) -> int:
    anchors, keys, rest = shapes(num_keys, num_labels=num_labels, dtype=dtype)

    def loss(z: Any, k: Any, rest: Any) -> Any:
        return losses.multi_positive_infonce(z, k, **rest, weighting=weighting, **options)

    both = jax.jit(jax.value_and_grad(loss, argnums=wrt))
    memory = both.lower(anchors, keys, without_ids(rest)).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.parametrize(
    ("weighting", "dtype"),
    [("mulsupcon", "float32"), ("mulsupcon", "bfloat16"), ("all", "float32")],
)
def test_memory_does_not_grow_with_the_keys(weighting: str, dtype: str) -> None:
    sizes = [
        temporaries(weighting, 0, num_keys, dtype=dtype, chunk_size=1024)
        for num_keys in (2**13, 2**16)
    ]
    assert abs(sizes[1] - sizes[0]) < 1024
    assert max(sizes) < 4 * B * 2**16 / 4, "a quarter of the scores"


def test_memory_of_a_gradient_in_the_keys_is_that_of_the_gradient() -> None:
    small, large = (temporaries("mulsupcon", 1, n, chunk_size=1024) for n in (2**13, 2**16))
    # The chunks' gradients, before they are put together.
    assert large - small < 1.05 * 4 * D * (2**16 - 2**13)


def test_the_number_of_labels_of_an_anchor_is_not_in_the_program() -> None:
    """Memory and time depend on shapes alone: a hundred labels cost what one does."""
    anchors, keys, _ = shapes()
    rng = np.random.default_rng(0)
    z = rng.normal(size=anchors.shape).astype("float32")
    k = rng.normal(size=keys.shape).astype("float32")
    run = jax.jit(
        lambda labels, key_labels: losses.multi_positive_infonce(
            z, k, labels, key_labels, chunk_size=CHUNK
        )
    )
    for share in (0.1, 1.0):
        labels, key_labels = (rng.random((n, L)) <= share for n in (B, K))
        assert np.isfinite(run(labels.astype("uint8"), key_labels.astype("uint8")))
    assert run._cache_size() == 1
    few, many = (temporaries("mulsupcon", 0, 2**13, n, chunk_size=256) for n in (8, 64))
    # Labels and class sums of a chunk, in float32, and of the anchors.
    assert many - few <= 4 * (64 - 8) * (2 * 256 + 4 * D + 6 * B)


@pytest.mark.parametrize(("rows", "labels"), [(1, 300), (8, 300), (256, 20)])
def test_chunks_chosen_from_shapes_bound_the_memory(rows: int, labels: int) -> None:
    """Few anchors make no large chunks: keys and labels of a chunk are held wide as well."""
    dim, keys = 64, 2**16
    shapes = [
        jax.ShapeDtypeStruct((rows, dim), "float32"),
        jax.ShapeDtypeStruct((keys, dim), "float32"),
        jax.ShapeDtypeStruct((rows, labels), "uint8"),
        jax.ShapeDtypeStruct((keys, labels), "uint8"),
    ]
    loss = jax.value_and_grad(losses.multi_positive_infonce)
    memory = jax.jit(loss).lower(*shapes).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 16e6
