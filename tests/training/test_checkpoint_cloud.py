"""Checkpoints in a bucket, against emulators of both stores that run on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jaxmlcl.config import to_json
from jaxmlcl.errors import CheckpointError, ConfigError, UserError
from jaxmlcl.training import _storage
from jaxmlcl.training.checkpoint import CheckpointStore
from jaxmlcl.training.experiment import Checkpoint, Experiment
from jaxmlcl.training.kept import stage_folder
from jaxmlcl.training.predict import open_network
from jaxmlcl.training.trainer import train
from tests.training.conftest import small_experiment

BUCKET = "jaxmlcl-tests"
NEEDED = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto", "flask")}
COMMANDS = {
    "gs": "import sys, time; from gcp_storage_emulator.server import create_server as make; "
    f"make('127.0.0.1', int(sys.argv[1]), in_memory=True, default_bucket='{BUCKET}').start(); "
    "time.sleep(1e6)",
    "s3": "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])",
}


def environment(scheme: str, port: int) -> dict[str, str]:
    address = f"http://127.0.0.1:{port}"
    if scheme == "s3":
        return {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "testing",  # TensorStore
        "GOOGLE_CLOUD_PROJECT": "testing",
        "NO_GCE_CHECK": "true",
        # The emulator does not speak gRPC, by which gcsfs asks for the kind of a bucket.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def emulator(scheme: str) -> Iterator[dict[str, str]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS[scheme], str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, f"the emulator of {scheme} has ended"
            time.sleep(0.1)
        yield environment(scheme, port)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty bucket."""
    scheme = request.param
    missing = [name for name in NEEDED[scheme] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f'not installed: {", ".join(missing)}; pip install "jaxmlcl[cloud-tests]"')
    with emulator(scheme) as settings, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        if scheme == "s3":
            import fsspec

            fsspec.filesystem("s3").mkdir(BUCKET)
        yield f"{scheme}://{BUCKET}"


@pytest.fixture
def place(bucket: str, request: pytest.FixtureRequest) -> str:
    """A place of its own for each test."""
    return f"{bucket}/{re.sub(r'[^a-z]+', '-', request.node.name)}/stage"


def state(step: int) -> dict[str, Any]:
    """NaN with a payload, bfloat16, an empty array, a scalar; every element tells its step."""
    odd = np.array([0x7FC12345, 0x80000000, step], np.uint32).view(np.float32)
    return {
        "odd": jnp.asarray(odd),
        "half": jnp.full((300, 200), step, jnp.bfloat16),
        "empty": jnp.zeros((0, 4)),
        "nested": [jnp.int32(step), {"w": jnp.full((1000,), step, jnp.float32)}],
    }


