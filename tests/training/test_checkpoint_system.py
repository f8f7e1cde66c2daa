"""The checkpoint store and the system: kills, full disks, eight devices, the terminal."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxmlcl.errors import CheckpointError
from jaxmlcl.training import _manifest
from jaxmlcl.training.checkpoint import CheckpointStore


def filled(step: int, size: int = 1000) -> dict[str, jax.Array]:
    """A state whose every element tells its step."""
    return {"w": jnp.full((size,), step, jnp.float32), "n": jnp.int32(step)}


def start(script: str, *args: str, **environment: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
    )


def interrupted(line: str) -> None:
    """The only thing that a kill may leave to be reported."""
    assert "manifest.json is missing (the save was interrupted)" in line


LOOP = """
    import sys
    import jax.numpy as jnp
    from jaxmlcl.training.checkpoint import CheckpointStore

    store = CheckpointStore(sys.argv[1], keep_latest=2)
    store.clean()
    found = store.latest_valid(report=sys.exit)
    step = found.step if found else 0
    while True:
        step += 1
        state = {str(i): jnp.full((1 << 18,), step, jnp.float32) for i in range(8)}
        store.save(step, state, {"step": step}, best=step % 5 == 0)
        print("saving", step, flush=True)
        if step % 2:
            store.wait()
            print("saved", step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    generator = random.Random(1)
    shapes = {str(i): jax.ShapeDtypeStruct((1 << 18,), "float32") for i in range(8)}
    reached = 0
    for _ in range(6):
        with start(LOOP, str(tmp_path)) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("saving"), process.communicate()[1]
            time.sleep(generator.uniform(0, 0.3))
            process.kill()
            said, error = process.communicate()
        assert error == ""
        saved = [int(line.split()[1]) for line in said.splitlines() if line.startswith("saved")]
        store = CheckpointStore(tmp_path)
        found = store.latest_valid(report=interrupted)
        step = found.step if found else 0
        assert step >= max([reached, *saved])
        if found:
            assert found.host == {"step": step}
            restored = store.restore(found, shapes)
            assert all((array == step).all() for array in jax.tree.leaves(restored))
        reached = step
    assert reached > 0


MESH = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jaxmlcl.training.checkpoint import CheckpointStore

    assert jax.device_count() == 8
    values = {"w": np.arange(64, dtype=np.float32).reshape(16, 4), "n": np.int32(3)}

    def shapes(mesh, spec):
        return {
            "w": jax.ShapeDtypeStruct((16, 4), "float32", sharding=NamedSharding(mesh, spec)),
            "n": jax.ShapeDtypeStruct((), "int32", sharding=NamedSharding(mesh, P())),
        }

    def mesh(*sizes):
        return jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    store = CheckpointStore(sys.argv[1], keep_latest=9)
    wanted = shapes(mesh(2, 4), P("data", "fsdp"))
    for step in range(1, 4):
        found = store.latest_valid(report=sys.exit)
        restored = store.restore(found, wanted)
        for name in values:
            assert restored[name].sharding == wanted[name].sharding, restored[name].sharding
            assert (np.asarray(restored[name]) == values[name]).all()
        donate = jax.jit(lambda x: jax.tree.map(lambda y: y * 0, x), donate_argnums=0)
        store.save(step, restored, {})
        jax.block_until_ready(donate(restored))
        store.wait()
        assert store.checkpoints()[0].machine["device_count"] == 8
        sizes, spec = [((8, 1), P("data")), ((1, 8), P("fsdp")), ((4, 2), P())][step - 1]
        wanted = shapes(mesh(*sizes), spec)
"""


def test_another_mesh_and_back(tmp_path: Path) -> None:
    state = {"w": jnp.arange(64, dtype=jnp.float32).reshape(16, 4), "n": jnp.int32(3)}
    with CheckpointStore(tmp_path) as store:
        store.save(0, state, {})
    with start(MESH, str(tmp_path), JAX_NUM_CPU_DEVICES="8") as process:
        _, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    found = store.latest_valid(report=pytest.fail)
    assert found is not None
    assert found.step == 3
    restored = store.restore(found, state)
    assert restored["n"] == 3
    assert (restored["w"] == state["w"]).all()


NOISE = """
    import gc, resource, sys, time
    import jax.numpy as jnp
    from jaxmlcl.errors import CheckpointError
    from jaxmlcl.training.checkpoint import CheckpointStore

    state = {str(i): jnp.ones((1 << 18,)) for i in range(4)}
    store = CheckpointStore(sys.argv[1])
    store.save(1, state, {}, wait=True)
    store.restore(store.checkpoints()[0], state)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    for _ in range(5):
        store.save(2, state, {})
        try:
            store.wait()
        except CheckpointError as error:
            print(error)
        time.sleep(0.1)
    gc.collect()
    open(sys.argv[1] + "/000000001/state/_METADATA", "w").write("{")
    try:
        store.restore(store.checkpoints()[0], state)
    except CheckpointError as error:
        print(error)
"""


def test_nothing_but_our_own_line_reaches_the_terminal(tmp_path: Path) -> None:
    with start(NOISE, str(tmp_path)) as process:
        said, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    first, *again, second = said.splitlines()
    assert again == [first] * 4
    assert first.startswith(f"cannot write to {tmp_path}/000000002: File too large; ")
    assert "000000001 cannot be read: " in second


def test_background_error_comes_out_of_wait_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, filled(1), {}, wait=True)

    def full(path: Path, data: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_manifest, "write_atomic", full)
    for step in (1, 2):  # of a replaced checkpoint, and of a new one
        store.save(step, filled(9), {})
        with pytest.raises(CheckpointError, match=f"^disk full: .*00000000{step} was not saved"):
            store.wait()
        store.wait()
    monkeypatch.undo()
    assert os.listdir(store.directory) == ["000000001"]  # the failed one gave its space back
    found = store.latest_valid(report=pytest.fail)
    assert found is not None
    assert store.restore(found, filled(0))["n"] == 1
    store.save(2, filled(2), {}, wait=True)
    assert [c.step for c in store.checkpoints()] == [2, 1]


def test_error_comes_out_of_the_next_save_and_of_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, data: str) -> None:
        raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr(_manifest, "write_atomic", broken)
    store = CheckpointStore(tmp_path)
    store.save(1, filled(1), {})
    with pytest.raises(CheckpointError, match="not saved: RuntimeError: a bug in two lines"):
        store.save(2, filled(2), {})
    with pytest.raises(CheckpointError, match="not saved"), store:
        store.save(3, filled(3), {})
    store.save(4, filled(4), {})
    with pytest.raises(ZeroDivisionError), store:  # the error under way is the one told
        _ = 1 // 0
    with pytest.raises(CheckpointError, match="000000004 was not saved"):
        store.wait()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        store = CheckpointStore(small / "stage")
        store.save(1, filled(1), {}, wait=True)
        state = filled(2, 1 << 20)
        with pytest.raises(CheckpointError, match=r"disk full: .* \(needs 4\.2 MB, [01]\.\d MB"):
            store.save(2, state, {})
        # A disk that fills while it is written to, or a quota.
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
        store.save(2, state, {})
        with pytest.raises(CheckpointError, match=r"disk full: .*000000002 was not saved \(No sp"):
            store.wait()
        assert os.listdir(small / "stage") == ["000000001"]
        found = store.latest_valid(report=pytest.fail)
        assert found is not None
        assert store.restore(found, filled(0))["n"] == 1
        store.save(3, filled(3), {}, wait=True)
        assert [c.step for c in store.checkpoints()] == [3, 1]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file" / "stage", Path("/proc/jaxmlcl/stage")):
        store = CheckpointStore(directory)
        assert store.latest_valid(report=pytest.fail) is None
        with pytest.raises(CheckpointError, match=f"cannot write to {directory}/000000001: "):
            store.save(1, filled(1), {})
        store.wait()
    (tmp_path / "000000001").touch()
    with pytest.raises(CheckpointError, match="000000001: Not a directory; make it writable"):
        CheckpointStore(tmp_path).save(1, filled(1), {})
