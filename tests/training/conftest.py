"""Small experiments that the training tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.data.augment import Intensity, Shift, ZeroMask
from jaxmlcl.data.source import ArraySource, register_source
from jaxmlcl.methods import Classification, MulSupCon
from jaxmlcl.models import MLP, Projection, ResNet
from jaxmlcl.training.duration import steps
from jaxmlcl.training.experiment import Checkpoint, Data, Experiment, Logging
from jaxmlcl.training.optimizers import Cosine, Optimizer
from jaxmlcl.training.stage import Stage


def vectors(rows: int = 96, seed: int = 0) -> ArraySource:
    """Labels that depend on the inputs, with unlabelled and fully labelled rows among them."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 12)).astype(np.float32)
    planes = np.random.default_rng(99).normal(size=(12, 4))
    y = (x @ planes > 1.0).astype(np.uint8)
    y[0], y[1] = 0, 1
    return ArraySource(x, y, label_names=[f"label {i}" for i in range(4)], name="vectors")


def partly_known(rows: int = 96, seed: int = 0) -> ArraySource:
    """The vectors with 30 % of their labels unknown; of row 3 none is known."""
    whole = vectors(rows, seed)
    arrays = whole.arrays()
    known = np.random.default_rng(1000 + seed).random((rows, 4)) >= 0.3
    known[3] = False
    return ArraySource(
        arrays["inputs"],
        arrays["labels"],
        label_names=whole.metadata.label_names,
        name="partly known",
        label_mask=known,
    )


def pictures(rows: int = 96, seed: int = 0) -> ArraySource:
    """Small grey pictures whose labels say which quarters are bright."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, size=(rows, 4)).astype(np.uint8)
    x = generator.integers(0, 60, size=(rows, 16, 16, 1))
    for quarter in range(4):
        top, left = divmod(quarter, 2)
        x[:, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8] += (
            120 * y[:, quarter, None, None, None]
        )
    return ArraySource(
        x.astype(np.uint8), y, label_names=[f"quarter {i}" for i in range(4)], name="pictures"
    )


_SPLITS = {"train": (96, 0), "validation": (48, 1), "test": (64, 2)}
register_source("synthetic", lambda body, options, places: vectors(*_SPLITS[body]))

SMALL_MLP = MLP(hidden=(32, 64), dropout=0.2)
SMALL_RESNET = ResNet(depths=(1, 1), channels=8, stem="small")


def pretrain(kind: str, optimizer: Optimizer, **changes: Any) -> Stage:
    """A contrastive stage on vectors or pictures, queue filling on the way."""
    encoder = SMALL_RESNET if kind == "pictures" else SMALL_MLP
    stage = Stage(
        MulSupCon(encoder=encoder, head=Projection(width=16), queue_capacity=48),
        steps(20),
        batch_size=16,
        optimizer=optimizer,
        augmentation=(Shift(2), Intensity()) if kind == "pictures" else (ZeroMask(0.3),),
    )
    return dataclasses.replace(stage, **changes)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """The small experiment, in a folder of the test's own."""
    return small_experiment(tmp_path / "run")


def small_experiment(workdir: Path) -> Experiment:
    """Pretraining, a linear probe and BCE, on sources registered by URI."""
    optimizer = Optimizer("adam", 1e-3, schedule=Cosine())
    probe = Classification(encoder=SMALL_MLP, encoder_mode="eval")
    return Experiment(
        name="small",
        data=Data("synthetic:train", "synthetic:validation", "synthetic:test"),
        stages={
            "pretrain": pretrain("vectors", optimizer, duration=steps(60)),
            "probe": Stage(
                probe,
                steps(40),
                batch_size=16,
                optimizer=Optimizer("adam", 1e-2),
                starts_from="pretrain",
                frozen=("^encoder/",),
                validate_every=steps(10),
                select="map",
            ),
            "bce": Stage(
                Classification(encoder=SMALL_MLP),
                steps(30),
                batch_size=16,
                optimizer=optimizer,
                validate_every=steps(10),
            ),
        },
        checkpoint=Checkpoint(every=steps(7)),
        logging=Logging(every=steps(5)),
        workdir=str(workdir),
    )
