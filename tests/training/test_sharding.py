"""Eight devices give what one gives: losses and parameters, data parallel and fsdp."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl.data.pipeline import GlobalOrder, Indices
from jaxmlcl.methods import CGMVAE, MulSupCon
from jaxmlcl.models import Projection
from jaxmlcl.sharding import MeshSpec, batch_sharding
from jaxmlcl.training.duration import steps
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.optimizers import Cosine, Optimizer
from jaxmlcl.training.program import build_stage, device_constants
from jaxmlcl.training.splits import fit_preparation
from jaxmlcl.training.stage import Stage
from tests.training.conftest import SMALL_MLP, partly_known, pictures, pretrain, vectors

MESHES = {"data": MeshSpec(8, 1), "fsdp": MeshSpec(1, 8), "both": MeshSpec(2, 4)}
ZERO1 = MeshSpec(2, 4, split="optimizer")
OPTIMIZERS = {
    "sgd": Optimizer("sgd", 0.05, weight_decay=1e-4, schedule=Cosine()),
    "adam": Optimizer("adam", 1e-3),
}


def run(
    kind: str, stage: Stage, mesh_spec: MeshSpec, precision: str, **fields: Any
) -> tuple[Any, Any]:
    """Losses of all steps, and the final parameters on the host."""
    source = {"vectors": vectors, "pictures": pictures, "partly known": partly_known}[kind]()
    data = Data("unused", inputs="unit" if kind == "pictures" else "standardize")
    experiment = Experiment(
        "x", data, {"pretrain": stage}, precision=precision, mesh=mesh_spec, **fields
    )
    devices = jax.devices()[:1] if mesh_spec == MeshSpec() else jax.devices()[:8]
    mesh = mesh_spec.build(devices)
    constants = device_constants(fit_preparation(data, source), source, mesh, precision)
    program = build_stage(experiment, "pretrain", mesh, source, {})
    batches = Indices(GlobalOrder(len(source), stage.batch_size, experiment.seed), mesh.size)
    step, _ = program.compile(batches[0], constants)
    state = program.initial(None)
    losses = []
    for index in range(program.total):
        host = jax.device_put(batches[index], batch_sharding(mesh))
        state, measurements = step(state, host, constants)
        losses.append(float(measurements["loss"]))
    return np.array(losses), jax.device_get(state.params)


def compare(
    kind: str,
    optimizer: str,
    mesh: str,
    precision: str,
    **changes: Any,
) -> None:
    stage = pretrain(kind, OPTIMIZERS[optimizer], **changes)
    one_losses, one = run(kind, stage, MeshSpec(), precision)
    many_losses, many = run(kind, stage, {**MESHES, "zero1": ZERO1}[mesh], precision)
    assert one_losses[-1] != one_losses[0]
    tolerance = 1e-12 if precision == "float64" else 1e-5
    np.testing.assert_allclose(many_losses, one_losses, rtol=tolerance, atol=0)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        if precision == "float64":
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-9)
        else:
            # A tensor that starts at zero and whose gradient is rounding has no norm to speak of.
            assert np.linalg.norm(b - a) <= 1e-3 * np.linalg.norm(a) + 1e-7


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.usefixtures("x64")
def test_vectors_in_float64(mesh: str, optimizer: str) -> None:
    compare("vectors", optimizer, mesh, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.usefixtures("x64")
def test_convolutions_with_batch_norm_in_float64(mesh: str, optimizer: str) -> None:
    compare("pictures", optimizer, mesh, "float64")


@pytest.mark.parametrize(("mesh", "optimizer"), [("data", "sgd"), ("fsdp", "adam")])
def test_vectors_in_float32(mesh: str, optimizer: str) -> None:
    compare("vectors", optimizer, mesh, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data", "both"])
def test_convolutions_in_float32(mesh: str) -> None:
    # Few steps: sums over the batch are in another order, and a last bit grows tenfold with every
    # other step, by Adam faster still. In float64 they are all compared.
    compare("pictures", "sgd", mesh, "float32", duration=steps(3))


@pytest.mark.usefixtures("x64")
def test_gradient_accumulation_is_sharded_alike() -> None:
    compare("vectors", "adam", "both", "float64", accumulate=2)


@pytest.mark.usefixtures("x64")
def test_cgmvae_is_sharded_alike() -> None:
    """Points of the latent space belong to samples, dropout of the label encoder to labels."""
    objective = CGMVAE(
        SMALL_MLP, embedding=24, latent=8, label_hidden=(16,), decoder_hidden=(32,), kl_samples=2
    )
    compare("partly known", "adam", "both", "float64", objective=objective, duration=steps(6))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", ["mulsupcon", "jaccard"])
def test_unknown_labels_are_sharded_alike(weighting: Any) -> None:
    objective = MulSupCon(SMALL_MLP, Projection(width=16), weighting, queue_capacity=48)
    compare("partly known", "adam", "both", "float64", objective=objective, duration=steps(8))


@pytest.mark.usefixtures("x64")
def test_threefry_is_sharded_alike_and_draws_other_masks() -> None:
    stage = pretrain("vectors", OPTIMIZERS["adam"], duration=steps(6))
    one, _ = run("vectors", stage, MeshSpec(), "float64", random="threefry")
    many, _ = run("vectors", stage, MESHES["both"], "float64", random="threefry")
    np.testing.assert_allclose(many, one, rtol=1e-12, atol=0)
    hashed, _ = run("vectors", stage, MeshSpec(), "float64")
    # Other masks from the first step on, of the same kind: about the same losses.
    assert abs(hashed - one).min() > 1e-6
    np.testing.assert_allclose(hashed, one, rtol=0.3)


def test_fsdp_splits_parameters_and_optimizer() -> None:
    source = vectors()
    stage = pretrain("vectors", OPTIMIZERS["adam"])
    spec = MeshSpec(1, 8)
    experiment = Experiment("x", Data("unused"), {"pretrain": stage}, mesh=spec)
    program = build_stage(experiment, "pretrain", spec.build(jax.devices()[:8]), source, {})
    state = program.initial(None)
    kernel = state.params["encoder"]["Dense_1"]["kernel"]
    assert kernel.shape == (32, 64)
    assert {shard.data.size for shard in kernel.addressable_shards} == {32 * 64 // 8}
    split = [leaf for leaf in jax.tree.leaves(state.optimizer) if not leaf.is_fully_replicated]
    assert len(split) == 2 * sum(
        not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_optimizer_state_alone_is_split_alike() -> None:
    compare("vectors", "adam", "zero1", "float64")


def test_zero1_splits_the_optimizer_and_nothing_else() -> None:
    stage = pretrain("vectors", OPTIMIZERS["adam"], ema=0.9)
    experiment = Experiment("x", Data("unused"), {"pretrain": stage}, mesh=ZERO1)
    mesh = ZERO1.build(jax.devices()[:8])
    source = vectors()
    program = build_stage(experiment, "pretrain", mesh, source, {})
    state = program.initial(None)
    whole = (state.params, state.objective, state.average)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(whole))
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.size >= 1024]
    assert len(moments) == 2 * sum(leaf.size >= 1024 for leaf in jax.tree.leaves(state.params))
    for leaf in moments:
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 4}
    # A step leaves everything where it was.
    constants = device_constants(fit_preparation(experiment.data, source), source, mesh, "float32")
    batches = Indices(GlobalOrder(len(source), stage.batch_size, 0), mesh.size)
    step, _ = program.compile(batches[0], constants)
    after, _ = step(state, jax.device_put(batches[0], batch_sharding(mesh)), constants)
    for leaf, planned in zip(
        jax.tree.leaves(after), jax.tree.leaves(program.abstract), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(planned.sharding, leaf.ndim)
