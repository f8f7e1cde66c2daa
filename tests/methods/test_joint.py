"""The joint objective is the sum of its two parts, on one encoder and MulSupCon's state."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.config import from_json, override, to_json
from jaxmlcl.data.augment import ZeroMask
from jaxmlcl.errors import ConfigError
from jaxmlcl.methods import Classification, JointMulSupCon, MulSupCon
from jaxmlcl.models import MLP, Projection
from jaxmlcl.training.duration import steps
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.objective import Batch, BatchSpec
from jaxmlcl.training.stage import Stage

LABELS, SIZE = 3, 6
CONTRAST = MulSupCon(MLP((8,), 0.3), Projection(4), queue_capacity=12, queue_fill="partial")
KEY = jax.random.key(3)


def batch_of(seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(SIZE, 2, 5)).astype(np.float32)
    labels = (generator.random((SIZE, LABELS)) < 0.5).astype(np.float32)
    return Batch(jnp.asarray(x), jnp.asarray(labels), jnp.arange(SIZE), SIZE)


def start(objective: Any, batch: Batch) -> tuple[Any, Any]:
    arrays = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (batch.inputs, batch.labels))
    spec = BatchSpec(*arrays, SIZE)
    return jax.jit(lambda key: objective.init(key, spec))(jax.random.key(0))


@functools.cache
def advanced() -> tuple[Any, Any, Batch]:
    """Parameters, the state after a step, with keys in the queue, and the next batch."""
    joint = JointMulSupCon(CONTRAST)
    params, state = start(joint, batch_of())

    @jax.jit
    def step(params: Any, state: Any, batch: Batch) -> Any:
        aux = joint.loss(params, joint.before_step(params, state), batch, KEY)[1]
        return jax.tree.map(lambda x: x + 0.1, params), joint.after_step(aux.state, aux.emitted)

    return *step(params, state, batch_of()), batch_of(1)


def loss_and_gradients(
    objective: Any, params: Any, state: Any, batch: Batch, key: jax.Array = KEY
) -> Any:
    @jax.jit
    def run(params: Any, state: Any, batch: Batch, key: jax.Array) -> Any:
        state = objective.before_step(params, state)
        return jax.value_and_grad(objective.loss, has_aux=True)(params, state, batch, key)

    return run(params, state, batch, key)


@functools.cache
def joint_step(weight: float, contrast_weight: float) -> Any:
    return loss_and_gradients(JointMulSupCon(CONTRAST, weight, contrast_weight), *advanced())


def close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_without_classification_it_is_mulsupcon() -> None:
    params, state, batch = advanced()
    (loss, aux), gradients = joint_step(0.0, 1.0)
    alone = {name: params[name] for name in ("encoder", "head")}
    (expected, other), wanted = loss_and_gradients(CONTRAST, alone, state, batch)
    assert float(aux.measurements["queue_fill"]) == 0.5
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    classifier = gradients["classifier"]
    close({name: gradients[name] for name in wanted}, wanted)
    assert not any(leaf.any() for leaf in jax.tree.leaves(classifier))
    close((aux.state, aux.emitted), (other.state, other.emitted))
    after = JointMulSupCon(CONTRAST).after_step(aux.state, aux.emitted)
    close(after, CONTRAST.after_step(other.state, other.emitted))


def test_without_contrast_it_is_classification_of_the_query_view() -> None:
    params, _, batch = advanced()
    (loss, aux), gradients = joint_step(0.5, 0.0)
    plain = Classification(CONTRAST.encoder)
    alone = {name: params[name] for name in ("encoder", "classifier")}
    # The key that MulSupCon draws the query encoder's dropout from.
    dropout = jax.random.split(jax.random.split(KEY)[0])[0]
    query = dataclasses.replace(batch, inputs=batch.inputs[:, 0])
    (expected, _), wanted = loss_and_gradients(
        plain, alone, {"batch_stats": {"encoder": {}}}, query, dropout
    )
    assert float(loss) == pytest.approx(0.5 * float(expected), rel=1e-6)
    assert float(aux.measurements["classification_loss"]) == pytest.approx(float(expected))
    head = gradients["head"]
    close({name: gradients[name] for name in wanted}, jax.tree.map(lambda x: 0.5 * x, wanted))
    assert not any(leaf.any() for leaf in jax.tree.leaves(head))


def test_it_is_the_weighted_sum_of_its_terms() -> None:
    (loss, aux), gradients = joint_step(0.25, 3.0)
    terms = aux.measurements
    expected = 3 * terms["contrastive_loss"] + 0.25 * terms["classification_loss"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    contrast, classification = joint_step(0.0, 1.0)[1], joint_step(0.5, 0.0)[1]
    close(gradients, jax.tree.map(lambda a, b: 3 * a + 0.5 * b, contrast, classification))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_scores_embeddings_and_starts_are_those_of_the_parts() -> None:
    joint = JointMulSupCon(CONTRAST)
    params, state, batch = advanced()
    inputs = batch.inputs[:, 0]
    plain = Classification(CONTRAST.encoder)
    close(joint.scores(params, state, inputs), plain.scores(params, state, inputs))
    found = joint.embed(params, state, inputs)
    assert set(found) == {"representation", "embedding"}
    close(found["representation"], plain.embed(params, state, inputs)["representation"])
    assert joint.describe() == "mulsupcon + bce"
    # An encoder trained jointly starts other stages, and may itself start from one.
    single = dataclasses.replace(batch, inputs=inputs)
    for target in (plain, joint, CONTRAST):
        fresh, fresh_state = start(target, single if target is plain else batch)
        warm, warm_state = target.warm_start(fresh, fresh_state, params, state)
        close(warm["encoder"], params["encoder"])
        assert jax.tree.structure((warm, warm_state)) == jax.tree.structure((fresh, fresh_state))


def test_its_configuration_is_read_back_and_overridden(tmp_path: Path) -> None:
    stage = Stage(JointMulSupCon(CONTRAST, 0.5), steps(3), augmentation=(ZeroMask(),))
    experiment = Experiment("joint", Data("digits:train"), {"joint": stage})
    text = to_json(experiment)
    assert from_json(text) == experiment
    flag = "--stages.joint.objective"
    changed = override(experiment, [f"{flag}.contrast.temperature", "0.3", f"{flag}.weight", "2"])
    objective: Any = changed.stages["joint"].objective
    assert (objective.contrast.temperature, objective.weight) == (0.3, 2.0)
    with pytest.raises(ConfigError, match=r"contrast: Classification is not MulSupCon"):
        from_json(text.replace('"type": "MulSupCon"', '"type": "Classification"'))


def test_weights_that_cannot_work_are_refused() -> None:
    for weights, said in (
        ((-1.0, 1.0), "weight must be at least 0 and finite, not -1.0"),
        ((1.0, np.inf), "contrast_weight must be at least 0"),
        ((0.0, 0.0), "both 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            JointMulSupCon(CONTRAST, *weights)
