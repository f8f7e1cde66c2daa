"""MulSupCon's step against a plain simulation, and the parts of both objectives."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl import queue as momentum_queue
from jaxmlcl.data.augment import ZeroMask
from jaxmlcl.data.pipeline import GlobalOrder, Indices
from jaxmlcl.data.source import ArraySource
from jaxmlcl.errors import ConfigError
from jaxmlcl.losses import multi_positive_infonce
from jaxmlcl.methods import Classification, MulSupCon
from jaxmlcl.methods.mulsupcon import fine_tuning, linear_probe
from jaxmlcl.models import MLP, Projection, ResNet
from jaxmlcl.sharding import MeshSpec
from jaxmlcl.training.duration import steps
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.objective import Batch, BatchSpec
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.program import build_stage, device_constants
from jaxmlcl.training.splits import fit_preparation
from jaxmlcl.training.stage import Stage

ROWS, FEATURES, LABELS, SIZE, CAPACITY, WIDTH = 20, 5, 3, 8, 16, 4
ENCODER = MLP(hidden=(6,), dropout=0.0)
HEAD = Projection(width=WIDTH, dropout=0.0)
KEY = jax.random.key(0)


def source() -> ArraySource:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, FEATURES))
    return ArraySource(x, generator.random((ROWS, LABELS)) < 0.4, name="rows")


# --------------------------------------------------------------------- the simulation


def embed(params: Any, x: Any) -> tuple[Any, tuple[Any, Any]]:
    """Linear, ReLU; linear, normalisation over the batch, ReLU, linear; unit length."""
    first, head = params["encoder"]["Dense_0"], params["head"]
    x = jnp.maximum(x @ first["kernel"] + first["bias"], 0)
    x = x @ head["Dense_0"]["kernel"]
    mean, var = x.mean(0), x.var(0)
    x = (x - mean) / jnp.sqrt(var + 1e-5)
    x = x * head["BatchNorm_0"]["scale"] + head["BatchNorm_0"]["bias"]
    x = jnp.maximum(x, 0) @ head["Dense_1"]["kernel"] + head["Dense_1"]["bias"]
    return x / jnp.sqrt((x * x).sum(1, keepdims=True)), (mean, var)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def plain_loss(params: Any, x: Any, labels: Any, keys: Any, key_labels: Any) -> Any:
    """One row for each label of each anchor, as the authors write it."""
    anchors, moments = embed(params, x)
    log_p = jax.nn.log_softmax(anchors @ keys.T / 0.2)
    carrying = key_labels / jnp.maximum(key_labels.sum(0), 1)
    rows = -jnp.einsum("ia,aj->ij", log_p, carrying)
    return (rows * labels).sum() / labels.sum(), moments


class Simulation:
    """The authors' order of operations with a pointer and a flag, in plain lists and loops."""

    def __init__(self, state: Any, fill: str, parts: int) -> None:
        self.fill, self.parts = fill, parts
        copy = jax.tree.map(np.array, (state.params, state.objective["key_params"]))
        self.params, self.key_params = copy
        self.stats = [{"mean": np.zeros(WIDTH), "var": np.ones(WIDTH)} for _ in range(2)]
        self.keys = np.array(state.objective["queue"].keys)
        self.labels = np.zeros((CAPACITY, LABELS))
        self.ids = np.full(CAPACITY, -1)
        self.pointer, self.full, self.written = 0, False, 0

    def step(self, batch: Batch) -> float:
        # 1. Momentum update. 2. Encode both views. 3. Clone the queue.
        self.key_params = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * q, self.key_params, self.params)
        old_keys, old_labels = self.keys.copy(), self.labels.copy()
        was_full, written = self.full, self.written
        # 4. Write the batch, and note whether the pointer came round.
        slots = (self.pointer + np.arange(SIZE)) % CAPACITY
        self.pointer = (self.pointer + SIZE) % CAPACITY
        self.full = self.full or self.pointer == 0
        self.written = min(CAPACITY, written + SIZE)
        self.labels[slots], self.ids[slots] = batch.labels, batch.ids
        # 5. Compare with the batch and, once it is full, with the clone.
        visible = {
            "authors": CAPACITY if self.full else 0,
            "after_full": CAPACITY if was_full else 0,
            "partial": written,
        }[self.fill]
        losses, gradients = [], []
        for part in range(self.parts):
            rows = slice(part * SIZE // self.parts, (part + 1) * SIZE // self.parts)
            x, labels = batch.inputs[rows], batch.labels[rows]
            keys, moments = embed(self.key_params, x[:, 1])
            self.follow(1, moments)
            (loss, moments), gradient = plain_loss(
                self.params,
                x[:, 0],
                labels,
                jnp.concatenate([keys, old_keys[:visible]]),
                jnp.concatenate([labels, old_labels[:visible]]),
            )
            self.follow(0, moments)
            self.keys[slots[rows]] = keys
            losses.append(float(loss))
            gradients.append(gradient)
        self.params = jax.tree.map(
            lambda p, *g: p - 0.1 * sum(g) / self.parts, self.params, *gradients
        )
        return sum(losses) / self.parts

    def follow(self, which: int, moments: tuple[Any, Any]) -> None:
        for name, value in zip(("mean", "var"), moments, strict=True):
            self.stats[which][name] = 0.9 * self.stats[which][name] + 0.1 * np.asarray(value)


def close(found: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("fill", "parts"), [("authors", 1), ("after_full", 1), ("partial", 1), ("authors", 2)]
)
def test_steps_are_those_of_a_plain_simulation(fill: Any, parts: int) -> None:
    objective = MulSupCon(
        ENCODER, HEAD, temperature=0.2, momentum=0.9, queue_capacity=CAPACITY, queue_fill=fill
    )
    stage = Stage(
        objective,
        steps(5),
        batch_size=SIZE,
        optimizer=Optimizer("sgd", 0.1, momentum=0.0),
        augmentation=(ZeroMask(0.2),),
        accumulate=parts,
    )
    data = Data("unused", inputs="raw")
    experiment = Experiment("x", data, {"pretrain": stage}, precision="float64")
    rows = source()
    mesh = MeshSpec().build(jax.devices()[:1])
    program = build_stage(experiment, "pretrain", mesh, rows, {})
    constants = device_constants(fit_preparation(data, rows), rows, mesh, "float64")
    order = Indices(GlobalOrder(ROWS, SIZE, experiment.seed))
    step, _ = program.compile(order[0], constants)
    make_batch = jax.jit(program.program.batch)
    state = program.initial(None)
    floating = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floating} == {jnp.dtype("float64")}
    simulation = Simulation(state, fill, parts)
    close(state.objective["key_params"], state.params)
    start = jax.device_get(state.params)

    for index in range(program.total):
        host = jax.device_put(order[index], mesh.devices.flat[0])
        batch = jax.device_get(make_batch(jnp.int32(index), host, constants))
        assert batch.inputs.shape == (SIZE, 2, FEATURES)
        state, measured = step(state, host, constants)
        expected = simulation.step(batch)
        assert float(measured["loss"]) == pytest.approx(expected, rel=1e-11), index
        # The queue is counted before the step's keys are added.
        assert float(measured["queue_fill"]) == min(1.0, index * SIZE / CAPACITY)
        found = jax.device_get(state)
        close(found.params, simulation.params)
        close(found.objective["key_params"], simulation.key_params)
        # Each encoder has statistics of its own, and no others.
        for name, stats in zip(("batch_stats", "key_stats"), simulation.stats, strict=True):
            close(found.objective[name], {"encoder": {}, "head": {"BatchNorm_0": stats}})
        # Now the queue holds the batch, every sample once, with its labels and ids.
        queue = found.objective["queue"]
        close(queue.keys, simulation.keys)
        np.testing.assert_array_equal(queue.labels, simulation.labels)
        np.testing.assert_array_equal(queue.ids, simulation.ids)
        assert int(queue.count) == (index + 1) * SIZE
        assert int(found.step) == index + 1
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found.params, start)
    assert min(jax.tree.leaves(moved)) > 1e-3
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), found.objective["key_params"], start)
    assert min(jax.tree.leaves(apart)) > 1e-5


