"""The queue dealt out over the devices: the run of one device, on any mesh and across meshes."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxmlcl import queue
from jaxmlcl.config import to_json
from jaxmlcl.data.pipeline import GlobalOrder, Indices, Records
from jaxmlcl.errors import ConfigError, Preempted
from jaxmlcl.layout import batch_devices, deal, joined, micro_batches, stream_rows
from jaxmlcl.methods import JointMulSupCon, MulSupCon
from jaxmlcl.models import Projection
from jaxmlcl.sharding import BATCH, MeshSpec, batch_sharding
from jaxmlcl.training.checkpoint import CheckpointStore
from jaxmlcl.training.console import Silent
from jaxmlcl.training.duration import steps
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.kept import stage_folder
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.program import build_stage, device_constants
from jaxmlcl.training.scoring import score_stages
from jaxmlcl.training.splits import fit_preparation
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.step import TrainState
from jaxmlcl.training.trainer import train
from tests.training.conftest import SMALL_MLP, pretrain, small_experiment, vectors

INTERLEAVE = (("queue", "interleave"), (".*", "fsdp"))
# B does not divide Q, nor the 96 samples of an epoch; eight devices divide both.
CAPACITY, SIZE = 56, 40
MESHES = {
    "one": (1, MeshSpec()),
    "two": (2, MeshSpec(2, 1, INTERLEAVE)),
    "four, replicated": (4, MeshSpec(4, 1)),
    "eight": (8, MeshSpec(4, 2, INTERLEAVE)),
    "eight, replicated": (8, MeshSpec(2, 4)),
}


class Course:
    """A stage on a mesh, compiled, in double precision."""

    def __init__(self, name: str, accumulate: int, class_sums: bool) -> None:
        count, spec = MESHES[name]
        objective = MulSupCon(
            SMALL_MLP, Projection(16), queue_capacity=CAPACITY, queue_class_sums=class_sums
        )
        stage = pretrain(
            "vectors",
            Optimizer("adam", 1e-3),
            objective=objective,
            duration=steps(8),
            batch_size=SIZE,
            accumulate=accumulate,
        )
        data, source = Data("unused"), vectors()
        experiment = Experiment("x", data, {"pretrain": stage}, precision="float64", mesh=spec)
        mesh = spec.build(jax.devices()[:count])
        self.program = build_stage(experiment, "pretrain", mesh, source, {})
        preparation = fit_preparation(data, source)
        self.constants = device_constants(preparation, source, mesh, "float64")
        self.batches = Indices(GlobalOrder(len(source), SIZE, 0), mesh.size)
        self.rows = batch_sharding(mesh)
        self.step, _ = self.program.compile(self.batches[0], self.constants)

    def go(self, state: TrainState, first: int, last: int) -> tuple[TrainState, list[float]]:
        losses = []
        for index in range(first, last):
            host = jax.device_put(self.batches[index], self.rows)
            state, measured = self.step(state, host, self.constants)
            losses.append(float(measured["loss"]))
        return state, losses


@functools.cache
def course(name: str, accumulate: int = 1, class_sums: bool = False) -> Course:
    return Course(name, accumulate, class_sums)


def in_order(state: TrainState) -> queue.Queue:
    """The state's queue on the host, in slot order."""
    return queue.slot_order(jax.tree.map(np.asarray, state.objective["queue"]))


