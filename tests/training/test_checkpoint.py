"""The checkpoint store: the same bits back, or an older checkpoint, or one clear line."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmlcl.errors import CheckpointError
from jaxmlcl.training import _manifest
from jaxmlcl.training.checkpoint import CheckpointStore


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    content: Any
    nothing: None = None


def abstract(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(state: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(state)]


def filled(step: int, size: int = 1000) -> dict[str, jax.Array]:
    """A state whose every element tells its step."""
    return {"w": jnp.full((size,), step, jnp.float32), "n": jnp.int32(step)}


def nasty() -> Any:
    floats = np.array(
        [0x7FC12345, 0xFFC00001, 0x7F800001, 0x7F800000, 0x80000000, 0x00000001], np.uint32
    ).view(np.float32)  # NaNs with payloads (one signalling), infinity, -0, the smallest denormal
    halves = np.array([0x7FC1, 0xFFFF, 0x8000, 0x3F80], np.uint16).view(jnp.bfloat16)
    params = {"dense": {"kernel": jnp.asarray(floats).reshape(2, 3), "bias": jnp.full((3,), -0.0)}}
    return {
        "params": params,
        "optimizer": optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params),
        "queue": Box(Pair(jnp.asarray(halves), jnp.zeros((5, 2), jnp.uint8))),
        "keys": jax.random.key_data(jax.random.key(3)),
        "scalar": jnp.float32(-0.0),
        "flag": jnp.asarray([True, False]),
        "empty": (None, {}, (), jnp.zeros((0, 4), jnp.bfloat16)),
        "a/b": jnp.arange(3),
        "a": {"b": jnp.arange(4), "": jnp.arange(5), ".zarray": jnp.arange(6)},
        "é.[0]'\"\n %": [jnp.ones(()), {7: jnp.ones((1,)), 8: jnp.ones((1, 1))}],
    }


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(tmp_path / "stage") as store:
        yield store


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of steps 1 and 2; copy it before damaging it."""
    folder = tmp_path_factory.mktemp("two") / "stage"
    with CheckpointStore(folder) as store:
        for step in (1, 2):
            store.save(step, filled(step), {"offset": step * 10})
    return folder


@pytest.fixture
def damaged(two_saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_saved, tmp_path / "damaged"))


def test_every_bit_and_node_comes_back(store: CheckpointStore) -> None:
    state = nasty()
    host = {"position": {"epoch": 2, "index": 7}, "best": float("-inf"), "name": "é", "n": None}
    store.save(12, state, host, best=True)
    found = store.latest_valid(report=pytest.fail)
    assert found is not None
    assert (found.step, found.best, found.finished, found.host) == (12, True, False, host)
    restored = store.restore(found, abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)
    assert isinstance(restored["queue"].content, Pair)
    assert [x.sharding for x in jax.tree.leaves(restored)] == [
        x.sharding for x in jax.tree.leaves(state)
    ]


def test_double_precision_comes_back(store: CheckpointStore, x64: None) -> None:
    state = {"w": jnp.asarray([0.1, np.nan], jnp.float64), "n": jnp.asarray(2**40 + 1)}
    store.save(1, state, {}, wait=True)
    restored = store.restore(store.checkpoints()[0], abstract(state))
    assert restored["w"].dtype == jnp.float64
    assert bits(restored) == bits(state)


def test_numpy_view_for_tools(store: CheckpointStore) -> None:
    state = nasty()
    store.save(1, state, {}, wait=True)
    found = store.checkpoints()[0]
    read = store.restore_numpy(found)
    assert read["queue"]["content"]["first"].tobytes() == bits(state["queue"])[0][2]
    assert read["queue"]["content"]["first"].dtype == jnp.bfloat16
    assert read["optimizer"]["1"]["0"]["mu"]["dense"]["kernel"].shape == (2, 3)
    assert read["empty"]["3"].shape == (0, 4)
    assert read["a"][".zarray"].tolist() == [0, 1, 2, 3, 4, 5]
    only = store.restore_numpy(found, where=lambda path: path.startswith("['params']"))
    assert set(only) == {"params"}
    assert np.signbit(only["params"]["dense"]["bias"]).all()