# --------------------------------------------------------------------- parts of it


def random_batch(size: int = 6, views: int = 2, same_views: bool = True, seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(size, views, FEATURES)).astype(np.float32)
    if same_views:
        x = np.repeat(x[:, :1], views, 1)
    labels = (generator.random((size, LABELS)) < 0.5).astype(np.float32)
    labels[0] = 0
    inputs = x if views > 1 else x[:, 0]
    ids = jnp.arange(size, dtype=jnp.int32) + 10
    return Batch(jnp.asarray(inputs), jnp.asarray(labels), ids, size)


def start(objective: Any, batch: Batch) -> tuple[Any, Any]:
    def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    spec = BatchSpec(shape(batch.inputs), shape(batch.labels), batch.step_samples)
    return jax.jit(lambda key: objective.init(key, spec))(KEY)


def value_and_grad(objective: Any, params: Any, state: Any, batch: Batch, key: Any = KEY) -> Any:
    function = jax.value_and_grad(objective.loss, has_aux=True)
    return jax.jit(function)(params, state, batch, key)


def test_momentum_is_the_golden_one(golden: dict[str, Any]) -> None:
    case = golden["momentum"]
    objective = MulSupCon(momentum=case["inputs"]["m"])
    params = {"w": jnp.array(case["inputs"]["theta_q"])}
    state = {"key_params": {"w": jnp.array(case["inputs"]["theta_k"])}, "key_stats": "kept"}
    updated = objective.before_step(params, state)
    np.testing.assert_allclose(updated["key_params"]["w"], case["value"], rtol=1e-6)
    assert updated["key_stats"] == "kept"


