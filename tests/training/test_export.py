"""Exported predictors: the scores of `predict`, without the run, from a file that is checked."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlcl.config import to_json
from jaxmlcl.data.features import source_features
from jaxmlcl.data.source import ArraySource, open_source, register_source
from jaxmlcl.errors import ConfigError, DataError, UserError
from jaxmlcl.methods import CGMVAE, Classification, JointMulSupCon, MulSupCon
from jaxmlcl.models import MLP, Encoder, Projection, ViT, load_pretrained
from jaxmlcl.predictor import Predictor, load_predictor
from jaxmlcl.training import export
from jaxmlcl.training.checkpoint import Checkpoint as Saved
from jaxmlcl.training.duration import steps
from jaxmlcl.training.experiment import Checkpoint, Data, Experiment
from jaxmlcl.training.export import export_encoder, export_predictor
from jaxmlcl.training.predict import Network, open_network
from jaxmlcl.training.program import build_stage, device_constants
from jaxmlcl.training.scoring import scoring_mesh
from jaxmlcl.training.splits import Preparation
from jaxmlcl.training.stage import Stage
from jaxmlcl.training.thresholds import recall_thresholds
from jaxmlcl.training.trained_on import describe
from jaxmlcl.training.trainer import train
from tests.conftest import ROOT
from tests.training.conftest import pictures

pytest.importorskip("flatbuffers", reason="flatbuffers (extra export) is not installed")


def coloured(rows: int, seed: int) -> ArraySource:
    """The pictures in three channels that differ."""
    grey = pictures(rows, seed)
    arrays = grey.arrays()
    x = np.concatenate([arrays["inputs"] // part for part in (1, 2, 3)], axis=-1)
    return ArraySource(
        x, arrays["labels"], label_names=grey.metadata.label_names, name="coloured pictures"
    )


_SPLITS = {"train": (32, 0), "validation": (24, 1), "test": (20, 2)}
register_source("coloured", lambda body, options, places: coloured(*_SPLITS[body]))

VIT = ViT(patch=8, units=8, depth=1, heads=2)
SMALL = MLP(hidden=(8,), dropout=0.2)


def trained(workdir: Path, kind: str, stages: dict[str, Stage], **changes: Any) -> Experiment:
    data = Data(*(f"{kind}:{split}" for split in ("train", "validation", "test")))
    experiment = Experiment(
        "small", data, stages, checkpoint=Checkpoint(), workdir=str(workdir), **changes
    )
    train(experiment, to_json(experiment), devices=jax.devices()[:1])
    return experiment


def others(encoder: Encoder) -> dict[str, Stage]:
    """Stages of every other method."""
    contrast = MulSupCon(encoder=encoder, head=Projection(width=4), queue_capacity=16)
    objectives = {
        "pretrain": contrast,
        "joint": JointMulSupCon(contrast),
        "cgmvae": CGMVAE(encoder=encoder),
    }
    return {name: Stage(found, steps(2), batch_size=8) for name, found in objectives.items()}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run on vectors whose last stage is finished; the others were never begun."""
    bce = Stage(Classification(encoder=SMALL), steps(9), batch_size=8, ema=0.9)
    place = tmp_path_factory.mktemp("vectors") / "run"
    experiment = trained(place, "synthetic", {"bce": bce})
    return dataclasses.replace(experiment, stages={**others(SMALL), "bce": bce})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The same on pictures."""
    bce = Stage(Classification(encoder=VIT), steps(9), batch_size=8)
    place = tmp_path_factory.mktemp("images") / "run"
    experiment = trained(place, "coloured", {"bce": bce})
    return dataclasses.replace(experiment, stages={**others(VIT), "bce": bce})


def fresh(experiment: Experiment, stage: str) -> Network:
    """What `open_network` would give if a stage had ended with its initial numbers."""
    source = open_source(experiment.data.train)
    mesh = scoring_mesh(experiment, jax.devices()[:1])
    flops = dict.fromkeys(experiment.stages, 1.0)
    program = build_stage(experiment, stage, mesh, source, flops, trains=False)
    preparation = Preparation.load(folder(experiment) / "preparation.npz")
    return Network(
        stage,
        describe(source),
        program,
        program.initial(None),
        Saved(Path(stage), 0, True, False, {}, {}, {}, {}, {}),
        device_constants(preparation, None, mesh, experiment.precision),
        experiment.data.images,
    )


def folder(experiment: Experiment) -> Path:
    assert experiment.workdir is not None
    return Path(experiment.workdir)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def opened(experiment: Experiment) -> Network:
    return open_network(experiment, folder(experiment), devices=jax.devices()[:1])


def predicted(network: Network, uri: str = "synthetic:test") -> tuple[np.ndarray, np.ndarray]:
    """Inputs of a split as it holds them, and what `predict` makes of them."""
    source = open_source(uri)
    parts = list(network.scores(source_features(source, uri, network.expected)))
    scores = np.concatenate([scores for _, scores in parts])
    assert np.ptp(scores, axis=0).min() > 1e-4  # they differ from row to row
    return source.arrays()["inputs"], scores


def exported(experiment: Experiment, path: Path, *options: Any) -> Predictor:
    export_predictor(experiment, folder(experiment), path, *options)
    return load_predictor(path)


@pytest.fixture(scope="module")
def file(vectors: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictor of the vectors' main stage; tests do not change it."""
    path = tmp_path_factory.mktemp("file") / "bce.zip"
    export_predictor(vectors, folder(vectors), path)
    return path