def test_manifest_says_where_it_was_written(store: CheckpointStore) -> None:
    store.save(3, filled(3), {}, finished=True, wait=True)
    content = json.loads((store.directory / "000000003" / "manifest.json").read_text())
    assert content["format_version"] == 1
    assert content["versions"]["jax"] == jax.__version__
    assert set(content["versions"]) == {"jax", "jaxmlcl", "orbax"}
    assert content["machine"]["device_count"] == jax.device_count()
    assert content["machine"]["cpu_count"] >= 1
    assert content["machine"]["platform"] == jax.default_backend()
    on_disk = {
        file.relative_to(store.directory / "000000003").as_posix(): file.stat().st_size
        for file in (store.directory / "000000003" / "state").rglob("*")
        if file.is_file()
    }
    assert {name: file["bytes"] for name, file in content["files"].items()} == on_disk
    assert content["finished"] is True


def test_buffers_may_be_donated_and_overwritten_at_once(store: CheckpointStore) -> None:
    size = 1 << 20
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 7, state), donate_argnums=0)
    jax.block_until_ready(step(filled(0, size)))
    source = np.full((size,), 5, np.float32)
    for number in range(1, 5):
        state = {**filled(number, size), "view": jnp.asarray(source)}
        expected = bits(state)
        pointer = state["w"].unsafe_buffer_pointer()
        store.save(number, state, {})
        source[:] = 5 + number  # what a zero-copy array would see
        donated = step({"w": state["w"], "n": state["n"]})
        assert state["w"].is_deleted()
        if jax.default_backend() == "cpu":
            # The save holds no reference that would make JAX fall back to a copy.
            assert donated["w"].unsafe_buffer_pointer() == pointer
        found = store.latest_valid(report=pytest.fail)
        assert found is not None
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        assert bits(store.restore(found, shapes)) == expected