def same_queue(found: TrainState, expected: TrainState) -> None:
    ours, theirs = in_order(found), in_order(expected)
    for name in ("ids", "labels", "count"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_allclose(ours.keys, theirs.keys, rtol=0, atol=1e-9)
    if ours.sums is not None:
        for a, b in zip(queue.class_sums(ours), queue.class_sums(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("accumulate", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mesh", ["eight", "eight, replicated"])
def test_eight_devices_go_the_way_of_one(mesh: str, accumulate: int) -> None:
    one, many = course("one", accumulate), course(mesh, accumulate)
    alone, expected = one.go(one.program.initial(None), 0, 8)
    state, losses = many.go(many.program.initial(None), 0, 8)
    np.testing.assert_allclose(losses, expected, rtol=1e-12, atol=0)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
    same_queue(state, alone)
    held = state.objective["queue"]
    if mesh == "eight":
        assert held.shards == 8
        assert {shard.data.shape for shard in held.keys.addressable_shards} == {(7, 16)}
    else:
        assert held.shards == 1
        assert held.keys.is_fully_replicated


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("there", ["one", "two", "four, replicated", "eight"])
def test_from_eight_devices_to_another_mesh(there: str, tmp_path: Path) -> None:
    here, other = course("eight", class_sums=True), course(there, class_sums=True)
    state, _ = here.go(here.program.initial(None), 0, 4)
    before = jax.tree.map(np.asarray, state)
    store = CheckpointStore(tmp_path / "stage")
    store.save(4, here.program.portable(state), {"queue_shards": 8}, wait=True)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)
    expected_state, expected = here.go(state, 4, 8)
    saved = store.latest_valid(report=print)
    assert saved is not None
    # What is on the disk is in slot order: the sample of number i is in slot i mod Q.
    stored = store.restore_numpy(saved)["objective"]["queue"]
    order = GlobalOrder(96, SIZE, 0)
    ids = np.concatenate([order[step] for step in range(4)])
    slots = np.arange(len(ids))[-CAPACITY:] % CAPACITY
    np.testing.assert_array_equal(stored["ids"][slots], ids[-CAPACITY:])

    restored = other.program.restore(store, saved)
    placed = jax.tree.map(lambda leaf: leaf.sharding, other.program.abstract)
    for leaf, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    ended, losses = other.go(restored, 4, 8)
    if there == "eight":
        assert losses == expected
        for a, b in zip(jax.tree.leaves(ended), jax.tree.leaves(expected_state), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(losses, expected, rtol=1e-12, atol=0)
    same_queue(ended, expected_state)


@pytest.mark.usefixtures("x64")
def test_from_one_device_to_eight(tmp_path: Path) -> None:
    here, other = course("one", class_sums=True), course("eight", class_sums=True)
    state, _ = here.go(here.program.initial(None), 0, 4)
    assert here.program.portable(state) is state
    store = CheckpointStore(tmp_path / "stage")
    # Written before there were queues in parts: nothing is said of them.
    store.save(4, state, {}, wait=True)
    expected_state, expected = here.go(state, 4, 8)
    ended, losses = other.go(other.program.restore(store, store.checkpoints()[0]), 4, 8)
    np.testing.assert_allclose(losses, expected, rtol=1e-12, atol=0)
    same_queue(ended, expected_state)


class Stopping(Silent):
    """Asks the run to stop at a step, and keeps its lines."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, step: int, loss: float | None) -> None:
        if step == self.at:
            signal.raise_signal(signal.SIGTERM)


def joint(workdir: Path, mesh: MeshSpec) -> Experiment:
    small = small_experiment(workdir)
    contrast = MulSupCon(SMALL_MLP, Projection(16), queue_capacity=18, queue_class_sums=True)
    stage = Stage(JointMulSupCon(contrast), steps(20), batch_size=16, validate_every=steps(10))
    return dataclasses.replace(small, stages={"joint": stage}, mesh=mesh)


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_and_is_scored_anywhere(tmp_path: Path) -> None:
    moved, still = tmp_path / "moved", tmp_path / "still"
    begun = joint(moved, MeshSpec(2, 1, INTERLEAVE))
    console = Stopping(at=9)
    with pytest.raises(Preempted):
        train(begun, to_json(begun), console=console, devices=jax.devices()[:2])
    # 18 keys of 16 float32, 4 labels and an id; two parts with 4 sums of 16 and 4 counts; a count.
    whole = 18 * (16 * 4 + 4 + 4) + 2 * (4 * 16 + 4) * 4 + 4
    said = "joint: queue of 18 float32 keys in 2 parts: 1.84 kB, 924 B a device"
    assert f"{whole / 1e3:.3g} kB, {whole // 2 + 2} B" in said
    assert said in console.lines
    (stopped,) = CheckpointStore(stage_folder(moved, "joint")).checkpoints()[:1]
    assert stopped.host["queue_shards"] == 2

    ended = dataclasses.replace(begun, mesh=MeshSpec())
    console = Stopping()
    train(ended, to_json(ended), console=console, devices=jax.devices()[:1])
    assert f"joint: continuing after step {stopped.step}" in console.lines
    assert any(line.startswith("joint: queue of 18 float32 keys in one") for line in console.lines)
    alone = joint(still, MeshSpec())
    train(alone, to_json(alone), devices=jax.devices()[:1])
    ids, scores = [], []
    for workdir, experiment in ((moved, ended), (still, alone)):
        store = CheckpointStore(stage_folder(workdir, "joint"))
        saved = store.checkpoints()[0]
        assert saved.step == 20
        ids.append(store.restore_numpy(saved)["objective"]["queue"]["ids"])
        found = score_stages(experiment, workdir, "test", devices=jax.devices()[:1])
        scores.append(found.stages["joint"].scores)
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    # Eight devices divide the batch, not the queue.
    many = score_stages(begun, moved, "test", devices=jax.devices()[:8])
    np.testing.assert_allclose(many.stages["joint"].scores, scores[0], atol=1e-5)
    assert json.loads((moved / "stages.json").read_text())["joint"]["bytes"]["queue"] > 0


def test_a_queue_that_does_not_divide_is_refused() -> None:
    spec = MeshSpec(8, 1, INTERLEAVE)
    objective = MulSupCon(SMALL_MLP, Projection(16), queue_capacity=50)
    stage = pretrain("vectors", Optimizer("sgd", 0.1), objective=objective)
    experiment = Experiment("x", Data("unused"), {"pretrain": stage}, mesh=spec)
    mesh = spec.build(jax.devices()[:8])
    with pytest.raises(ConfigError, match="queue_capacity 50 does not divide over 8 devices"):
        build_stage(experiment, "pretrain", mesh, vectors(), {})
    with pytest.raises(ConfigError, match="use replicate, fsdp or interleave"):
        MeshSpec(rules=(("queue", "scatter"),))
    for fields in ({"weighting": "any"}, {"exclude_same_sample": True}):
        with pytest.raises(ConfigError, match="queue_class_sums"):
            MulSupCon(queue_class_sums=True, **fields)


def test_the_type_of_the_keys() -> None:
    for kind, expected in (("float32", "float32"), ("compute", "bfloat16")):
        objective = MulSupCon(
            SMALL_MLP,
            Projection(16),
            queue_capacity=48,
            queue_dtype=kind,  # type: ignore[arg-type]
        )
        stage = pretrain("vectors", Optimizer("sgd", 0.1), objective=objective)
        experiment = Experiment("x", Data("unused"), {"pretrain": stage}, precision="bfloat16")
        mesh = MeshSpec().build(jax.devices()[:1])
        program = build_stage(experiment, "pretrain", mesh, vectors(), {})
        assert program.abstract.objective["queue"].keys.dtype == expected
        size = 48 * (16 * (4 if kind == "float32" else 2) + 4 + 4) + 4
        assert program.bytes_of_state()["queue"] == size


def test_places_of_arrays_that_are_interleaved() -> None:
    spec = MeshSpec(4, 2, INTERLEAVE)
    mesh = spec.build(jax.devices()[:8])
    shapes = {"queue": [jax.ShapeDtypeStruct(shape, "float32") for shape in ((16, 3), (12,), ())]}
    split, *whole = jax.tree.leaves(spec.place(mesh, shapes))
    assert split == NamedSharding(mesh, BATCH)
    assert all(sharding.is_fully_replicated for sharding in whole)
    assert spec.tactic("objective/queue/keys") == "interleave"
    # Without a rule that matches, `split` and `queue` decide.
    assert MeshSpec().tactic("params/encoder") == "fsdp"
    assert MeshSpec(rules=(("encoder", "replicate"),)).tactic("params/encoder") == "replicate"
    dealt = MeshSpec(queue="interleave")
    assert dealt.tactic("objective/queue/keys") == "interleave"
    assert MeshSpec(split="optimizer").tactic("params/encoder") == "replicate"


def test_the_layout_of_a_batch() -> None:
    assert stream_rows(5).tolist() == [0, 1, 2, 3, 4]
    mesh = MeshSpec(2, 2).build(jax.devices()[:4])
    with jax.set_mesh(mesh):
        assert (batch_devices(8), batch_devices(6)) == (4, 1)
        assert jax.jit(stream_rows, static_argnums=0)(8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
        assert stream_rows(6).tolist() == [0, 1, 2, 3, 4, 5]
        rows = jnp.asarray(deal(np.arange(16), 4))
        # Each half of the stream, dealt out in its turn.
        parts = micro_batches({"a": rows}, 2)["a"]
        np.testing.assert_array_equal(parts, [deal(np.arange(8), 4), deal(np.arange(8, 16), 4)])
        np.testing.assert_array_equal(joined(parts), rows)
    with pytest.raises(ValueError, match=r"samples has shape \[6\]; .* divides over 4 devices"):
        deal(np.arange(6), 4)


def test_batches_are_dealt_out_on_the_host() -> None:
    source, order = vectors(), GlobalOrder(96, 16, 3)
    plain, indices = order[7], Indices(order, 4)[7]["index"]
    np.testing.assert_array_equal(indices, np.concatenate([plain[d::4] for d in range(4)]))
    records = Records(source, order, 4)[7]
    np.testing.assert_array_equal(records["ids"], indices)
    np.testing.assert_array_equal(records["inputs"], source.arrays()["inputs"][indices])