# -------------------------------------------------------------------------------------- scores


def test_vectors_get_the_scores_of_predict(vectors: Experiment, tmp_path: Path) -> None:
    inputs, expected = predicted(opened(vectors))
    predictor = exported(vectors, tmp_path / "new" / "a.zip")
    close(predictor.scores(inputs), expected)
    close(predictor.scores(inputs[3:4].astype(np.float64)), expected[3:4])


def test_pictures_get_the_scores_of_predict(images: Experiment, tmp_path: Path) -> None:
    inputs, expected = predicted(opened(images), "coloured:test")
    predictor = exported(images, tmp_path / "a.zip")
    assert inputs.dtype == np.uint8
    assert inputs.max() > 150
    close(predictor.scores(inputs), expected)
    close(predictor.scores(inputs[:1]), expected[:1])


@pytest.mark.parametrize("stage", ["joint", "cgmvae"])
def test_other_methods_are_exported_too(
    vectors: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    network = fresh(vectors, stage)
    monkeypatch.setattr(export, "open_network", lambda *_, **__: network)
    inputs, expected = predicted(network)
    close(exported(vectors, tmp_path / "a.zip", stage).scores(inputs), expected)


def test_rows_of_any_number_are_scored_in_a_few_sizes(vectors: Experiment, file: Path) -> None:
    inputs, expected = predicted(opened(vectors))
    whole = load_predictor(file)
    seen = []

    def function(part: np.ndarray) -> jax.Array:
        seen.append(len(part))
        return whole.function(part)

    description = dataclasses.replace(whole.description, rows=8)
    predictor = dataclasses.replace(whole, description=description, function=function)
    for count, sizes in ((0, []), (1, [1]), (5, [8]), (8, [8]), (21, [8, 8, 8]), (17, [8, 8, 1])):
        seen.clear()
        found = predictor.scores(inputs[:count])
        assert found.shape == (count, 4)
        close(found, expected[:count])
        assert seen == sizes


def test_the_number_of_rows_is_open_and_platforms_are_those_that_were_named(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["predictor.json", "predictor.bin"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        function = jax.export.deserialize(bytearray(archive.read("predictor.bin")))
    ((shape,), (scores,)) = function.in_avals, function.out_avals
    assert not isinstance(shape.shape[0], int)
    assert scores.shape == (shape.shape[0], 4)
    assert function.platforms == ("cpu", "cuda", "tpu")


def test_double_precision_needs_none_where_it_is_applied(tmp_path: Path) -> None:
    stages = {"bce": Stage(Classification(encoder=SMALL), steps(2), batch_size=8)}
    with jax.enable_x64(True):
        experiment = trained(tmp_path / "run", "synthetic", stages, precision="float64")
        inputs, expected = predicted(opened(experiment))
        export_predictor(experiment, folder(experiment), tmp_path / "a.zip")
    assert not jax.config.jax_enable_x64
    found = load_predictor(tmp_path / "a.zip").scores(inputs)
    # Not what float32 would give, which differs by more.
    np.testing.assert_allclose(found, expected, rtol=2e-7)


def test_a_new_process_needs_the_file_alone(
    vectors: Experiment, file: Path, tmp_path: Path
) -> None:
    inputs, expected = predicted(opened(vectors))
    np.save(tmp_path / "x.npy", inputs)
    shutil.copy(file, tmp_path / "moved.zip")
    program = """
import sys
import numpy as np
from jaxmlcl.predictor import load_predictor

predictor = load_predictor("moved.zip")
np.save("scores.npy", predictor.scores(np.load("x.npy")))
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("jaxmlcl.")}
print(sorted(rooms), sorted({"flax", "optax", "orbax", "grain"} & set(sys.modules)))
print(*predictor.label_names, sep=",")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    names = "label 0,label 1,label 2,label 3"
    assert done.stdout == f"['errors', 'io', 'predictor'] []\n{names}\n", done.stderr
    close(np.load(tmp_path / "scores.npy"), expected)


# ------------------------------------------------------------------------- what the file says


def test_the_file_says_what_it_takes_and_where_it_is_from(vectors: Experiment, file: Path) -> None:
    said, checkpoint = load_predictor(file).description, opened(vectors).checkpoint
    assert said.origin == ("small", "bce", 9, checkpoint.identity)
    assert (said.input_shape, said.input_dtype, said.rows) == ((12,), "float32", 512)
    assert said.label_names == tuple(f"label {i}" for i in range(4))
    assert said.jax == jax.__version__
    # The names of these columns were made up.
    assert said.feature_names is None


def test_the_same_network_gives_the_same_bytes(
    vectors: Experiment, file: Path, tmp_path: Path
) -> None:
    export_predictor(vectors, folder(vectors), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()
    # Nor does it tell where the programs are that wrote it.
    assert b".py" not in file.read_bytes()


def test_thresholds_are_there_if_the_run_has_them(vectors: Experiment, tmp_path: Path) -> None:
    workdir = shutil.copytree(folder(vectors), tmp_path / "run")
    copy = dataclasses.replace(vectors, workdir=str(workdir))
    (workdir / "thresholds.json").unlink(missing_ok=True)
    assert exported(copy, tmp_path / "a.zip").thresholds is None
    expected = {
        per: recall_thresholds(copy, workdir, opened(copy), per)  # type: ignore[arg-type]
        for per in ("all", "label")
    }
    found = exported(copy, tmp_path / "a.zip").thresholds
    assert found is not None
    assert [found.all] * 4 == expected["all"].tolist()
    assert list(found.label) == expected["label"].tolist()
    # Those of another checkpoint are none.
    path = workdir / "thresholds.json"
    path.write_text(path.read_text().replace('"checkpoint": "', '"checkpoint": "0'))
    assert exported(copy, tmp_path / "a.zip").thresholds is None


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (np.ones((3, 11), np.float32), r"inputs have shape \[3, 11\]; it takes \[n, 12\]$"),
        (np.ones(12, np.float32), r"shape \[12\]; it takes \[n, 12\]; give one row as \[1, ...\]"),
        (np.float32(1), r"inputs have shape \[\]; it takes \[n, 12\]"),
        ([[1.0] * 12, [2.0]], "inputs are rows of different lengths"),
        (np.full((2, 12), "a"), "inputs have type <U1; it takes numbers"),
        (np.ones((2, 12), complex), "inputs have type complex128; it takes numbers"),
        (np.diag([1.0, np.nan, 1.0] + [0.0] * 9), r"row 1 \(counted from 0\): its inputs are not "),
        (np.diag([0.0, 0.0, 1e300] + [0.0] * 9), r"row 2 \(counted from 0\): its inputs are not "),
        (np.full((2, 12), [[0.0], [3.4e38]]), r"row 1 \(counted from 0\): its score is not finite"),
    ],
)
def test_other_inputs_are_refused(file: Path, inputs: Any, said: str) -> None:
    predictor = load_predictor(file)
    with pytest.raises(DataError, match=said) as error:
        predictor.scores(inputs)
    assert str(error.value).startswith(str(file))


def test_pixels_are_not_guessed(images: Experiment, tmp_path: Path) -> None:
    predictor = exported(images, tmp_path / "a.zip", None, ["cpu"])
    for kind in (np.float32, np.int64):
        with pytest.raises(DataError, match=rf"type {np.dtype(kind)}; it takes uint8"):
            predictor.scores(np.zeros((1, 16, 16, 3), kind))


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file whose document was changed, with sums that are right."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(entries["predictor.json"])
    entries["predictor.json"] = json.dumps(change(document) or document).encode()
    return packed(entries)


def packed(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_damaged_files_are_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    whole, path = file.read_bytes(), tmp_path / "bad.zip"

    def flipped(place: int) -> bytes:
        return whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]

    cases = [
        b"",
        b"no archive",
        *(whole[: len(whole) * part // 10] for part in (1, 5, 9)),
        whole[:-1],
        *map(flipped, (60, len(whole) // 2, len(whole) - 400)),
        packed({"predictor.json": b"{}"}),
        packed({"predictor.bin": b"", "predictor.json": b"[]"}),
        packed({"predictor.bin": b"", "predictor.json": b"{"}),
        rewritten(file, lambda document: document.pop("rows") and None),
        rewritten(file, lambda document: document.update(input_shape=[11])),
        rewritten(file, lambda document: document.update(input_dtype="float99")),
        rewritten(file, lambda document: document.update(label_names=["a"])),
        rewritten(file, lambda document: document.update(label_names=["a"], thresholds=None)),
        rewritten(file, lambda document: document.update(format=2)),
        packed(
            {
                "predictor.json": zipfile.ZipFile(file).read("predictor.json"),
                "predictor.bin": b"\0" * 200,
            }
        ),
    ]
    for place, content in enumerate(cases):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.zip: .*; export it again$") as error:
            load_predictor(path)
        assert "\n" not in str(error.value), place
    path.write_bytes(rewritten(file, lambda document: document.update(format=2)))
    with pytest.raises(DataError, match="its format is 2, which a newer jaxmlcl wrote"):
        load_predictor(path)
    with pytest.raises(DataError, match=r"gone\.zip: no such file"):
        load_predictor(tmp_path / "gone.zip")
    with pytest.raises(DataError, match="Is a directory"):
        load_predictor(tmp_path)


def test_a_predictor_for_other_platforms_is_refused(vectors: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    export_predictor(vectors, folder(vectors), path, "bce", ["cuda", "tpu"])
    with pytest.raises(
        ConfigError, match=r"exported for cuda, tpu, and JAX computes on cpu here; .* cpu$"
    ):
        load_predictor(path)


@pytest.mark.parametrize(
    ("name", "stage", "platforms", "said"),
    [
        ("a.zip", "pretrain", ["cpu"], '"pretrain" is no stage that gives label scores; there are'),
        ("a.zip", "bc", ["cpu"], '"bc" is no stage that gives label scores'),
        ("a.zip", "bce", ["gpu"], 'platforms: "gpu" is none of cpu, cuda, rocm, tpu'),
        ("a.zip", "bce", [], "platforms: name each once, at least one of cpu, cuda"),
        ("a.zip", "bce", ["cpu", "cpu"], "platforms: name each once"),
        ("a.pkl", "bce", ["cpu"], r"a\.pkl: a predictor's file ends in \.zip"),
    ],
)
def test_exports_are_refused_in_one_line(
    vectors: Experiment, tmp_path: Path, name: str, stage: str, platforms: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        export_predictor(vectors, folder(vectors), tmp_path / name, stage, platforms)
    assert os.listdir(tmp_path) == []


def test_an_unfinished_stage_is_refused(vectors: Experiment, tmp_path: Path) -> None:
    workdir = shutil.copytree(folder(vectors), tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "bce")
    for write in (export_predictor, export_encoder):
        with pytest.raises(UserError, match="stage bce: no intact finished checkpoint"):
            write(vectors, workdir, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_without_flatbuffers_the_extra_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jax._src.export.serialization", None)
    with pytest.raises(ConfigError, match=r'needs flatbuffers, .* pip install "jaxmlcl\[export\]"'):
        load_predictor(file)


def test_a_full_disk_leaves_what_was_there(
    vectors: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.zip"
    path.write_bytes(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            export_predictor(vectors, folder(vectors), path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.zip"]


# -------------------------------------------------------------------------------------- encoders


@pytest.mark.parametrize("stage", ["pretrain", "bce"])
def test_an_encoders_weights_come_back(
    images: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    pytest.importorskip("safetensors")
    network = opened(images) if stage == "bce" else fresh(images, stage)
    monkeypatch.setattr(export, "open_network", lambda *_, **__: network)
    path = tmp_path / "encoder.safetensors"
    origin = export_encoder(images, folder(images), path, stage)
    assert origin[:3] == ("small", stage, 9 if stage == "bce" else 0)
    loaded = load_pretrained(path, VIT, image_size=16)
    source = open_source("coloured:test")
    ((_, found),) = network.embeddings(source_features(source, "test", network.expected))
    prepared = network.program.program.feed.prepare(
        jnp.asarray(source.arrays()["inputs"]), network.constants
    )
    variables: Any = {"params": loaded.params}
    output = loaded.encoder.build(jnp.float32).apply(variables, prepared, False)
    np.testing.assert_allclose(output, found["representation"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", ["pretrain", "joint", "cgmvae"])
def test_encoders_without_names_are_refused(
    vectors: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    network = fresh(vectors, stage)
    monkeypatch.setattr(export, "open_network", lambda *_, **__: network)
    with pytest.raises(ConfigError, match="MLP: torchvision has no such network"):
        export_encoder(vectors, folder(vectors), tmp_path / "a.safetensors", stage)
    assert os.listdir(tmp_path) == []
