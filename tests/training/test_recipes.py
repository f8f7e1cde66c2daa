"""The published recipes for photographs take real steps, at reduced size, on real photographs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.config import Data, Experiment, Images, Loading, ResNet, load, steps, to_json
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.trainer import train
from tests.conftest import ROOT

pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")

RECIPES = sorted((ROOT / "configs" / "mulsupcon").glob("*_resnet50.py"))
ENCODER = ResNet((1,), channels=8, block="bottleneck")
COCO = "coco:images/coco_256/annotations/instances_{}2017.json?empty=drop"
VOC = "voc:images/voc2012_animals/VOC2012?set="


def test_recipes_are_those_of_the_paper() -> None:
    assert [path.stem.split("_")[0] for path in RECIPES] == [
        *("coco", "mirflickr", "nuswide", "objects365", "voc2007")
    ]
    for path in RECIPES:
        experiment = load(path)
        pretrain, linear, finetune, bce = experiment.stages.values()
        assert str(pretrain.duration) == str(bce.duration) == "400 epochs"
        assert pretrain.batch_size == (128 if path.stem.startswith("objects365") else 64)
        assert pretrain.optimizer == bce.optimizer
        assert pretrain.optimizer.learning_rate == 0.1
        assert (linear.optimizer.learning_rate, finetune.optimizer.learning_rate) == (0.01, 1e-4)
        assert linear.frozen == ("^encoder/",)
        assert pretrain.objective.encoder == ResNet((3, 4, 6, 3), block="bottleneck")
        assert pretrain.objective.queue_capacity % pretrain.batch_size == 0


def reduced(path: Path, root: Path, workdir: Path) -> Experiment:
    """A recipe with its data, sizes and lengths cut, and nothing else changed.

    The stages are the same in all, so all four of them are tried for COCO and VOC only.
    """
    experiment = load(path)
    whole = path.stem in ("coco_resnet50", "voc2007_resnet50")
    names = list(experiment.stages)[: 4 if whole else 2]
    data = Data(
        f"{COCO.format('train')}&part=rest",
        f"{COCO.format('train')}&part=held-out",
        COCO.format("val"),
    )
    if path.stem.startswith("voc2007"):
        data = Data(f"{VOC}train&part=rest", f"{VOC}train&part=held-out", f"{VOC}val")

    def cut(stage: Any) -> Any:
        changes = {"encoder": ENCODER}
        if hasattr(stage.objective, "queue_capacity"):
            changes["queue_capacity"] = 32
        objective = dataclasses.replace(stage.objective, **changes)
        return dataclasses.replace(
            stage, objective=objective, duration=steps(20), batch_size=8, validate_every=steps(10)
        )

    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(data, root=str(root), images=Images(size=24)),
        stages={name: cut(experiment.stages[name]) for name in names},
        main=names[-1],
        loading=Loading(workers=1),
        workdir=str(workdir),
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_twenty_real_steps(path: Path, shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "images").is_dir():
        pytest.skip("JAXMLCL_DATA names no folder with images/")
    experiment = reduced(path, shared_data, tmp_path / "run")
    workdir = train(experiment, to_json(experiment))
    stages = json.loads((workdir / "stages.json").read_text())
    assert [stage["steps"] for stage in stages.values()] == [20] * len(experiment.stages)
    found = evaluate_run(experiment, workdir, "test")
    assert set(found["stages"]) == set(experiment.stages) - {"pretrain"}
    assert all(np.isfinite(one["threshold_free"]["map"]) for one in found["stages"].values())
