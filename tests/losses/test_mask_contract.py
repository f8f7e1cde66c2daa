"""Losses of other papers, written with the masks and walks that are there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl import losses

pytestmark = pytest.mark.usefixtures("x64")
CHUNKS = [None, 2]


def check(golden: dict[str, Any], name: str, loss: Any, wrt: str, place: tuple[int, ...]) -> None:
    """Value and gradient of a golden entry, to 1e-9."""
    entry = golden[name]
    inputs = {key: jnp.asarray(np.array(x, float)) for key, x in entry["inputs"].items()}
    value, grad = jax.jit(
        jax.value_and_grad(lambda x: loss(**(inputs | {wrt: x}))),
        compiler_options={"xla_backend_optimization_level": 0},
    )(inputs[wrt])
    np.testing.assert_allclose(value, entry["value"], rtol=0, atol=1e-9)
    assert entry["grad"]["wrt"] == f"{wrt}[{','.join(map(str, place))}]"
    np.testing.assert_allclose(grad[place], entry["grad"]["value"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("name", ["mulcon_code", "mulcon_paper", "mulcon_valid"])
def test_mulcon(golden: dict[str, Any], name: str, chunk_size: int | None) -> None:
    """One row for each (image, label), itself left out: MulCon equation 8."""

    def loss(Z_raw: jax.Array, Y: jax.Array, tau: jax.Array) -> jax.Array:
        rows, labels = Y.size, Y.shape[1]
        z = losses.normalize(Z_raw).reshape(rows, -1)
        active, own = Y.reshape(-1) > 0, jnp.tile(jnp.eye(labels), (Y.shape[0], 1))
        options: dict[str, Any] = {
            "temperature": tau,
            "key_valid": active,
            "where": active,
            "anchor_ids": jnp.arange(rows),
            "key_ids": jnp.arange(rows),
            "chunk_size": chunk_size,
        }
        if name == "mulcon_code":
            return losses.multi_positive_infonce(z, z, own, own, **options)
        values = losses.multi_positive_infonce(z, z, own, own, reduce=False, **options)
        if name == "mulcon_paper":
            return values.sum()
        return values.sum() / (Y * (Y.sum(0) > 1)).sum()

    check(golden, name, loss, "Z_raw", (1, 0, 0))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_supervised_contrast_of_images(golden: dict[str, Any], chunk_size: int | None) -> None:
    """MulCon's ablation: a shared label makes a positive, the image itself is left out."""

    def loss(z_raw: jax.Array, Y: jax.Array, tau: jax.Array) -> jax.Array:
        z, rows = losses.normalize(z_raw), jnp.arange(Y.shape[0])
        return losses.multi_positive_infonce(
            z,
            z,
            Y,
            Y,
            weighting="any",
            temperature=tau,
            anchor_ids=rows,
            key_ids=rows,
            reduce=False,
            chunk_size=chunk_size,
        ).mean()

    check(golden, "mulcon_backbone_scl", loss, "z_raw", (1, 0))


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("denominator", ["paper", "with_pos", "pyldl"])
def test_conle(golden: dict[str, Any], denominator: str, chunk_size: int | None) -> None:
    """Self and positive share an id and leave the denominator: ConLE equations 6-7."""

    def loss(Z: jax.Array, Q: jax.Array, tau: jax.Array) -> jax.Array:
        z, q = losses.normalize(Z), losses.normalize(Q)
        both, rows = jnp.concatenate([z, q]), jnp.tile(jnp.arange(Z.shape[0]), 2)
        log_sum = losses.log_denominator(
            both, both, temperature=tau, anchor_ids=rows, key_ids=rows, chunk_size=chunk_size
        )
        score = jnp.tile((z * q).sum(-1) / tau, 2)
        if denominator != "paper":
            log_sum = jnp.logaddexp(log_sum, score if denominator == "with_pos" else 0)
        return (log_sum - score).sum() / Z.shape[0]

    check(golden, f"conle_con_{denominator}", loss, "Z", (1, 0))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_label_distributions(golden: dict[str, Any], chunk_size: int | None) -> None:
    """MulSupConLD's weights: degrees in place of labels, mean over labelled anchors."""
    assert set(golden["recon_mulsupconld_label_mean"]["inputs"]) >= {"q_raw", "k_raw", "D"}

    def loss(q_raw: jax.Array, k_raw: jax.Array, D: jax.Array, **rest: jax.Array) -> jax.Array:
        values = losses.multi_positive_infonce(
            losses.normalize(q_raw),
            losses.normalize(k_raw),
            D,
            rest["D_keys"],
            temperature=rest["tau"],
            chunk_size=chunk_size,
            reduce=False,
        )
        return values.sum() / (D.sum(-1) > 0).sum()

    check(golden, "recon_mulsupconld_label_mean", loss, "q_raw", (0, 1))


@pytest.mark.parametrize("chunk_size", [None, 2, 7])
def test_denominator_of_nothing(chunk_size: int | None) -> None:
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))

    def total(z: jax.Array) -> jax.Array:
        found = losses.log_denominator(z, z, key_valid=jnp.zeros(4, bool), chunk_size=chunk_size)
        return jnp.where(found == -jnp.inf, 0, found).sum()

    value, grad = jax.value_and_grad(total)(z)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": np.ones((3, 4))}, r"keys has shape \[3, 4\]; expected \[K, D\] with D = 2"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"anchor_ids": np.arange(3)}, "key_ids is None; expected both"),
        ({"key_valid": np.ones(2)}, r"key_valid has shape \[2\]; expected \[K\] with K = 3"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.log_denominator(**({"anchors": np.ones((3, 2)), "keys": np.ones((3, 2))} | change))