def test_restored_state_trains_on(store: CheckpointStore) -> None:
    """It can be donated, and a step compiled before does not compile again."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = step(jax.device_put(filled(0), jax.devices()[0]))
    store.save(1, state, {}, wait=True)
    shapes = abstract(state)
    step(state)
    assert step._cache_size() == 1
    for _ in range(2):
        with jax.transfer_guard("disallow"):
            restored = store.restore(store.checkpoints()[0], shapes)
            after = step(step(restored))
        assert after["w"].tolist() == [3.0] * 1000
    assert step._cache_size() == 1


def test_pruning_keeps_newest_best_and_finished(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_latest=2)

    def saved(step: int, **marks: bool) -> list[int]:
        store.save(step, filled(step), {}, wait=True, **marks)
        return [checkpoint.step for checkpoint in store.checkpoints()]

    assert saved(1, best=True) == [1]
    assert saved(2) == [2, 1]
    assert saved(3) == [3, 2, 1]
    assert saved(4, finished=True) == [4, 3, 1]
    assert saved(5, best=True) == [5, 4]
    assert saved(6) == [6, 5, 4]
    assert saved(7) == [7, 6, 5, 4]
    assert saved(8) == [8, 7, 5, 4]
    assert sorted(os.listdir(tmp_path)) == [f"{step:09d}" for step in (4, 5, 7, 8)]
    best = store.latest_valid(report=pytest.fail, where=lambda c: c.best)
    finished = store.latest_valid(report=pytest.fail, where=lambda c: c.finished)
    assert best is not None
    assert finished is not None
    assert (best.step, finished.step) == (5, 4)
    # A return to an older one: what was just saved is never what is pruned.
    assert saved(2) == [8, 7, 5, 4, 2]
    with pytest.raises(ValueError, match="keep_latest is 0"):
        CheckpointStore(tmp_path, keep_latest=0)


def flip(file: Path) -> str:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    return "sha256 differs"


def truncate(file: Path) -> str:
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    return f"truncated: {len(content) - 1} of {len(content)} bytes"


def lengthen(file: Path) -> str:
    content = file.read_bytes()
    file.write_bytes(content + b"!")
    return f"{len(content) + 1} bytes instead of {len(content)}"


def remove(file: Path) -> str:
    file.unlink()
    return "missing"


@pytest.mark.parametrize("damage", [flip, truncate, lengthen, remove])
def test_damage_to_any_file_of_the_state_is_seen(
    damage: Callable[[Path], str], damaged: Path, lines: list[str]
) -> None:
    store = CheckpointStore(damaged)
    newest = damaged / "000000002"
    files = [file for file in (newest / "state").rglob("*") if file.is_file()]
    assert len(files) >= 5
    for file in files:
        before = file.read_bytes()
        reason = damage(file)
        lines.clear()
        found = store.latest_valid(report=lines.append)
        assert found is not None
        assert found.step == 1
        name = file.relative_to(newest).as_posix()
        assert lines == [
            f"checkpoint {newest}: {name} is damaged ({reason}); using the one before it"
        ]
        file.write_bytes(before)
    found = store.latest_valid(report=pytest.fail)
    assert found is not None
    assert store.restore(found, filled(0))["n"] == 2


def test_a_flip_of_any_byte_of_the_manifest_is_seen(damaged: Path) -> None:
    store = CheckpointStore(damaged)
    manifest = damaged / "000000002" / "manifest.json"
    content = manifest.read_bytes()
    generator = random.Random(0)
    for position in range(0, len(content), 3):
        changed = bytearray(content)
        changed[position] ^= 1 << generator.randrange(8)
        if json_equal(bytes(changed), content):
            continue  # white space for white space
        manifest.write_bytes(changed)
        assert [checkpoint.step for checkpoint in store.checkpoints()] == [1], position


def json_equal(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "manifest.json is missing (the save was interrupted)"),
        (b"", "manifest.json is damaged (not JSON)"),
        (b"\xff\xfe", "manifest.json is damaged (not JSON)"),
        (b"[1]", "manifest.json is damaged (sha256 differs)"),
        (b'{"format_version": 1}', "manifest.json is damaged (sha256 differs)"),
        (
            b'{"format_version": 2}',
            "manifest.json has format 2 and this jaxmlcl reads up to 1 "
            "(upgrade jaxmlcl if a newer one wrote it)",
        ),
    ],
)
def test_unusable_manifest(
    content: bytes | None, reason: str, damaged: Path, lines: list[str]
) -> None:
    manifest = damaged / "000000002" / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    store = CheckpointStore(damaged)
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [1]
    found = store.latest_valid(report=lines.append)
    assert found is not None
    assert found.step == 1
    assert lines == [f"checkpoint {manifest.parent}: {reason}; using the one before it"]
    # Only the interrupted one is a leftover; the others may still be of use to somebody.
    removed = store.clean()
    assert removed == ([manifest.parent] if content is None else [])
    assert manifest.parent.exists() == (content is not None)


def test_truncated_manifest(damaged: Path, lines: list[str]) -> None:
    manifest = damaged / "000000002" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    found = CheckpointStore(damaged).latest_valid(report=lines.append)
    assert found is not None
    assert found.step == 1
    assert "manifest.json is damaged (not JSON)" in lines[0]


def test_all_damaged_and_nothing_there(damaged: Path, tmp_path: Path, lines: list[str]) -> None:
    for step in (1, 2):
        flip(damaged / f"{step:09d}" / "state" / "_METADATA")
    assert CheckpointStore(damaged).latest_valid(report=lines.append) is None
    assert [line.rpartition("; ")[2] for line in lines] == [
        "using the one before it",
        "there is none before it",
    ]
    nowhere = CheckpointStore(tmp_path / "nowhere")
    assert nowhere.latest_valid(report=pytest.fail) is None
    assert nowhere.checkpoints() == []
    assert nowhere.clean() == []
    assert not (tmp_path / "nowhere").exists()


def test_clean_leaves_checkpoints_and_strangers(damaged: Path) -> None:
    newest = damaged / "000000002"
    (damaged / "000000003" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (newest / "state-1.orbax-checkpoint-tmp").mkdir()
    (newest / ".manifest.json.abcd").touch()
    (newest / "notes.txt").touch()
    (damaged / "notes").mkdir()
    store = CheckpointStore(damaged)
    assert (damaged / "000000003").exists()  # construction deletes nothing
    removed = {path.name for path in store.clean()}
    assert removed == {"000000003", "state-1.orbax-checkpoint-tmp", ".manifest.json.abcd"}
    assert sorted(os.listdir(damaged)) == ["000000001", "000000002", "notes"]
    assert sorted(os.listdir(newest)) == ["manifest.json", "notes.txt", "state"]
    assert store.latest_valid(report=pytest.fail) is not None


def test_damaged_ones_do_not_push_out_intact_ones(damaged: Path, lines: list[str]) -> None:
    store = CheckpointStore(damaged, keep_latest=2)
    flip(damaged / "000000002" / "state" / "_METADATA")
    found = store.latest_valid(report=lines.append)
    assert found is not None
    for step in (2, 3):  # the run goes on from step 1 and comes to step 2 again
        store.save(step, filled(step), {}, wait=True)
    assert [c.step for c in store.checkpoints()] == [3, 2]
    lines.clear()
    flip(damaged / "000000003" / "state" / "_METADATA")
    found = store.latest_valid(report=lines.append)
    assert found is not None
    assert found.step == 2
    assert store.restore(found, filled(0))["w"].tolist() == [2.0] * 1000


def test_replaced_step(store: CheckpointStore) -> None:
    for value in (10, 20, 30):
        store.save(5, filled(value), {"value": value}, wait=True)
        (found,) = store.checkpoints()
        assert found.host == {"value": value}
        assert store.latest_valid(report=pytest.fail) == found
        assert store.restore(found, filled(0))["n"] == value
        assert len(os.listdir(found.path)) == 2  # the manifest and one folder of arrays
    shutil.rmtree(found.path / "state")
    (found.path / "manifest.json").write_text("{")
    store.save(5, filled(40), {}, wait=True)
    (found,) = store.checkpoints()
    assert store.restore(found, filled(0))["n"] == 40


def test_a_kill_at_any_operation_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of the disk that the store makes itself, with a copy of the folder before."""
    stage, snapshots = tmp_path / "stage", []
    newest = 0

    def snapshot() -> None:
        copy = tmp_path / f"snapshot-{len(snapshots)}"
        if stage.exists():
            shutil.copytree(stage, copy)
            snapshots.append((copy, newest))

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            snapshot()
            result = original(*args, **kwargs)
            snapshot()
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(_manifest, "write_atomic")
    watch(_manifest, "sync_folder")
    watch(_manifest.shutil, "rmtree")
    with CheckpointStore(stage, keep_latest=1) as store:
        for step in (1, 2, 3, 3):
            store.save(step, filled(step), {}, wait=True)
            newest = step
    monkeypatch.undo()
    assert len(snapshots) > 20
    steps = set()
    for copy, at_least in snapshots:
        store = CheckpointStore(copy)
        found = store.latest_valid(report=lambda line: interrupted(line))
        steps.add(found.step if found else 0)
        assert (found.step if found else 0) >= at_least
        if found:
            assert store.restore(found, filled(0))["w"].tolist() == [found.step] * 1000
        store.clean()
        assert store.latest_valid(report=pytest.fail) == found
    assert steps == {0, 1, 2, 3}


