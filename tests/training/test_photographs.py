"""Training on photographs: crops from workers, resumed to the bit, scored, counted if broken."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxmlcl.cli import main
from jaxmlcl.config import (
    ResNet,
    strategy,
    to_json,
)
from jaxmlcl.data.augment_images import RandomResizedCrop
from jaxmlcl.data.images import Images
from jaxmlcl.data.pipeline import Loading
from jaxmlcl.errors import ConfigError, DataError, Preempted
from jaxmlcl.methods import Classification
from jaxmlcl.predictor import load_predictor
from jaxmlcl.training import program
from jaxmlcl.training.duration import steps
from jaxmlcl.training.evaluate import evaluate_run
from jaxmlcl.training.experiment import Checkpoint, Data, Experiment, Logging
from jaxmlcl.training.export import export_predictor
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.population import train_population
from jaxmlcl.training.splits import fit_preparation, open_split
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.trainer import train
from tests.training.conftest import pictures, pretrain
from tests.training.test_trainer import Lines, Stop, arrays_of, untimed

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")
pytest.importorskip("simplejpeg", reason="simplejpeg (extra images) is not installed")

ENCODER = ResNet(depths=(1, 1), channels=8, stem="small")


def run(experiment: Experiment, console: Any = None) -> Path:
    return train(experiment, to_json(experiment), console=console, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour pictures whose bright quarters are their labels, as JPEG of several sizes."""
    place = tmp_path_factory.mktemp("photographs")
    with (place / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "split", *(f"quarter {i}" for i in range(4))])
        for split, rows, seed in (("train", 48, 0), ("validation", 24, 1), ("test", 24, 2)):
            arrays = pictures(rows, seed).arrays()
            for row, (x, y) in enumerate(zip(arrays["inputs"], arrays["labels"], strict=True)):
                size = (40 + 3 * (row % 5), 40 + 2 * (row % 7))
                image = cv2.resize(np.repeat(x, 3, axis=2), size, interpolation=cv2.INTER_LINEAR)
                name = f"{split}-{row}.jpg"
                cv2.imwrite(str(place / name), image)
                table.writerow([name, split, *y])
    return place


def photographs(folder: Path, workdir: Path, **images: Any) -> Experiment:
    """Pretraining on two crops of each image, a probe on one, and BCE on central crops."""
    optimizer = Optimizer("adam", 3e-3)
    uri = f"folder:{folder}?split="
    return Experiment(
        name="photographs",
        data=Data(
            f"{uri}train", f"{uri}validation", f"{uri}test", images=Images(**{"size": 16, **images})
        ),
        stages={
            "pretrain": pretrain(
                "pictures", optimizer, duration=steps(12), augmentation=strategy("simclr")
            ),
            "probe": Stage(
                Classification(encoder=ENCODER, encoder_mode="eval"),
                steps(8),
                batch_size=16,
                optimizer=Optimizer("adam", 1e-2),
                augmentation=(RandomResizedCrop(scale=(0.5, 1.0)),),
                starts_from="pretrain",
                frozen=("^encoder/",),
                validate_every=steps(4),
                select="map",
            ),
            "bce": Stage(
                Classification(encoder=ENCODER),
                steps(60),
                batch_size=16,
                optimizer=optimizer,
                validate_every=steps(20),
            ),
        },
        checkpoint=Checkpoint(every=steps(5)),
        logging=Logging(every=steps(3)),
        workdir=str(workdir),
    )


@dataclasses.dataclass(frozen=True)
class Done:
    experiment: Experiment
    workdir: Path
    evaluation: dict[str, Any]


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    experiment = photographs(folder, tmp_path_factory.mktemp("done") / "run")
    workdir = run(experiment)
    return Done(experiment, workdir, evaluate_run(experiment, workdir, "test"))


def test_photographs_are_learnt_and_scored(done: Done) -> None:
    stages = done.evaluation["stages"]
    # Central crops show the quarters; half of the labels are set.
    assert stages["bce"]["threshold_free"]["map"] > 0.9
    assert stages["probe"]["threshold_free"]["map"] > 0.3
    assert done.evaluation["data"]["num_rows"] == 24


