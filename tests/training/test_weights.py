"""A stage whose encoder starts from a file of weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.data.source import register_source
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.methods import Classification, JointMulSupCon, MulSupCon
from jaxmlcl.models import MLP, Pretrained, Projection, ResNet, load_pretrained, save_pretrained
from jaxmlcl.training.duration import steps
from jaxmlcl.training.experiment import Data, Experiment
from jaxmlcl.training.objective import Objective
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.population import train_population
from jaxmlcl.training.predict import open_network
from jaxmlcl.training.program import build_stage
from jaxmlcl.training.splits import open_split
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.trainer import train
from jaxmlcl.training.weights import read_start
from tests.training.conftest import pictures

pytest.importorskip("safetensors", reason="safetensors (extra weights) is not installed")

ENCODER = ResNet((1,), channels=4, stem="imagenet")
SIZE = 16
register_source("quarters", lambda body, options, places: pictures(32, int(body)))


def colours(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 3, axis=-1)


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, Pretrained]:
    """Random weights and statistics, in a file of torchvision's names."""
    module = ENCODER.build(jnp.float32)
    variables = module.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), False)
    generator = np.random.default_rng(3)
    drawn = jax.tree.map(
        lambda leaf: generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32), variables
    )
    found = Pretrained(ENCODER, drawn["params"], drawn["batch_stats"])
    save_pretrained(tmp_path / "own.safetensors", found)
    return tmp_path / "own.safetensors", found


def experiment(folder: Path, objective: Objective, weights: str, **changes: Any) -> Experiment:
    images = folder / "images.npz"
    if not images.exists():
        source = pictures(32, 0).arrays()
        np.savez(images, inputs=colours(source["inputs"]), labels=source["labels"])
    stage = Stage(
        objective,
        steps(3),
        batch_size=8,
        optimizer=Optimizer("adam", 1e-2),
        weights=weights,
        **changes,
    )
    data = Data("images.npz", root=str(folder), inputs="unit")
    return Experiment("weights", data, {"first": stage}, workdir=str(folder / "run"))


def contrast() -> MulSupCon:
    return MulSupCon(encoder=ENCODER, head=Projection(width=8), queue_capacity=16)


def check_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_frozen_encoder_stays_that_of_the_file(
    weights: tuple[Path, Pretrained], tmp_path: Path
) -> None:
    path, pretrained = weights
    run = experiment(
        tmp_path,
        Classification(encoder=ENCODER, encoder_mode="eval"),
        path.name,
        frozen=("^encoder/",),
    )
    train(run, to_json(run), devices=jax.devices()[:1])
    network = open_network(run, tmp_path / "run", None, devices=jax.devices()[:1])
    check_equal(network.state.params["encoder"], pretrained.params)
    check_equal(network.state.objective["batch_stats"]["encoder"], pretrained.batch_stats)


@pytest.mark.parametrize("joint", [False, True])
def test_queries_and_keys_start_from_it(
    joint: bool, weights: tuple[Path, Pretrained], tmp_path: Path
) -> None:
    path, pretrained = weights
    objective = JointMulSupCon(contrast()) if joint else contrast()
    run = experiment(tmp_path, objective, str(path))
    mesh = run.mesh.build(jax.devices()[:1])
    program = build_stage(run, "first", mesh, open_split(run.data, "train"), {})
    fresh, state = program.initial(None), program.initial(read_start(run, program))
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    check_equal(state.params["encoder"], pretrained.params)
    check_equal(state.objective["key_params"]["encoder"], pretrained.params)
    check_equal(state.objective["batch_stats"]["encoder"], pretrained.batch_stats)
    check_equal(state.objective["key_stats"]["encoder"], pretrained.batch_stats)
    check_equal(state.params["head"], fresh.params["head"])
    check_equal(state.objective["key_params"]["head"], fresh.params["head"])


def test_what_cannot_be_is_told_before_training(
    weights: tuple[Path, Pretrained], tmp_path: Path
) -> None:
    path, _ = weights
    other = dataclasses.replace(contrast(), encoder=ResNet((2,), channels=4))
    cases = (
        (contrast(), "none.safetensors", r"none.safetensors: no such file"),
        (other, path.name, r"own.safetensors: no weight layer1.1.conv1.weight"),
    )
    for objective, name, message in cases:
        run = experiment(tmp_path, objective, name)
        with pytest.raises(DataError, match=message):
            train(run, to_json(run), devices=jax.devices()[:1])
    path.write_bytes(b"nothing")
    run = experiment(tmp_path, contrast(), path.name)
    with pytest.raises(DataError, match=r"own.safetensors: not safetensors"):
        train(run, to_json(run), devices=jax.devices()[:1])


def test_a_stage_that_has_begun_needs_the_file_no_more(
    weights: tuple[Path, Pretrained], tmp_path: Path
) -> None:
    path, _ = weights
    run = experiment(tmp_path, contrast(), path.name)
    train(run, to_json(run), devices=jax.devices()[:1])
    path.unlink()
    train(run, to_json(run), devices=jax.devices()[:1])


def test_weights_of_grey_images(tmp_path: Path) -> None:
    """What `jaxmlcl export` writes for images of one channel starts a stage on such images."""
    module = ENCODER.build(jnp.float32)
    variables = module.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 1)), False)
    pretrained = Pretrained(ENCODER, variables["params"], variables["batch_stats"])
    save_pretrained(tmp_path / "grey.safetensors", pretrained)
    found = load_pretrained(tmp_path / "grey.safetensors", ENCODER, channels=1)
    check_equal(found.params, pretrained.params)
    colour = experiment(tmp_path, contrast(), "grey.safetensors")
    with pytest.raises(DataError, match=r"conv1.weight has shape \[4, 1, 7, 7\].* wants \[4, 3,"):
        train(colour, to_json(colour), devices=jax.devices()[:1])
    source = pictures(32, 0).arrays()
    np.savez(tmp_path / "images.npz", inputs=source["inputs"], labels=source["labels"])
    grey = experiment(tmp_path, contrast(), "grey.safetensors")
    mesh = grey.mesh.build(jax.devices()[:1])
    program = build_stage(grey, "first", mesh, open_split(grey.data, "train"), {})
    check_equal(program.initial(read_start(grey, program)).params["encoder"], pretrained.params)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match=r'weights "a.pth" and starts_from "pretrain" both give'):
        Stage(contrast(), steps(1), weights="a.pth", starts_from="pretrain")
    run = Experiment(
        "mlp",
        Data("synthetic:train"),
        {"a": Stage(MulSupCon(encoder=MLP()), steps(1), weights="a")},
    )
    with pytest.raises(ConfigError, match=r"file of weights.*jaxmlcl train"):
        list(train_population([run]))