def interrupted(line: str) -> None:
    """The only thing that a kill may leave to be reported."""
    assert "manifest.json is missing (the save was interrupted)" in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"w": jax.ShapeDtypeStruct((8,), "float32")},
            "['w'] is float32[1000] in the checkpoint, float32[8] here",
        ),
        (
            {"n": jax.ShapeDtypeStruct((), "uint32")},
            "['n'] is int32[] in the checkpoint, uint32[] here",
        ),
        (
            {"more": jax.ShapeDtypeStruct((2, 3), "bfloat16")},
            "['more'] is absent in the checkpoint, bfloat16[2, 3] here",
        ),
        ({"w": None}, "['w'] is float32[1000] in the checkpoint, absent here"),
        (
            {str(i): jax.ShapeDtypeStruct((), "int8") for i in range(5)},
            "['2'] is absent in the checkpoint, int8[] here; and 2 more",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_named(
    change: dict[str, Any], named: str, two_saved: Path
) -> None:
    store = CheckpointStore(two_saved)
    with pytest.raises(CheckpointError) as caught:
        store.restore(store.checkpoints()[0], {**filled(0), **change})
    assert named in str(caught.value)
    assert str(two_saved / "000000002") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_saved_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is of type float"):
        store.save(1, {"a": (jnp.ones(2), 1.0)}, {})
    with pytest.raises(TypeError, match=r"state\['k'\] is a typed random key"):
        store.save(1, {"k": jax.random.key(0)}, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(1, filled(1), {"best": np.float32(1)})
    with pytest.raises(ValueError, match="state holds no arrays"):
        store.save(1, {"a": None}, {})
    with pytest.raises(ValueError, match="step is -1"):
        store.save(-1, filled(1), {})
    assert not store.directory.exists()


def test_unreadable_arrays_are_one_line(damaged: Path) -> None:
    store = CheckpointStore(damaged)
    found = store.checkpoints()[0]
    shutil.rmtree(found.path / "state")
    with pytest.raises(CheckpointError, match=r"000000002 cannot be read: .*; move the folder"):
        store.restore(found, filled(0))