def bits(tree: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def test_equal_bits_come_back_and_old_ones_go(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with CheckpointStore(place, keep_latest=1) as store:
        assert store.latest_valid(report=pytest.fail) is None
        for step in (1, 2, 3):
            store.save(step, state(step), {"offset": step}, best=step == 1)
    assert names(store) == ["000000001", "000000003"]
    again = CheckpointStore(place)
    found = again.latest_valid(report=pytest.fail)
    assert found is not None
    assert (found.step, found.host) == (3, {"offset": 3})
    assert str(found.path) == f"{place}/000000003"
    assert bits(again.restore(found, state(0))) == bits(state(3))
    assert again.restore_numpy(found)["nested"]["0"] == 3
    assert again.clean() == []
    # The same step again: the one before stays whole until the manifest is replaced.
    again.save(3, state(30), {"offset": 30}, wait=True)
    found = again.latest_valid(report=pytest.fail)
    assert found is not None
    assert bits(again.restore(found, state(0))) == bits(state(30))
    assert {path.name for path in found.path.iterdir()} == {"manifest.json", "state-1"}
    assert [path.name for path in again.discard()] == ["000000003", "000000001"]
    assert again.checkpoints() == []
    assert "state/_sharding" in found.files or "state-1/_sharding" in found.files
    assert list(tmp_path.iterdir()) == []  # nothing went to a folder called "s3:"
    assert not again.directory.exists()


def test_sharded_state(place: str) -> None:
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    saved = {"w": jax.device_put(jnp.arange(4096.0).reshape(64, 64), split)}
    with CheckpointStore(place) as store:
        store.save(1, saved, {})
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=split)
    restored = store.restore(store.checkpoints()[0], {"w": shape})
    assert restored["w"].sharding == split
    assert bits(restored) == bits(saved)


def test_damage_is_seen(place: str) -> None:
    lines: list[str] = []
    with CheckpointStore(place) as store:
        for step in (1, 2):
            store.save(step, state(step), {})
    newest = store.checkpoints()[0]
    name = max(newest.files, key=lambda name: newest.files[name]["bytes"])
    content = bytearray((newest.path / name).read_bytes())
    content[len(content) // 2] ^= 0x10
    for changed, reason in (
        (bytes(content), "sha256 differs"),
        (bytes(content[:-1]), f"truncated: {len(content) - 1} of {len(content)} bytes"),
        (None, "missing"),
    ):
        if changed is None:
            (newest.path / name).unlink()
        else:
            (newest.path / name).write_bytes(changed)
        lines.clear()
        found = store.latest_valid(report=lines.append)
        assert found is not None
        assert found.step == 1
        assert lines == [
            f"checkpoint {newest.path}: {name} is damaged ({reason}); using the one before it"
        ]
    (newest.path / "manifest.json").write_bytes(b"{")
    lines.clear()
    assert store.latest_valid(report=lines.append) is not None
    assert "manifest.json is damaged (not JSON)" in lines[0]


def test_a_save_without_its_manifest_is_passed_over_and_cleaned(place: str) -> None:
    lines: list[str] = []
    with CheckpointStore(place) as store:
        for step in (1, 2):
            store.save(step, state(step), {})
    (store.directory / "000000002" / "manifest.json").unlink()
    # Arrays of a save that replaced step 1 and was cut off.
    (store.directory / "000000001" / "state-1" / "d" / "x").write_bytes(b"rest")
    again = CheckpointStore(place)
    found = again.latest_valid(report=lines.append)
    assert found is not None
    assert found.step == 1
    assert "manifest.json is missing (the save was interrupted)" in lines[0]
    assert [str(path) for path in again.clean()] == [
        f"{place}/000000002",
        f"{place}/000000001/state-1",
    ]
    assert names(again) == ["000000001"]
    assert again.latest_valid(report=pytest.fail) == found


def test_a_save_that_fails_before_its_manifest(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(place)
    store.save(1, state(1), {}, wait=True)

    def fail(*_: Any) -> None:
        raise ConnectionError("connection reset by peer")

    monkeypatch.setattr("jaxmlcl.training.checkpoint.write_manifest", fail)
    store.save(2, state(2), {})
    with pytest.raises(CheckpointError, match=r"000000002: no answer from the store .*; check"):
        store.wait()
    assert names(store) == ["000000001"]


def test_no_such_bucket_is_not_created(bucket: str) -> None:
    elsewhere = f"{bucket}-absent"
    store = CheckpointStore(f"{elsewhere}/run/stage")
    for attempt in (
        lambda: store.checkpoints(),
        lambda: store.clean(),
        lambda: store.save(1, state(1), {}),
    ):
        with pytest.raises(CheckpointError, match="there is no such bucket") as caught:
            attempt()
        assert elsewhere in str(caught.value)
        assert "\n" not in str(caught.value)


TALK = """
import sys, time
from jaxmlcl.errors import UserError
from jaxmlcl.training.checkpoint import CheckpointStore
try:
    CheckpointStore(sys.argv[1]).checkpoints()
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def talk(place: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "GOOGLE_", "STORAGE_", "TENSORSTORE_"))
    }
    return subprocess.run(
        [sys.executable, "-c", TALK, place],
        env={**kept, **settings, "JAX_PLATFORMS": "cpu", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.slow
def test_no_network_and_no_credentials_are_one_line(bucket: str) -> None:
    scheme = bucket[:2]
    silent = talk(f"{bucket}/run", environment(scheme, free_port()))
    assert silent.returncode == 2, silent.stderr
    assert "no answer from the store" in silent.stdout
    assert silent.stdout.count("\n") == 1
    assert "Traceback" not in silent.stderr
    if scheme == "s3":  # the emulator of gs asks for none
        settings = {"AWS_EC2_METADATA_DISABLED": "true"}
        settings["AWS_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
        nobody = talk(f"{bucket}/run", settings)
        assert nobody.returncode == 2, nobody.stderr
        assert "no valid credentials" in nobody.stdout
        assert "AWS_ACCESS_KEY_ID" in nobody.stdout


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError("Access Denied"), "permission denied"),
        (OSError("403: Forbidden"), "permission denied"),
        (OSError("Anonymous caller does not have storage.objects.list access"), "credentials"),
        (ValueError("NoSuchBucket"), "no such bucket"),
        (TimeoutError("no answer within 60 seconds"), "no answer from the store"),
        (RuntimeError("odd\nanswer"), "the store refused (RuntimeError: odd answer)"),
    ],
)
def test_errors_are_explained(error: Exception, told: str) -> None:
    line = str(_storage.explain(error, cast(Path, epath.Path("gs://bucket/run"))))
    assert line.startswith("gs://bucket/run: ")
    assert told in line
    assert "\n" not in line


def test_a_store_that_hangs_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 seconds"):
        _storage._within(0.2, lambda: time.sleep(3))
    assert time.monotonic() - started < 2


def test_places() -> None:
    for place in ("runs/a", "/tmp/x", "gs://bucket", "s3://bucket/a/b/"):
        Checkpoint(folder=place)
    for place in ("hdfs://host/run", "file:///tmp/x", "az://box/run", "GS://bucket/run"):
        with pytest.raises(ConfigError, match="use a folder, gs://BUCKET/PATH or s3://BUCKET/PATH"):
            Checkpoint(folder=place)
    for place in ("gs://", "s3:///run", "gs://bucket//run", "s3://bucket/../run", "gs://b/a?x=1"):
        with pytest.raises(ConfigError, match="not a place in a bucket"):
            Checkpoint(folder=place)
    with pytest.raises(ConfigError, match="folder is empty"):
        Checkpoint(folder="")
    run = Path("runs/a")
    assert stage_folder(run, "probe") == run / "checkpoints" / "probe"
    assert stage_folder(run, "probe", "kept") == run / "kept" / "probe"
    assert stage_folder(run, "probe", "/big") == Path("/big/probe")
    assert stage_folder(run, "probe", "gs://bucket/a/") == "gs://bucket/a/probe"


@pytest.mark.parametrize(("place", "library"), [("gs://b/run", "gcsfs"), ("s3://b/run", "s3fs")])
def test_missing_libraries_are_named(
    place: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        CheckpointStore(place)
    assert str(caught.value) == (
        f"{place}: checkpoints in a bucket need {library}, which is not installed; run "
        'pip install "jaxmlcl[cloud]"'
    )


def small(place: str | None, workdir: Path) -> Experiment:
    """One stage of the small experiment."""
    whole = small_experiment(workdir)
    return dataclasses.replace(
        whole,
        stages={"bce": whole.stages["bce"]},
        checkpoint=dataclasses.replace(whole.checkpoint, folder=place),
    )


def run(experiment: Experiment) -> Path:
    return train(experiment, to_json(experiment), devices=jax.devices()[:1])


@pytest.mark.slow
def test_a_run_keeps_its_checkpoints_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    experiment = small(f"{bucket}/runs/small/", tmp_path / "run")
    workdir = run(experiment)
    assert not (workdir / "checkpoints").exists()
    store = CheckpointStore(f"{bucket}/runs/small/bce")
    assert store.checkpoints()[0].finished
    log = (workdir / "metrics.jsonl").read_bytes()
    run(experiment)
    assert (workdir / "metrics.jsonl").read_bytes() == log
    network = open_network(experiment, workdir)
    assert network.checkpoint.step == 30
    # The local run has the same bits.
    alone = small(None, tmp_path / "alone")
    here = CheckpointStore(stage_folder(run(alone), "bce"))
    one, other = (
        jax.tree.leaves(found.restore_numpy(found.checkpoints()[0])["params"])
        for found in (store, here)
    )
    assert [x.tobytes() for x in one] == [x.tobytes() for x in other]
    # Another experiment would continue from what this one has saved.
    stranger = dataclasses.replace(small(f"{bucket}/runs/small", tmp_path / "new"), seed=1)
    with pytest.raises(ConfigError, match=r"different experiment: seed \(0 there, 1 now\)"):
        run(stranger)


@pytest.mark.slow
def test_a_run_with_a_folder_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "small"
    workdir = run(small(str(elsewhere), tmp_path / "run"))
    assert CheckpointStore(elsewhere / "bce").checkpoints()[0].finished
    assert not (workdir / "checkpoints").exists()
    with pytest.raises(ConfigError, match=r"seed \(0 there, 1 now\).*another --checkpoint.folder"):
        run(dataclasses.replace(small(str(elsewhere), tmp_path / "new"), seed=1))
    # A folder without the run's checkpoints would begin the run anew, and cut its log.
    log = (workdir / "metrics.jsonl").read_bytes()
    for other in (None, "kept"):
        with pytest.raises(ConfigError, match="copy them there to continue the run") as caught:
            run(small(other, workdir))
        assert str(elsewhere) in str(caught.value)
        assert (workdir / "metrics.jsonl").read_bytes() == log
    shutil.copytree(elsewhere, workdir / "kept")
    run(small("kept", workdir))
    assert (workdir / "metrics.jsonl").read_bytes() == log
