"""Statistics of the global batch, or of each device's rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmlcl.models import Projection, ResNet
from jaxmlcl.models.layers import batch_norm
from jaxmlcl.sharding import MeshSpec, batch_sharding, replicated

MESH = MeshSpec(2, 4)


def apply(statistics: Any, x: Any, mesh: Any = None) -> tuple[Any, Any, Any]:
    """Output, statistics and gradient of a layer in training; on a mesh, or without one."""
    layer = batch_norm(True, jnp.float64, statistics)
    variables = layer.init(jax.random.key(0), x[:1])
    params = {"scale": jnp.linspace(0.5, 2, 5), "bias": jnp.linspace(-1, 1, 5)}
    stats = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables["batch_stats"])
    weights = jnp.sin(jnp.arange(x.size, dtype=jnp.float64)).reshape(x.shape)

    def loss(params: Any, x: Any) -> Any:
        y, new = layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return (y * weights).sum(), (y, new["batch_stats"])

    function = jax.value_and_grad(loss, (0, 1), has_aux=True)
    if mesh is None:
        (_, (y, new)), gradient = function(params, x)
        return y, new, gradient
    with jax.set_mesh(mesh):
        x = jax.device_put(x, batch_sharding(mesh))
        (_, (y, new)), gradient = jax.jit(function)(params, x)
    return y, new, gradient


def close(ours: Any, theirs: Any) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.fixture
def x() -> jax.Array:
    return 3 + 2 * jax.random.normal(jax.random.key(3), (24, 2, 3, 5), jnp.float64)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("statistics", ["global", "per_device"])
def test_on_one_device_both_are_flax_s(statistics: str, x: jax.Array) -> None:
    y, new, _ = apply(statistics, x)
    flax = nn.BatchNorm(False, momentum=0.9, epsilon=1e-5, dtype=jnp.float64)
    variables = flax.init(jax.random.key(0), x)
    params = {"scale": jnp.linspace(0.5, 2, 5), "bias": jnp.linspace(-1, 1, 5)}
    stats = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables["batch_stats"])
    given = {"params": params, "batch_stats": stats}
    expected, changed = flax.apply(given, x, mutable=["batch_stats"])
    close((y, new), (expected, changed["batch_stats"]))


@pytest.mark.usefixtures("x64")
def test_global_statistics_do_not_depend_on_the_mesh(x: jax.Array) -> None:
    close(apply("global", x, MESH.build(jax.devices()[:8])), apply("global", x))


@pytest.mark.usefixtures("x64")
def test_per_device_each_block_of_rows_is_a_batch_of_its_own(x: jax.Array) -> None:
    y, new, (by_params, by_x) = apply("per_device", x, MESH.build(jax.devices()[:8]))
    blocks = np.asarray(x).reshape(8, 3, 2, 3, 5)
    mean, variance = blocks.mean((1, 2, 3)), blocks.var((1, 2, 3))
    scale, bias = np.linspace(0.5, 2, 5), np.linspace(-1, 1, 5)

    def along(statistic: np.ndarray) -> np.ndarray:
        return statistic[:, None, None, None]

    expected = (blocks - along(mean)) / np.sqrt(along(variance) + 1e-5) * scale + bias
    np.testing.assert_allclose(y, expected.reshape(x.shape), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(new["mean"], 0.1 * mean.mean(0), rtol=1e-12)
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * variance.mean(0), rtol=1e-12)
    # The gradient: of eight batches of three rows, each by itself.
    weights = np.sin(np.arange(x.size, dtype=np.float64)).reshape(blocks.shape)

    def block_loss(block: Any, weight: Any) -> Any:
        centred = block - block.mean((0, 1, 2))
        deviation = jnp.sqrt((centred**2).mean((0, 1, 2)) + 1e-5)
        return ((centred / deviation * scale + bias) * weight).sum()

    own = jax.vmap(jax.grad(block_loss))(blocks, weights)
    np.testing.assert_allclose(by_x, own.reshape(x.shape), rtol=1e-10, atol=1e-10)
    assert by_params["scale"].shape == (5,)
    # And it is another network than with the statistics of all.
    assert np.abs(np.asarray(y) - np.asarray(apply("global", x)[0])).max() > 0.1


@pytest.mark.usefixtures("x64")
def test_per_device_only_the_running_statistics_travel(x: jax.Array) -> None:
    mesh = MESH.build(jax.devices()[:8])
    layer = batch_norm(True, jnp.float64, "per_device")
    variables = layer.init(jax.random.key(0), x[:1])

    def program(output: int, place: Any) -> str:
        def apply(x: jax.Array) -> Any:
            return layer.apply(variables, x, mutable=["batch_stats"])[output]

        with jax.set_mesh(mesh):
            jitted = jax.jit(apply, in_shardings=batch_sharding(mesh), out_shardings=place)
            return jitted.lower(x).compile().as_text()

    outputs, running = program(0, batch_sharding(mesh)), program(1, replicated(mesh))
    assert not any(kind in outputs for kind in ("all-reduce(", "all-gather("))
    assert "all-reduce" in running or "all-gather" in running


@pytest.mark.slow
def test_networks_take_the_choice_and_keep_their_names() -> None:
    x = jnp.ones((8, 4, 4, 3))
    for make, inputs in (
        (lambda s: ResNet((1,), 4, stem="small", statistics=s), x),
        (lambda s: Projection(8, statistics=s), jnp.ones((8, 6))),
    ):
        one, other = (
            make(statistics).build(jnp.float32).init(jax.random.key(0), inputs, False)
            for statistics in ("global", "per_device")
        )
        assert jax.tree.structure(one) == jax.tree.structure(other)
        with jax.set_mesh(MeshSpec(2, 1).build(jax.devices()[:2])):
            outputs = [
                make(statistics)
                .build(jnp.float32)
                .apply(
                    one,
                    inputs * jnp.arange(8.0).reshape(8, *[1] * (inputs.ndim - 1)),
                    True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.key(1)},
                )[0]
                for statistics in ("global", "per_device")
            ]
        assert not np.allclose(*outputs)