def test_the_key_encoder_starts_as_a_copy_with_its_own_buffers() -> None:
    batch = random_batch()
    params, state = start(MulSupCon(ENCODER, HEAD, queue_capacity=8), batch)
    for a, b in zip(
        jax.tree.leaves((params, state["batch_stats"])),
        jax.tree.leaves((state["key_params"], state["key_stats"])),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
        # A step donates its state: one buffer cannot be given away twice.
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
    np.testing.assert_allclose(np.linalg.norm(state["queue"].keys, axis=1), 1, rtol=1e-6)
    assert not state["queue"].labels.any()


def test_no_gradient_reaches_the_key_encoder() -> None:
    batch = random_batch(same_views=False)
    objective = MulSupCon(ENCODER, HEAD, queue_capacity=8)
    params, state = start(objective, batch)

    def loss(key_params: Any, params: Any) -> Any:
        return objective.loss(params, {**state, "key_params": key_params}, batch, KEY)[0]

    into_keys, into_queries = jax.jit(jax.grad(loss, argnums=(0, 1)))(state["key_params"], params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(into_keys))
    assert all(leaf.any() for leaf in jax.tree.leaves(into_queries))


def same_network(objective: MulSupCon, batch: Batch) -> tuple[Any, Any]:
    """State in which queries and keys come from equal networks and inputs."""
    params, state = start(objective, batch)
    return params, objective.before_step(params, state)


def filled(state: Any, ids: list[int]) -> Any:
    generator = np.random.default_rng(3)
    keys = generator.normal(size=(len(ids), WIDTH))
    keys = jnp.asarray(keys / np.linalg.norm(keys, axis=1, keepdims=True), jnp.float32)
    labels = jnp.asarray(generator.random((len(ids), LABELS)) < 0.6, jnp.uint8)
    queue = momentum_queue.enqueue(state["queue"], keys, labels, jnp.array(ids))
    return {**state, "queue": queue}


def test_every_weighting_is_the_loss_over_batch_and_queue() -> None:
    batch = random_batch()
    names: Any = ("mulsupcon", "mulsupcon_mean", "any", "all", "jaccard")
    objectives = [
        MulSupCon(ENCODER, HEAD, name, queue_capacity=8, queue_fill="partial") for name in names
    ]
    params, state = same_network(objectives[0], batch)
    state = filled(state, [1, 2, 3, 4, 5])
    queue = state["queue"]

    @jax.jit
    def run(params: Any, state: Any) -> Any:
        return [
            jax.value_and_grad(objective.loss, has_aux=True)(params, state, batch, KEY)
            for objective in objectives
        ]

    for name, ((loss, aux), gradients) in zip(names, run(params, state), strict=True):
        keys, labels, ids = aux.emitted
        np.testing.assert_array_equal(labels, batch.labels)
        np.testing.assert_array_equal(ids, batch.ids)
        expected = multi_positive_infonce(
            keys,
            jnp.concatenate([keys, queue.keys[:5]]),
            labels,
            jnp.concatenate([labels, queue.labels[:5]]),
            weighting=name,
        )
        assert float(loss) == pytest.approx(float(expected), rel=1e-4), name
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients)), name
        assert any(leaf.any() for leaf in jax.tree.leaves(gradients)), name
        assert float(aux.measurements["queue_fill"]) == 5 / 8
        assert 0 < float(aux.measurements["valid_anchor_fraction"]) <= 1