def test_workers_change_no_bit(done: Done, folder: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(
        photographs(folder, tmp_path / "run"), loading=Loading(workers=2, ahead=2)
    )
    run(other)
    assert untimed(tmp_path / "run") == untimed(done.workdir)
    found, expected = (arrays_of(e, Path(str(e.workdir))) for e in (other, done.experiment))
    for stage, scores in expected.items():
        np.testing.assert_array_equal(found[stage], scores)


def test_a_stopped_run_goes_on_to_the_same_bits(done: Done, folder: Path, tmp_path: Path) -> None:
    experiment = dataclasses.replace(
        photographs(folder, tmp_path / "run"), loading=Loading(workers=1)
    )
    with pytest.raises(Preempted):
        run(experiment, Stop("pretrain", 7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    # How data are loaded may change on the way.
    run(dataclasses.replace(experiment, loading=Loading(threads=2)))
    assert untimed(tmp_path / "run") == untimed(done.workdir)


def test_devices_change_rounding_only(done: Done, folder: Path, tmp_path: Path) -> None:
    experiment = photographs(folder, tmp_path / "run")
    pretraining = dataclasses.replace(
        experiment, stages={"pretrain": experiment.stages["pretrain"]}
    )
    train(pretraining, to_json(pretraining), devices=jax.devices()[:4])
    found, expected = (
        [row["loss"] for row in untimed(Path(workdir)) if row["stage"] == "pretrain"]
        for workdir in (tmp_path / "run", done.workdir)
    )
    assert len(found) == 4
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_the_network_sees_standardised_channels(folder: Path, tmp_path: Path) -> None:
    data = photographs(folder, tmp_path, statistics="imagenet").data
    preparation = fit_preparation(data, open_split(data, "train"))
    assert preparation.mean is not None
    np.testing.assert_allclose(preparation.mean, [0.485, 0.456, 0.406])
    assert preparation.scale == 1 / 255
    plain = fit_preparation(dataclasses.replace(data, inputs="unit"), open_split(data, "train"))
    assert (plain.mean, plain.deviation) == (None, None)


def test_large_images_are_scored_a_few_at_a_time_and_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photographs(folder, tmp_path).data
    source = open_split(data, "validation")
    mesh = photographs(folder, tmp_path).mesh.build(jax.devices()[:1])
    together = program.scoring_inputs(source, mesh)
    assert isinstance(together, list)
    monkeypatch.setattr(program, "_SCORING_VALUES", 9 * 16 * 16 * 3)
    monkeypatch.setattr(program, "_KEPT_BYTES", 0)
    again = program.scoring_inputs(source, mesh)
    for _ in range(2):
        parts = list(again)
        assert [(len(x), valid) for x, valid in parts] == [(8, 8)] * 3
        np.testing.assert_array_equal(
            np.concatenate([x[:valid] for x, valid in parts]), together[0][0][:24]
        )


def test_what_cannot_be_decoded_is_named_or_counted(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "photographs"
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (place / "train-3.jpg").write_bytes((folder / "train-3.jpg").read_bytes()[:200])
    with pytest.raises(DataError, match=r"train-3.jpg: cannot be decoded"):
        run(photographs(place, tmp_path / "strict"))
    lenient, console = photographs(place, tmp_path / "run", undecodable="skip"), Lines()
    with pytest.raises(Preempted):
        run(lenient, Stop("pretrain", 7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    workdir = run(lenient, console)
    told = [line for line in console.lines if "stood in for images" in line]
    # 12 steps of 16 are four passes over 48 images, 8 are two and two thirds, 60 are 20.
    assert told[0] == "pretrain: 4 samples stood in for images that cannot be decoded"
    assert told[2] == "bce: 20 samples stood in for images that cannot be decoded"
    stages = json.loads((workdir / "stages.json").read_text())
    assert stages["pretrain"]["replaced_samples"] == 4
    (place / "test-0.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"test-0.jpg: cannot be decoded"):
        evaluate_run(lenient, workdir, "test")


def test_a_crop_is_of_photographs_only_and_once(folder: Path, tmp_path: Path) -> None:
    experiment = photographs(folder, tmp_path / "run")
    twice = dataclasses.replace(
        experiment.stages["bce"], augmentation=(RandomResizedCrop(), RandomResizedCrop())
    )
    with pytest.raises(ConfigError, match=r"stages.bce: RandomResizedCrop.*name it once"):
        run(dataclasses.replace(experiment, stages={"bce": twice}))
    stage = dataclasses.replace(experiment.stages["bce"], augmentation=(RandomResizedCrop(),))
    memory = dataclasses.replace(
        experiment, data=Data("synthetic:train", "synthetic:validation"), stages={"bce": stage}
    )
    with pytest.raises(ConfigError, match=r"stages.bce: RandomResizedCrop.*use Shift"):
        run(memory)


def test_variants_are_not_trained_together(folder: Path, tmp_path: Path) -> None:
    experiments = [
        dataclasses.replace(photographs(folder, tmp_path / "run"), seed=seed) for seed in (0, 1)
    ]
    with pytest.raises(ConfigError, match=r"are photographs.*use `jaxmlcl train` for each"):
        train_population(experiments)


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "photos.py"
    config.write_text(
        "from jaxmlcl.config import *\n"
        f'data = Data("folder:{folder}?split=train", test="folder:{folder}?split=test")\n'
        "encoder = ResNet(depths=(1,), channels=4, stem='small')\n"
        "stage = Stage(Classification(encoder), steps(2), batch_size=8,\n"
        "              augmentation=strategy('randaugment'))\n"
        "experiment = Experiment('photos', data, {'bce': stage})\n"
    )
    words = ["--data.images.size", "16", "--loading.workers", "1"]
    assert main(["train", str(config), *words, "--workdir", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--split", "test"]) == 0
    out = capsys.readouterr()
    assert "mAP" in out.out + out.err
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "no sample images" not in capsys.readouterr().err
    assert (tmp_path / "run/report.html").read_text().count("data:image/png;base64") >= 24
    table, scores = tmp_path / "scores.csv", tmp_path / "run/evaluation/bce-test.npz"
    for what in (f"folder:{folder}?split=test", str(folder / "test-3.jpg"), str(folder)):
        assert main(["predict", str(tmp_path / "run"), what, "-o", str(table)]) == 0
        lines = table.read_text().splitlines()
        if what.startswith("folder:"):
            with np.load(scores, allow_pickle=False) as stored:
                evaluated = stored["scores"]
            found = np.array([line.split(",")[1:] for line in lines[1:]], np.float32)
            np.testing.assert_allclose(found, evaluated, atol=2e-6)
        else:
            assert lines[1].startswith("test-3.jpg," if what.endswith(".jpg") else "test-0.jpg,")
    assert len(lines) == 1 + 96
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "run"), "-o", str(table)]) == 2
    assert "no image file in it" in capsys.readouterr().err
    words = ["--data.images.size", "0", "--workdir", str(tmp_path / "other")]
    assert main(["train", str(config), *words]) == 2
    assert "images: size must be from 1" in capsys.readouterr().err


def test_an_exported_predictor_takes_crops_as_evaluation_cuts_them(
    done: Done, tmp_path: Path
) -> None:
    pytest.importorskip("flatbuffers", reason="flatbuffers (extra export) is not installed")
    path = tmp_path / "bce.zip"
    export_predictor(done.experiment, done.workdir, path, "bce", ["cpu"])
    source = open_split(done.experiment.data, "test")
    crops = np.stack([source[row]["inputs"] for row in range(len(source))])
    assert (crops.dtype, crops.shape) == (np.uint8, (24, 16, 16, 3))
    with np.load(done.workdir / "evaluation" / "bce-test.npz") as expected:
        found = load_predictor(path).scores(crops)
        np.testing.assert_allclose(found, expected["scores"], rtol=1e-5, atol=1e-6)
