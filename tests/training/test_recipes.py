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
from jaxmlcl.config import (
    Cosine,
    Data,
    Experiment,
    Images,
    Loading,
    Optimizer,
    Plateau,
    ResNet,
    load,
    steps,
    strategy,
    to_json,
)
from jaxmlcl.models import Pretrained, save_pretrained
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.splits import open_split
from jaxmlcl.training.trainer import train
from tests.conftest import ROOT
from tests.training.published import write_published

pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")

CONFIGS = ROOT / "configs"
MULSUPCON, FEATURES = CONFIGS / "mulsupcon", CONFIGS / "features"
PUBLISHED = ("coco", "mirflickr", "nuswide", "objects365", "voc2007")
RECIPES = {name: MULSUPCON / f"{name}_resnet50.py" for name in PUBLISHED}
ENCODER = ResNet((1,), channels=8, block="bottleneck")
PIXELS = 24


@pytest.fixture(scope="module")
def published(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which every recipe finds what it names."""
    pytest.importorskip("msgspec", reason="msgspec (extra images) is not installed")
    pytest.importorskip("array_record", reason="array-record (extra images) is not installed")
    if not (shared_data / "images").is_dir():
        pytest.skip("JAXMLCL_DATA names no folder with images/")
    root = tmp_path_factory.mktemp("published")
    write_published(shared_data, root)
    return root


def shortened(path: Path, root: Path, workdir: Path) -> Experiment:
    """A recipe with its sizes and lengths cut, and nothing else changed."""
    experiment = load(path)

    def placed(data: Data) -> Data:
        return dataclasses.replace(data, root=str(root), images=Images(size=PIXELS))

    def cut(stage: Any) -> Any:
        changes: dict[str, Any] = {"encoder": ENCODER}
        if hasattr(stage.objective, "queue_capacity"):
            changes["queue_capacity"] = 32
        return dataclasses.replace(
            stage,
            objective=dataclasses.replace(stage.objective, **changes),
            duration=steps(20),
            batch_size=8,
            validate_every=steps(10),
            data=None if stage.data is None else placed(stage.data),
        )

    return dataclasses.replace(
        experiment,
        data=placed(experiment.data),
        stages={name: cut(stage) for name, stage in experiment.stages.items()},
        loading=Loading(),
        workdir=str(workdir),
    )


def check_twenty_steps(experiment: Experiment, labels: dict[str, int]) -> Path:
    """Every stage takes its steps, and all that give scores give them for so many labels."""
    workdir = train(experiment, to_json(experiment))
    stages = json.loads((workdir / "stages.json").read_text())
    assert {name: stage["steps"] for name, stage in stages.items()} == dict.fromkeys(
        experiment.stages, 20
    )
    results = evaluate_run(experiment, workdir, "test")["stages"]
    assert {name: len(one["per_label"]) for name, one in results.items()} == labels
    assert all(np.isfinite(one["threshold_free"]["map"]) for one in results.values())
    return workdir


def test_recipes_are_those_of_the_paper() -> None:
    for name, path in RECIPES.items():
        experiment = load(path)
        assert list(experiment.stages) == ["pretrain", "linear", "finetune", "bce"]
        pretrain, linear, finetune, bce = experiment.stages.values()
        encoder = ResNet((3, 4, 6, 3), block="bottleneck")
        assert {stage.objective.encoder for stage in experiment.stages.values()} == {encoder}
        # Images of 224 pixels, with the statistics of CIFAR-10.
        assert experiment.data.images == Images(size=224, statistics="cifar10")
        batch_size = 128 if name == "objects365" else 64
        for stage in (pretrain, bce):
            assert str(stage.duration) == "400 epochs"
            assert stage.batch_size == batch_size
            assert stage.augmentation == strategy("simclr")
            assert stage.optimizer == Optimizer(
                "sgd", 0.1, schedule=Cosine(), momentum=0.9, weight_decay=1e-4
            )
        assert pretrain.objective.queue_capacity % batch_size == 0
        plateau = Plateau(factor=0.1, patience=2, cooldown=1, threshold=1e-3)
        for stage, rate in ((linear, 0.01), (finetune, 1e-4)):
            assert stage.optimizer == Optimizer("adam", rate, schedule=plateau)
            assert stage.augmentation == strategy("simple")
            assert (stage.starts_from, stage.select) == ("pretrain", "loss")
        assert (linear.frozen, finetune.frozen) == (("^encoder/",), ())
        modes = [stage.objective.encoder_mode for stage in (linear, finetune, bce)]
        assert modes == ["eval", "train", "train"]
        # Images without labels are dropped; every image of PASCAL has some.
        for uri in (experiment.data.train, experiment.data.validation, experiment.data.test):
            assert ("empty=drop" in str(uri)) is (name != "voc2007")


def test_recipes_split_as_the_paper_does(published: Path) -> None:
    """Shares of test and validation; the fixture has 256 images where the sets are split here."""

    def sizes(name: str) -> list[int]:
        data = dataclasses.replace(load(RECIPES[name]).data, root=str(published))
        return [len(open_split(data, split)) for split in ("train", "validation", "test")]

    labelled = 254  # of COCO's subset; many of its labels are rare, which shifts the sizes
    for name, test, validation in (
        ("mirflickr", 4917 / (19664 + 4917), 0.1),
        ("nuswide", 59347 / 209347, 15000 / 209347),
    ):
        train_rows, validation_rows, test_rows = sizes(name)
        assert train_rows + validation_rows + test_rows == labelled
        assert test_rows == pytest.approx(test * labelled, abs=6)
        assert validation_rows == pytest.approx(validation * labelled, abs=6)
    whole = len(open_split(Data(f"shards:{published}/packed/objects365-train?empty=drop"), "train"))
    assert sizes("objects365")[0] == pytest.approx(515233 / 1742289 * whole, rel=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_twenty_real_steps(name: str, published: Path, tmp_path: Path) -> None:
    labels = 20 if name == "voc2007" else 80
    experiment = shortened(RECIPES[name], published, tmp_path / "run")
    check_twenty_steps(experiment, dict.fromkeys(("linear", "finetune", "bce"), labels))


def test_transfers_are_those_of_the_paper() -> None:
    coco = load(MULSUPCON / "coco_transfer.py")
    nuswide = load(MULSUPCON / "nuswide_transfer.py")
    pascal, mirflickr = (load(RECIPES[name]).data for name in ("voc2007", "mirflickr"))
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
@pytest.mark.parametrize("name", ["coco", "nuswide"])
def test_twenty_real_steps_of_the_transfers(name: str, published: Path, tmp_path: Path) -> None:
    experiment = shortened(MULSUPCON / f"{name}_transfer.py", published, tmp_path / "run")
    labels = {
        stage: 20 if stage.startswith("pascal") else 80
        for stage in experiment.stages
        if stage != "pretrain"
    }
    check_twenty_steps(experiment, labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco", "mirflickr", "voc2007"])
def test_features_of_imagenet_and_twenty_real_steps_on_them(
    name: str, published: Path, tmp_path: Path
) -> None:
    """Table 4 from a file of weights to scores of both methods, with weights that are random."""
    pytest.importorskip("safetensors", reason="safetensors (extra weights) is not installed")
    module = ENCODER.build(jnp.float32)
    variables = module.init(jax.random.key(0), jnp.zeros((1, PIXELS, PIXELS, 3)), False)
    save_pretrained(
        tmp_path / "own.safetensors",
        Pretrained(ENCODER, variables["params"], variables["batch_stats"]),
    )
    experiment = shortened(FEATURES / f"imagenet_{name}.py", published, tmp_path / "imagenet")
    stage = experiment.stages["linear"]
    assert stage.frozen == ("^encoder/",)
    weights = str(tmp_path / "own.safetensors")
    experiment = dataclasses.replace(
        experiment, stages={"linear": dataclasses.replace(stage, weights=weights)}
    )
    labels = 20 if name == "voc2007" else 80
    workdir = check_twenty_steps(experiment, {"linear": labels})
    (tmp_path / "features").mkdir()
    for split in ("train", "validation", "test"):
        words = ["embed", str(workdir), "--split", split]
        assert main([*words, "-o", str(tmp_path / "features" / f"{name}-{split}.npz")]) == 0

    def placed(data: Data | None) -> Data | None:
        return data and dataclasses.replace(data, root=str(tmp_path))

    vectors = load(FEATURES / f"{name}.py")
    stages = {
        stage: dataclasses.replace(
            one,
            duration=steps(20),
            batch_size=8,
            validate_every=steps(10),
            data=placed(one.data),
        )
        for stage, one in vectors.stages.items()
    }
    # The paper's C-GMVAE takes features as they are.
    assert (vectors.data.inputs, stages["cgmvae"].data.inputs) == ("standardize", "raw")
    vectors = dataclasses.replace(
        vectors, data=placed(vectors.data), stages=stages, workdir=str(tmp_path / "vectors")
    )
    assert open_split(vectors.data, "train")[0]["inputs"].shape == (ENCODER.width,)
    check_twenty_steps(vectors, {"finetune": labels, "cgmvae": labels})


def test_bce_gets_as_many_epochs_or_as_many_forward_passes() -> None:
    for name in ("voc2012_animals", "voc2012_animals_resnet50"):
        stages = load(MULSUPCON / f"{name}.py").stages
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
@pytest.mark.parametrize("name", ["voc2012_animals", "voc2012_animals_resnet50"])
def test_twenty_real_steps_of_the_animals(name: str, shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "images").is_dir():
        pytest.skip("JAXMLCL_DATA names no folder with images/")
    experiment = shortened(MULSUPCON / f"{name}.py", shared_data, tmp_path / "run")
    # A fifth of its images, which are thousands.
    fewer = {
        split: f"{getattr(experiment.data, split)}&share=0.2"
        for split in ("train", "validation", "test")
    }
    data = dataclasses.replace(experiment.data, **fewer)
    experiment = dataclasses.replace(experiment, data=data)
    scored = ("linear", "finetune", "bce", "bce_same_passes")
    workdir = check_twenty_steps(experiment, dict.fromkeys(scored, 20))
    if name != "voc2012_animals":
        return
    words = ["evaluate", str(workdir)], ["report", str(workdir)]
    assert [main(list(one)) for one in words] == [0, 0]
    page = (workdir / "report.html").read_text()
    assert page.count('alt="Heat map of class similarities') == 4
    assert page.count('alt="Sample') == 24