def test_keys_of_the_same_sample_can_be_left_out() -> None:
    batch = random_batch()
    objective = MulSupCon(
        ENCODER, HEAD, queue_capacity=6, queue_fill="partial", exclude_same_sample=True
    )
    params, state = same_network(objective, batch)
    state = filled(state, [10, 99, 12, 13, 14, 15])
    (loss, aux), _ = value_and_grad(objective, params, state, batch)
    emitted = [np.asarray(x, np.float64) for x in aux.emitted]
    queue = [np.asarray(x, np.float64) for x in momentum_queue.contents(state["queue"])]
    # By hand: anchor i has all of the batch (its own key too), and the queue but the slot with its
    # id; the counts of labels are its own.
    total = 0.0
    for i in range(6):
        left = queue[2] != 10 + i
        assert left.sum() == (6 if i == 1 else 5)
        keys = np.concatenate([emitted[0], queue[0][left]])
        labels = np.concatenate([emitted[1], queue[1][left]])
        scores = keys @ emitted[0][i] / 0.1
        log_p = scores - np.log(np.exp(scores).sum())
        for label in np.flatnonzero(emitted[1][i]):
            total -= log_p[labels[:, label] > 0].mean()
    assert float(loss) == pytest.approx(total / emitted[1].sum(), rel=1e-4)
    included = dataclasses.replace(objective, exclude_same_sample=False)
    (other, _), _ = value_and_grad(included, params, state, batch)
    assert abs(float(other) - float(loss)) > 1e-3


def test_queries_and_keys_have_dropout_of_their_own() -> None:
    batch = dataclasses.replace(random_batch(3), labels=jnp.eye(3, LABELS))

    def losses(dropout: float, *keys: jax.Array) -> list[tuple[float, float, Any]]:
        """With each key: the loss, that of queries equal to the keys, and the keys."""
        objective = MulSupCon(
            MLP((32,), dropout), Projection(WIDTH, dropout=dropout), queue_capacity=8
        )
        params, state = same_network(objective, batch)
        run = jax.jit(objective.loss)
        found = []
        for key in keys:
            loss, aux = run(params, state, batch, key)
            z = aux.emitted[0]
            equal = multi_positive_infonce(z, z, batch.labels, batch.labels)
            found.append((float(loss), float(equal), z))
        return found

    ((loss, equal, _),) = losses(0.0, KEY)
    assert loss == pytest.approx(equal, rel=1e-3)
    (loss, equal, z), (_, _, others) = losses(0.5, KEY, jax.random.key(1))
    assert abs(loss - equal) > 0.01
    # The key encoder is in training mode: its noise changes with the step's key.
    assert np.abs(z - others).max() > 0.01


def test_embeddings_are_those_of_the_query_encoder_in_evaluation_mode() -> None:
    batch = random_batch()
    objective = MulSupCon(MLP((6,), 0.5), HEAD, queue_capacity=8)
    params, state = start(objective, batch)
    found = jax.jit(objective.embed)(params, state, batch.inputs[:, 0])
    layer = params["encoder"]["Dense_0"]
    features = np.maximum(batch.inputs[:, 0] @ layer["kernel"] + layer["bias"], 0)
    np.testing.assert_allclose(found["representation"], features, rtol=1e-5, atol=1e-6)
    head = params["head"]
    # Statistics as they start: mean 0, variance 1.
    hidden = np.maximum(features @ head["Dense_0"]["kernel"] / np.sqrt(1 + 1e-5), 0)
    z = hidden @ head["Dense_1"]["kernel"] + head["Dense_1"]["bias"]
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(found["embedding"], z, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="gives no label scores"):
        objective.scores(params, state, batch.inputs[:, 0])


def test_what_cannot_work_is_refused() -> None:
    for fields, said in (
        ({"temperature": 0.0}, "temperature must be positive, not 0.0"),
        ({"momentum": 1.5}, "momentum must be between 0 and 1, not 1.5"),
        ({"queue_capacity": 0}, "queue_capacity must be at least 1, not 0"),
        ({"threshold": 2.0}, "threshold must be between 0 and 1, not 2.0"),
    ):
        with pytest.raises(ConfigError, match=said):
            MulSupCon(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="queue_capacity 5 is below the batch size 6"):
        start(MulSupCon(ENCODER, HEAD, queue_capacity=5), random_batch())


# --------------------------------------------------------------------- classification

TINY = ResNet(depths=(1,), channels=2, stem="small")


