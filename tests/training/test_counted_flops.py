"""Counted FLOPs, by which stages are given equal budgets, are those of no machine."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxmlcl.methods import Classification
from jaxmlcl.models import ResNet, convolution
from jaxmlcl.training.duration import steps
from jaxmlcl.training.objective import BatchSpec
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.step import count_flops


def counted(batch_size: int = 4) -> float:
    stage = Stage(Classification(encoder=ResNet((1, 1), channels=4)), steps(1))
    spec = BatchSpec(
        inputs=jax.ShapeDtypeStruct((batch_size, 12, 12, 3), jnp.float32),
        labels=jax.ShapeDtypeStruct((batch_size, 5), jnp.float32),
        step_samples=batch_size,
    )
    params, state = jax.eval_shape(lambda key: stage.objective.init(key, spec), jax.random.key(0))
    return count_flops(stage, spec, params, state)


def test_the_form_of_a_convolution_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    here = counted()
    for answer in (True, False):
        monkeypatch.setattr(convolution, "by_patches", lambda *_, answer=answer: answer)
        assert counted() == here


def test_a_convolution_counts_what_lies_on_the_image() -> None:
    """3 x 3 over 2 x 2 pixels: each output sees all four pixels, not nine."""
    x = jax.ShapeDtypeStruct((1, 2, 2, 16), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.float32)

    def flops() -> float:
        # A function of its own each time: what was traced before would be taken again.
        costs: Any = jax.jit(lambda *of: convolution.convolve(*of)).lower(x, kernel).cost_analysis()
        return float(costs["flops"])

    with convolution.as_convolutions():
        assert flops() == 2 * 4 * 4 * 16 * 16
    assert flops() >= 2 * 4 * 9 * 16 * 16
