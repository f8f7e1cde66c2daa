"""The published recipes for photographs take real steps, at reduced size, on real photographs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.cli import main
from jaxmlcl.config import Data, Experiment, Images, Loading, ResNet, load, steps, to_json
from jaxmlcl.models import Pretrained, save_pretrained
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.splits import open_split
from jaxmlcl.training.trainer import train
from tests.conftest import ROOT

pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")

CONFIGS = ROOT / "configs"
PUBLISHED = ("coco", "mirflickr", "nuswide", "objects365", "voc2007")
RECIPES = [CONFIGS / "mulsupcon" / f"{name}_resnet50.py" for name in PUBLISHED]
ENCODER = ResNet((1,), channels=8, block="bottleneck")
COCO = "coco:images/coco_256/annotations/instances_{}2017.json?empty=drop"
VOC = "voc:images/voc2012_animals/VOC2012?set="


def test_recipes_are_those_of_the_paper() -> None:
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


COCO_DATA = Data(
    f"{COCO.format('train')}&part=rest",
    f"{COCO.format('train')}&part=held-out",
    COCO.format("val"),
)
VOC_DATA = Data(f"{VOC}train&part=rest", f"{VOC}train&part=held-out", f"{VOC}val")


def images(shared_data: Path) -> Path:
    if not (shared_data / "images").is_dir():
        pytest.skip("JAXMLCL_DATA names no folder with images/")
    return shared_data


def shortened(experiment: Experiment, root: Path, workdir: Path, steps_of: int) -> Experiment:
    """A recipe with its sizes and lengths cut: COCO's subset first, VOC's where it transfers."""

    def small(data: Data) -> Data:
        return dataclasses.replace(data, root=str(root), images=Images(size=24))

    def cut(stage: Any) -> Any:
        changes: dict[str, Any] = {"encoder": ENCODER}
        if hasattr(stage.objective, "queue_capacity"):
            changes["queue_capacity"] = 32
        return dataclasses.replace(
            stage,
            objective=dataclasses.replace(stage.objective, **changes),
            duration=steps(steps_of),
            batch_size=8,
            validate_every=steps(10),
            data=None if stage.data is None else small(VOC_DATA),
        )

    return dataclasses.replace(
        experiment,
        data=small(COCO_DATA),
        stages={name: cut(stage) for name, stage in experiment.stages.items()},
        loading=Loading(),
        workdir=str(workdir),
    )


def test_transfers_are_those_of_the_paper() -> None:
    coco = load(CONFIGS / "mulsupcon" / "coco_transfer.py")
    nuswide = load(CONFIGS / "mulsupcon" / "nuswide_transfer.py")
    pascal, mirflickr = (load(RECIPES[index]).data for index in (4, 1))
    for experiment in (coco, nuswide):
        for name, stage in experiment.stages.items():
            if stage.data is None:
                continue
            assert stage.data == (pascal if name.startswith("pascal") else mirflickr)
            assert stage.frozen == ("^encoder/",)
            assert stage.optimizer.learning_rate == 0.04
    starts = {name: stage.starts_from for name, stage in coco.stages.items() if stage.data}
    assert starts == {
        "pascal": "pretrain",
        "pascal_bce": "bce",
        "pascal_finetuned": "finetune",
        "mirflickr": "pretrain",
        "mirflickr_bce": "bce",
    }
    # In three stages: pretrained on COCO, fine-tuned on COCO, probed on PASCAL.
    assert coco.stages["finetune"].starts_from == "pretrain"
    assert {name for name, stage in nuswide.stages.items() if stage.data} == {
        *("pascal", "pascal_bce", "mirflickr", "mirflickr_bce")
    }


@pytest.mark.slow
def test_twenty_real_steps_of_the_transfer(shared_data: Path, tmp_path: Path) -> None:
    recipe = load(CONFIGS / "mulsupcon" / "coco_transfer.py")
    names = ("pretrain", "finetune", "pascal", "pascal_finetuned")
    recipe = dataclasses.replace(recipe, stages={name: recipe.stages[name] for name in names})
    experiment = shortened(recipe, images(shared_data), tmp_path / "run", 20)
    workdir = train(experiment, to_json(experiment))
    found = evaluate_run(experiment, workdir, "test")
    results = found["stages"]
    assert set(results) == {"finetune", "pascal", "pascal_finetuned"}
    assert all(np.isfinite(one["threshold_free"]["map"]) for one in results.values())
    rows = {name: len(one["per_label"]) for name, one in results.items()}
    assert rows == {"finetune": 80, "pascal": 20, "pascal_finetuned": 20}


@pytest.mark.slow
def test_features_of_imagenet_and_twenty_real_steps_on_them(
    shared_data: Path, tmp_path: Path
) -> None:
    """Table 4 from a file of weights to scores of both methods, with weights that are random."""
    pytest.importorskip("safetensors", reason="safetensors (extra weights) is not installed")
    module = ENCODER.build(jnp.float32)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)), False)
    save_pretrained(
        tmp_path / "own.safetensors",
        Pretrained(ENCODER, variables["params"], variables["batch_stats"]),
    )
    recipe = load(CONFIGS / "features" / "imagenet_coco.py")
    experiment = shortened(recipe, images(shared_data), tmp_path / "imagenet", 20)
    stage = dataclasses.replace(
        experiment.stages["linear"], weights=str(tmp_path / "own.safetensors")
    )
    experiment = dataclasses.replace(experiment, stages={"linear": stage})
    workdir = train(experiment, to_json(experiment))
    (tmp_path / "features").mkdir()
    for split in ("train", "validation", "test"):
        words = ["embed", str(workdir), "--split", split]
        assert main([*words, "-o", str(tmp_path / "features" / f"coco-{split}.npz")]) == 0
    vectors = load(CONFIGS / "features" / "coco.py")
    assert open_split(dataclasses.replace(vectors.data, root=str(tmp_path)), "train")[0][
        "inputs"
    ].shape == (ENCODER.width,)
    stages = {
        name: dataclasses.replace(one, duration=steps(20), batch_size=8, validate_every=steps(10))
        for name, one in vectors.stages.items()
    }
    vectors = dataclasses.replace(
        vectors,
        data=dataclasses.replace(vectors.data, root=str(tmp_path)),
        stages=stages,
        workdir=str(tmp_path / "vectors"),
    )
    workdir = train(vectors, to_json(vectors))
    results = evaluate_run(vectors, workdir, "test")["stages"]
    assert set(results) == {"finetune", "cgmvae"}
    assert all(np.isfinite(one["threshold_free"]["map"]) for one in results.values())


def test_bce_gets_as_many_epochs_or_as_many_forward_passes() -> None:
    for name in ("voc2012_animals", "voc2012_animals_resnet50"):
        stages = load(CONFIGS / "mulsupcon" / f"{name}.py").stages
        epochs_of = {stage: int(str(one.duration).split()[0]) for stage, one in stages.items()}
        pretraining, after = epochs_of["pretrain"], epochs_of["finetune"]
        assert epochs_of["linear"] == after
        assert epochs_of["bce"] == pretraining + after
        # Of every image the query encoder sees one view and the key encoder the other.
        assert stages["pretrain"].objective.views == 2
        assert epochs_of["bce_same_passes"] == 2 * pretraining + after
        for other in stages.values():
            assert other.augmentation == stages["pretrain"].augmentation


@pytest.mark.slow
def test_twenty_real_steps_of_the_animals(shared_data: Path, tmp_path: Path) -> None:
    root, recipe = images(shared_data), load(CONFIGS / "mulsupcon" / "voc2012_animals.py")
    experiment = shortened(recipe, root, tmp_path / "run", 20)
    # Its own data, which are those of VOC's subset.
    own = dataclasses.replace(recipe.data, root=str(root), images=Images(size=24))
    experiment = dataclasses.replace(experiment, data=own)
    workdir = train(experiment, to_json(experiment))
    words = ["evaluate", str(workdir)], ["report", str(workdir)]
    assert [main(list(one)) for one in words] == [0, 0]
    page = (workdir / "report.html").read_text()
    assert page.count('alt="Heat map of class similarities') == 4
    assert page.count('alt="Sample') == 24