def pictures(size: int = 6) -> Batch:
    generator = np.random.default_rng(5)
    x = generator.normal(size=(size, 4, 4, 1)).astype(np.float32)
    labels = (generator.random((size, LABELS)) < 0.5).astype(np.float32)
    return Batch(jnp.asarray(x), jnp.asarray(labels), jnp.arange(size), size)


def test_warm_start_takes_encoder_and_statistics_and_nothing_else() -> None:
    batch = pictures()
    two = dataclasses.replace(batch, inputs=jnp.stack([batch.inputs] * 2, 1))
    source_params, source_state = start(MulSupCon(TINY, HEAD, queue_capacity=8), two)
    source_state["batch_stats"] = jax.tree.map(lambda x: x + 0.5, source_state["batch_stats"])
    probe = linear_probe(TINY)
    assert probe.describe() == "linear probe"
    assert fine_tuning(TINY).describe() == "bce"
    params, state = start(probe, batch)
    warm, warm_state = probe.warm_start(params, state, source_params, source_state)
    assert set(warm) == {"encoder", "classifier"}
    for a, b in zip(
        jax.tree.leaves((warm["encoder"], warm_state["batch_stats"]["encoder"])),
        jax.tree.leaves((source_params["encoder"], source_state["batch_stats"]["encoder"])),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        warm["classifier"]["Dense_0"]["kernel"], params["classifier"]["Dense_0"]["kernel"]
    )
    assert jax.tree.structure((warm, warm_state)) == jax.tree.structure((params, state))


def test_the_probe_runs_in_evaluation_mode() -> None:
    batch = pictures()
    probe, tuning = linear_probe(TINY), fine_tuning(TINY)
    params, state = start(probe, batch)
    state = jax.tree.map(lambda x: x + 0.25, state)
    (loss, aux), _ = value_and_grad(probe, params, state, batch)
    for a, b in zip(jax.tree.leaves(aux.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    p = np.asarray(jax.jit(probe.scores)(params, state, batch.inputs), np.float64)
    expected = -np.where(batch.labels > 0, np.log(p), np.log1p(-p)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # Fine-tuning moves the statistics, and its loss is that of the batch's own.
    (other, aux), _ = value_and_grad(tuning, params, state, batch)
    assert abs(float(other) - float(loss)) > 1e-4
    assert all(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(aux.state), jax.tree.leaves(state), strict=True)
    )


def test_a_probe_with_dropout_in_its_encoder_has_none() -> None:
    batch = random_batch(views=1)
    encoder = MLP((8,), 0.5)
    losses: dict[str, list[float]] = {"probe": [], "tuning": []}
    for name, objective in (("probe", linear_probe(encoder)), ("tuning", fine_tuning(encoder))):
        params, state = start(objective, batch)
        run = jax.jit(objective.loss)
        losses[name] = [
            float(run(params, state, batch, jax.random.key(seed))[0]) for seed in range(2)
        ]
    assert losses["probe"][0] == losses["probe"][1]
    assert losses["tuning"][0] != losses["tuning"][1]


@pytest.mark.parametrize("name", ["bce", "focal", "asymmetric"])
def test_classification_losses(name: Any) -> None:
    batch = random_batch(views=1)
    objective = Classification(ENCODER, loss_name=name)
    assert objective.describe() == name
    params, state = start(objective, batch)
    params["classifier"] = jax.tree.map(lambda x: 3 * x, params["classifier"])
    (loss, aux), gradients = value_and_grad(objective, params, state, batch)
    assert aux.emitted == ()
    first, last = params["encoder"]["Dense_0"], params["classifier"]["Dense_0"]
    features = np.maximum(np.asarray(batch.inputs, np.float64) @ first["kernel"] + first["bias"], 0)
    p = 1 / (1 + np.exp(-(features @ last["kernel"] + last["bias"])))
    y = np.asarray(batch.labels, np.float64)
    if name == "bce":
        expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    elif name == "focal":
        truth = np.where(y > 0, p, 1 - p)
        expected = -((1 - truth) ** 2 * np.log(truth)).mean()
    else:
        shifted = np.maximum(p - 0.05, 0)
        positive = y * (1 - p) * np.log(p)
        expected = -(positive + (1 - y) * shifted**4 * np.log(1 - shifted)).sum()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients))
    scores = jax.jit(objective.scores)(params, state, batch.inputs)
    np.testing.assert_allclose(scores, p, rtol=1e-5, atol=1e-6)
    found = jax.jit(objective.embed)(params, state, batch.inputs)
    np.testing.assert_allclose(found["representation"], features, rtol=1e-5, atol=1e-6)
