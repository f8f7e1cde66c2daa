"""The moving average of a network: its values, and that everything after training uses it."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.data.pipeline import GlobalOrder, Indices
from jaxmlcl.errors import Preempted
from jaxmlcl.sharding import MeshSpec, batch_sharding
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.kept import load_stage, stage_folder
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.program import build_stage, device_constants
from jaxmlcl.training.scoring import score_stages
from jaxmlcl.training.splits import fit_preparation
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.trainer import CheckpointStore, train
from jaxmlcl.training.trainer import validation_measures as measures
from tests.training.conftest import pretrain, small_experiment, vectors
from tests.training.test_trainer import Stop, rows, untimed

ADAM = Optimizer("adam", 1e-2)


def states(stage: Stage, mesh_spec: MeshSpec | None = None) -> list[Any]:
    """The states before the first step and after every one, on the host."""
    spec = mesh_spec or MeshSpec()
    source, data = vectors(), Data("unused")
    experiment = Experiment("x", data, {"only": stage}, precision="float64", mesh=spec)
    mesh = spec.build(jax.devices()[:8] if mesh_spec else jax.devices()[:1])
    constants = device_constants(fit_preparation(data, source), source, mesh, "float64")
    program = build_stage(experiment, "only", mesh, source, {})
    batches = Indices(GlobalOrder(len(source), stage.batch_size, 0), mesh.size)
    step, _ = program.compile(batches[0], constants)
    state = program.initial(None)
    seen = [jax.device_get(state)]
    for index in range(program.total):
        state, _ = step(state, jax.device_put(batches[index], batch_sharding(mesh)), constants)
        seen.append(jax.device_get(state))
    return seen


def network(state: Any) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.objective["batch_stats"]}


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.usefixtures("x64")
def test_it_is_what_a_loop_gives(warmup: bool) -> None:
    seen = states(pretrain("vectors", ADAM, ema=0.5, ema_warmup=warmup))
    average = network(seen[0])
    for t, state in enumerate(seen[1:]):
        # The warm-up rules up to t = 8, half of the steps.
        decay = min(0.5, (1 + t) / (10 + t)) if warmup else 0.5
        average = jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, average, network(state))  # noqa: B023
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
            state.average,
            average,
        )
    assert "BatchNorm_0" in average["batch_stats"]["head"]
    kernels = [
        tree["params"]["encoder"]["Dense_0"]["kernel"] for tree in (average, network(seen[-1]))
    ]
    assert abs(kernels[0] - kernels[1]).max() > 1e-3


@pytest.mark.usefixtures("x64")
def test_it_does_not_change_what_is_learnt() -> None:
    plain, averaged = (states(pretrain("vectors", ADAM, ema=ema))[-1] for ema in (None, 0.9))
    assert plain.average == ()
    # Two programs, which XLA may round in two ways.
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
    jax.tree.map(equal, plain.params, averaged.params)
    jax.tree.map(equal, plain.objective, averaged.objective)


@pytest.mark.parametrize("mesh", [MeshSpec(8, 1), MeshSpec(1, 8)], ids=["data", "fsdp"])
@pytest.mark.usefixtures("x64")
def test_sharded_as_on_one_device(mesh: MeshSpec) -> None:
    stage = pretrain("vectors", ADAM, ema=0.9)
    one, many = states(stage)[-1], states(stage, mesh)[-1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), one.average, many.average
    )


def test_fsdp_splits_it_like_the_parameters() -> None:
    spec = MeshSpec(1, 8)
    experiment = Experiment(
        "x", Data("unused"), {"a": pretrain("vectors", ADAM, ema=0.9)}, mesh=spec
    )
    program = build_stage(experiment, "a", spec.build(jax.devices()[:8]), vectors(), {})
    abstract = program.abstract
    placed, expected = (
        [leaf.sharding for leaf in jax.tree.leaves(tree)]
        for tree in (abstract.average["params"], abstract.params)
    )
    assert placed == expected
    assert not all(sharding.is_fully_replicated for sharding in placed)
    sizes = program.bytes_of_state()
    stats = sum(leaf.size * 4 for leaf in jax.tree.leaves(abstract.objective["batch_stats"]))
    assert sizes["average"] == sizes["parameters"] + stats


def averaging(workdir: Path) -> Experiment:
    small = small_experiment(workdir)
    stages = {
        name: dataclasses.replace(small.stages[name], ema=0.9) for name in ("pretrain", "probe")
    }
    return dataclasses.replace(small, stages=stages)


def run(experiment: Experiment, console: Any = None) -> Path:
    return train(experiment, to_json(experiment), console=console, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(averaging(tmp_path_factory.mktemp("average") / "run"))


def saved(workdir: Path, stage: str, *, first: bool = False) -> dict[str, Any]:
    """The arrays of a stage's last checkpoint, or of its first that is still there."""
    store = CheckpointStore(stage_folder(workdir, stage))
    found = store.checkpoints()
    return store.restore_numpy(found[-1 if first else 0])


def test_later_stages_start_from_it(finished: Path) -> None:
    start, probe = saved(finished, "pretrain"), saved(finished, "probe", first=True)
    # The probe's encoder is frozen: it is still what it started from.
    kernels = [
        tree["encoder"]["Dense_0"]["kernel"]
        for tree in (probe["params"], start["average"]["params"], start["params"])
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert abs(kernels[1] - kernels[2]).max() > 1e-6


def test_validation_and_scores_are_those_of_the_average(finished: Path) -> None:
    experiment = averaging(finished)
    one = jax.devices()[:1]
    scored = score_stages(experiment, finished, "validation", ["probe"], devices=one)
    step = scored.stages["probe"].step
    logged = [
        row
        for row in rows(finished)
        if (row["kind"], row["stage"], row["step"]) == ("validation", "probe", step)
    ]
    found = measures(scored.stages["probe"].scores, scored.labels)
    assert {name: logged[0][name] for name in found} == pytest.approx(found, rel=1e-6)
    mesh = experiment.mesh.build(one)
    program = build_stage(experiment, "probe", mesh, vectors(), {"pretrain": 1.0})
    store = CheckpointStore(stage_folder(finished, "probe"))
    state, checkpoint = load_stage(store, program, print)
    stored = store.restore_numpy(checkpoint)
    kernels = [
        tree["classifier"]["Dense_0"]["kernel"]
        for tree in (state.params, stored["average"]["params"], stored["params"])
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert abs(kernels[1] - kernels[2]).max() > 1e-6


def test_a_stopped_run_continues_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    again = averaging(tmp_path / "run")
    with pytest.raises(Preempted):
        run(again, Stop("probe", 17, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    workdir = run(again)
    assert untimed(workdir) == untimed(finished)
    found, expected = (saved(folder, "probe") for folder in (workdir, finished))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
