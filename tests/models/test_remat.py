"""Computing again instead of keeping: the same network, and less that is kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.models import ResNet, ViT
from jaxmlcl.models.convolution import by_patches

# On a CPU the first one's convolutions are products of patches, the second one's are XLA's.
NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "patches": (ResNet((2,), 2, "basic", "small"), (4, 4, 4, 3)),
    "convolutions": (ResNet((2,), 8, "basic", "small"), (4, 8, 8, 3)),
    "vit": (ViT(4, 8, 1, 2, dropout=0.5), (4, 16, 16, 3)),
}


def network(name: str, remat: Any) -> tuple[Any, Any]:
    """A function that makes the variables, and one of these that gives loss and statistics."""
    spec, shape = NETWORKS[name]
    module = dataclasses.replace(spec, remat=remat).build(jnp.float64)
    x = np.random.default_rng(0).normal(size=shape)

    def init() -> Any:
        return module.init(jax.random.key(1), x, False)

    def loss(params: Any, variables: Any) -> Any:
        # What is dropped must be the same when it is computed again.
        rngs = {"dropout": jax.random.key(2)}
        given = {**variables, "params": params}
        y, changed = module.apply(given, x, True, mutable=["batch_stats"], rngs=rngs)
        return (y * jnp.arange(y.size).reshape(y.shape)).sum(), changed

    return init, loss


def equal(ours: Any, theirs: Any, tolerance: float) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "remat"),
    [
        pytest.param("patches", "convolutions", marks=pytest.mark.slow),
        pytest.param("patches", "blocks", marks=pytest.mark.slow),
        pytest.param("convolutions", "convolutions", marks=pytest.mark.slow),
        ("vit", "blocks"),
    ],
)
def test_the_network_is_the_same(name: str, remat: str) -> None:
    (init, loss), (plain_init, plain) = network(name, remat), network(name, "none")
    variables = jax.jit(plain_init)()
    equal(jax.jit(init)(), variables, 0.0)
    ours, theirs = (
        jax.jit(jax.value_and_grad(function, has_aux=True))(variables["params"], variables)
        for function in (loss, plain)
    )
    assert abs(float(theirs[0][0])) > 1
    equal(ours, theirs, 1e-12)


def kept(name: str, remat: str) -> int:
    """Numbers that the backward pass holds of the forward pass: the leaves of its closure."""
    init, loss = network(name, remat)

    def backward() -> Any:
        variables = init()
        return jax.vjp(lambda params: loss(params, variables), variables["params"], has_aux=True)[1]

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["patches", "convolutions"])
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    spec, (*images, _) = NETWORKS[name]
    channels = spec.channels
    patches = by_patches((*images, channels), (3, 3, channels, channels))
    assert patches == (name == "patches" and jax.default_backend() == "cpu")
    # Of a block's ten or so arrays, two are results of convolutions, one is its input.
    convolutions = kept(name, "convolutions")
    assert convolutions < 0.6 * kept(name, "none")
    assert kept(name, "blocks") < 0.7 * convolutions


@pytest.mark.usefixtures("x64")
def test_less_of_a_vision_transformer_is_kept_for_the_backward_pass() -> None:
    # Of a block's many arrays, those of the attention and the widened ones, one is its input.
    assert kept("vit", "blocks") < 0.2 * kept("vit", "none")
