"""Computing again instead of keeping: the same network, and less that is kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.models import ResNet

REMAT = ("none", "convolutions", "blocks")


def network(remat: Any, **fields: Any) -> tuple[Any, Any]:
    module = ResNet((2,), 2, "basic", "small", remat=remat, **fields).build(jnp.float64)
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 3), jnp.float64)
    variables = jax.jit(module.init, static_argnums=2)(jax.random.key(1), x, False)

    def loss(params: Any) -> Any:
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, changed = module.apply(given, x, True, mutable=["batch_stats"])
        return (y * jnp.arange(y.size).reshape(y.shape)).sum(), changed

    return variables, loss


def equal(ours: Any, theirs: Any, tolerance: float) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("remat", REMAT[1:])
def test_the_network_is_the_same(remat: str) -> None:
    (variables, loss), (plain_variables, plain) = network(remat), network("none")
    equal(variables, plain_variables, 0.0)
    ours, theirs = (
        jax.jit(jax.value_and_grad(function, has_aux=True))(plain_variables["params"])
        for function in (loss, plain)
    )
    assert abs(float(theirs[0][0])) > 1
    equal(ours, theirs, 1e-12)


@pytest.mark.usefixtures("x64")
def test_less_is_kept_for_the_backward_pass() -> None:
    kept = {}
    for remat in REMAT:
        variables, loss = network(remat)
        # What the backward pass holds of the forward pass are the leaves of its closure.
        backward = jax.eval_shape(
            lambda params, loss=loss: jax.vjp(loss, params, has_aux=True)[1], variables["params"]
        )
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(backward))
    # Of a block's ten or so arrays, two are results of convolutions, one is its input.
    assert kept["convolutions"] < 0.6 * kept["none"]
    assert kept["blocks"] < 0.7 * kept["convolutions"]
