"""Checkpoints that survive a kill, a full disk and a flipped bit.

Orbax writes the arrays in the background; a manifest with the checksum of every file is written
last, so a folder that has one holds a whole checkpoint. The layout of a store is

    <directory>/<step, 9 digits>/state/         arrays, written by Orbax
    <directory>/<step, 9 digits>/manifest.json  everything else, and SHA-256 of each file of state/

The directory may be a place in a bucket, gs://BUCKET/PATH or s3://BUCKET/PATH. An object is written
whole or not at all, so there the manifest is one request, and nothing is flushed or renamed.

Orbax stays inside: what the store takes and gives back are pytrees and paths.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmlcl.distributed import group
from jaxmlcl.errors import CheckpointError, UserError
from jaxmlcl.training._manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Checkpoint,
    DamagedError,
    check_fit,
    delete,
    describe_arrays,
    describe_machine,
    describe_versions,
    discard_unfinished,
    is_empty,
    read_manifest,
    remove_strays,
    verify,
    write_manifest,
)
from jaxmlcl.training._orbax import detached, quiet, reader, writer
from jaxmlcl.training._storage import explain, explained, is_remote, open_place, reach

__all__ = ["Checkpoint", "CheckpointStore"]

_FOLDER = re.compile(r"\d{9,}")
_PyTree = TypeVar("_PyTree")
_Result = TypeVar("_Result")


class CheckpointStore:
    """The checkpoints of one training stage, in one folder.

    A save returns as soon as the arrays are copied off the caller's buffers, which may then be
    donated; the rest happens in the background, one save at a time. Pruning keeps the newest
    `keep_latest`, the newest marked best and every finished one. Construction changes nothing on
    the disk. Use it as a context manager, or call `wait` before the program ends: a save that
    the end of the interpreter overtakes is lost (the earlier checkpoints are not).

    With several processes every one makes the same calls; each writes its shards into the same
    folder, and process 0 does the rest for all.

    State is any pytree whose leaves are `jax.Array`s, on any mesh; None and empty containers may
    occur, typed random keys may not (save `jax.random.key_data`).

    Args:
      directory: the stage's folder, created by the first save, or its place in a bucket.
      keep_latest: how many of the newest to keep, at least 1.

    Raises:
      ValueError: if `keep_latest` is below 1.
      UserError: a place in a store that is not known, or whose libraries are not installed.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with CheckpointStore(tempfile.mkdtemp()) as store:
      ...     store.save(7, {"w": jnp.arange(3.0)}, {"metrics_offset": 120})
      >>> newest = store.latest_valid(report=print)
      >>> newest.step, newest.host
      (7, {'metrics_offset': 120})
      >>> store.restore(newest, {"w": jax.ShapeDtypeStruct((3,), "float32")})["w"].tolist()
      [0.0, 1.0, 2.0]
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep_latest: int = 2) -> None:
        if keep_latest < 1:
            raise ValueError(f"keep_latest is {keep_latest}; at least 1 checkpoint must be kept")
        self.directory = open_place(directory)
        self.keep_latest = keep_latest
        self._orbax: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._damaged: set[Path] = set()
        self._reached = not is_remote(self.directory)

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()  # the error under way is the one to be told

    def save(
        self,
        step: int,
        state: Any,
        host: Mapping[str, Any],
        *,
        best: bool = False,
        finished: bool = False,
        wait: bool = False,
    ) -> None:
        """Save `state` and `host` as one unit, in the background.

        Returns when the arrays are copied: the caller may donate or overwrite its buffers. A save
        under way is waited for first. A checkpoint that exists for this step is replaced, and
        stays whole until the new one is.

        Args:
          step: training steps done, at least 0.
          state: a pytree of arrays.
          host: what JSON can hold: data position, offset in the metrics file, best value, ...
          best: this is the best so far by the validation metric.
          finished: the stage ends here.
          wait: return only when everything is on the disk.

        Raises:
          CheckpointError: the disk is full or the folder cannot be written, now or in the save
            before.
          TypeError, ValueError: the state holds something that is not an array, or `host`
            something that is not JSON.
        """
        self.wait()
        if step < 0:
            raise ValueError(f"step is {step}; expected 0 or more")
        arrays, described = describe_arrays(state)
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": int(step),
            "finished": bool(finished),
            "best": bool(best),
            "host": json.loads(json.dumps(dict(host))),
            "versions": describe_versions(),
            "machine": describe_machine(),
            "arrays": described,
        }
        path = self.directory / f"{step:09d}"

        def prepare() -> str:
            try:
                name = self._prepare(path)
                _check_space(arrays, path)
            except OSError as error:
                raise _explain(error, path) or error from error
            return name

        try:
            manifest["state"] = name = self._once(prepare)
            # Quiet until all is written, without a gap: Orbax may fail in between, in a thread.
            with contextlib.ExitStack() as stack, jax.transfer_guard("allow"):
                stack.enter_context(quiet())
                self._writer().save(path / name, args=ocp.args.PyTreeSave(detached(arrays)))
                silence = stack.pop_all()
        except Exception as error:
            if group().primary:
                discard_unfinished(path)
            told = None if isinstance(error, UserError) else _explain(error, path)
            if told is None:
                raise
            raise told from error
        self._thread = threading.Thread(
            target=self._finish, args=(path, manifest, silence), name=f"checkpoint-{step}"
        )
        self._thread.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Block until nothing is being saved.

        Raises:
          CheckpointError: the save failed; one line with the folder and what to do.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint with a readable manifest, newest first; no file of it is verified."""
        found = []
        with explained(self.directory):
            for path in self._folders():
                try:
                    found.append(read_manifest(path))
                except DamagedError:
                    continue
        return found

    def latest_valid(
        self,
        *,
        report: Callable[[str], None],
        where: Callable[[Checkpoint], bool] = lambda _: True,
    ) -> Checkpoint | None:
        """The newest checkpoint whose every file has the size and SHA-256 of its manifest.

        Args:
          report: called with one line for each damaged or unfinished checkpoint passed over.
          where: which checkpoints count, such as `lambda c: c.best` or `lambda c: c.finished`.

        Returns:
          The checkpoint, or None if there is none.
        """
        self.wait()

        def find() -> str | None:
            folders = self._folders()
            for i, path in enumerate(folders):
                try:
                    checkpoint = read_manifest(path)
                    if not where(checkpoint):
                        continue
                    verify(checkpoint)
                except DamagedError as damage:
                    self._damaged.add(path)
                    last = i + 1 == len(folders)
                    then = "there is none before it" if last else "using the one before it"
                    report(f"checkpoint {path}: {damage}; {then}")
                else:
                    self._damaged.discard(path)
                    return path.name
            return None

        found = self._once(find)
        if found is None:
            return None
        try:
            with explained(self.directory):
                return read_manifest(self.directory / found)
        except DamagedError as damage:
            raise CheckpointError(
                f"checkpoint {self.directory / found}: {damage}, as {group().name} sees it; give "
                "all processes one folder that they share"
            ) from None

    def restore(self, checkpoint: Checkpoint, abstract_state: _PyTree) -> _PyTree:
        """The saved state, placed as `abstract_state` says.

        Args:
          checkpoint: what to restore.
          abstract_state: a pytree of `jax.ShapeDtypeStruct` (or arrays) with the shardings
            wanted, on any mesh; a leaf without a sharding goes to the first device.

        Returns:
          A pytree like `abstract_state`, with the saved bits.

        Raises:
          CheckpointError: a leaf is missing or differs in shape or dtype (the first three are
            named), or the files cannot be read.
        """
        leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_state)
        expected = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        check_fit(checkpoint, expected)
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = {
            path: getattr(leaf, "sharding", None) or first for path, leaf in expected.items()
        }
        arguments = {
            path: ocp.ArrayRestoreArgs(
                sharding=shardings[path], global_shape=leaf.shape, dtype=leaf.dtype
            )
            for path, leaf in expected.items()
            if not is_empty(leaf.shape)
        }
        restored = self._read_arrays(checkpoint, arguments)
        for path, leaf in expected.items():
            if is_empty(leaf.shape):
                restored[path] = _empty(leaf.shape, leaf.dtype, shardings[path])
        return jax.tree.unflatten(treedef, [restored[path] for path in expected])

    def restore_numpy(
        self, checkpoint: Checkpoint, *, where: Callable[[str], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The saved arrays on the host, for tools that do not know the state's classes.

        Args:
          checkpoint: what to read.
          where: which leaves, by their path, as in `checkpoint.arrays`.

        Returns:
          Nested dictionaries with the names of attributes, keys and positions, as strings.

        Raises:
          CheckpointError: the files cannot be read.
        """
        chosen = {path: array for path, array in checkpoint.arrays.items() if where(path)}
        arguments = {
            path: ocp.RestoreArgs(restore_type=np.ndarray)
            for path, array in chosen.items()
            if not is_empty(array["shape"])
        }
        restored = self._read_arrays(checkpoint, arguments)
        nested: dict[str, Any] = {}
        for path, array in chosen.items():
            node = nested
            *parents, name = array["keys"] or [""]
            for key in parents:
                node = node.setdefault(key, {})
            empty = is_empty(array["shape"])
            node[name] = np.zeros(array["shape"], array["dtype"]) if empty else restored[path]
        return nested

    def discard(self) -> list[Path]:
        """Delete every checkpoint, because what it continued is made anew.

        Returns:
          What was deleted.
        """
        self.wait()

        def delete_all() -> list[str]:
            folders = self._folders()
            for path in folders:
                delete(path, ignore_errors=True)
            return [str(path) for path in folders]

        return [open_place(path) for path in self._once(delete_all)]

    def clean(self) -> list[Path]:
        """Delete what killed saves and killed deletions left behind.

        That is: step folders without a manifest, and within the others what the manifest does
        not name. A folder with a manifest that cannot be read is left alone.

        Returns:
          What was deleted.
        """
        self.wait()

        def tidy() -> list[str]:
            removed = []
            for path in self._folders():
                if not (path / MANIFEST).exists():
                    delete(path, ignore_errors=True)
                    removed.append(path)
                    continue
                try:
                    checkpoint = read_manifest(path)
                except DamagedError:
                    continue
                removed += remove_strays(path, keep=checkpoint.folder)
            return [str(path) for path in removed]

        return [open_place(path) for path in self._once(tidy)]

    def _folders(self) -> list[Path]:
        """Step folders, newest first, whatever is in them."""
        self._reach()
        try:
            entries = list(self.directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        folders = [entry for entry in entries if _FOLDER.fullmatch(entry.name) and entry.is_dir()]
        return sorted(folders, key=lambda folder: int(folder.name), reverse=True)

    def _once(self, action: Callable[[], _Result]) -> _Result:
        """Do folder work at process 0 for all; errors of a store become one line."""

        def guarded() -> _Result:
            with explained(self.directory):
                return action()

        return group().once(guarded)

    def _reach(self) -> None:
        """Before the first work in a bucket see that it is there."""
        if not self._reached:
            reach(self.directory)
            self._reached = True

    def _writer(self) -> ocp.AsyncCheckpointer:
        if self._orbax is None:
            self._orbax = writer(self.directory)
        return self._orbax

    def _prepare(self, path: Path) -> str:
        """Make room for a save in `path`; the name of the folder for its arrays.

        A checkpoint that is there already keeps its arrays under their name: writing the new
        manifest, which is atomic, is what replaces it.
        """
        self._reach()
        try:
            present = read_manifest(path).folder
        except DamagedError:
            delete(path)
            if not is_remote(path):  # a bucket has no folders
                path.mkdir(parents=True, exist_ok=True)
            return "state"
        remove_strays(path, keep=present)
        return "state-1" if present == "state" else "state"

    def _finish(self, path: Path, manifest: dict[str, Any], silence: contextlib.ExitStack) -> None:
        """Wait for Orbax, then write the manifest and prune; runs in the background."""
        try:
            self._writer().wait_until_finished()
            silence.close()
            if group().primary:
                write_manifest(path, manifest)
                remove_strays(path, keep=manifest["state"])
                self._damaged.discard(path)
                self._prune(manifest["step"])
        except BaseException as error:
            if group().primary:
                discard_unfinished(path)
            reason = f"{type(error).__name__}: {error}"
            self._error = _explain(error, path) or CheckpointError(
                f"checkpoint {path} was not saved: {reason[:400]}; earlier checkpoints are intact"
            )
            self._error.__cause__ = error

    def _prune(self, step: int) -> None:
        found = self.checkpoints()
        intact = [checkpoint for checkpoint in found if checkpoint.path not in self._damaged]
        # After a return to an older one the checkpoint just saved need not be the newest.
        saved = [checkpoint for checkpoint in intact if checkpoint.step == step]
        latest = intact[: self.keep_latest]
        best = [checkpoint for checkpoint in intact if checkpoint.best][:1]
        finished = [checkpoint for checkpoint in intact if checkpoint.finished]
        keep = {checkpoint.path for checkpoint in [*saved, *latest, *best, *finished]}
        for checkpoint in found:
            # A damaged one ahead of the present step is about to be replaced.
            ahead = checkpoint.path in self._damaged and checkpoint.step > step
            if checkpoint.path not in keep and not ahead:
                delete(checkpoint.path, ignore_errors=True)
                self._damaged.discard(checkpoint.path)

    def _read_arrays(self, checkpoint: Checkpoint, arguments: dict[str, Any]) -> dict[str, Any]:
        if not arguments:
            return {}
        self.wait()
        folder = checkpoint.path / checkpoint.folder
        request = ocp.args.PyTreeRestore(
            item=dict.fromkeys(arguments, 0), restore_args=arguments, partial_restore=True
        )
        try:
            with quiet(), jax.transfer_guard("allow"):
                return dict(reader(folder).restore(folder, args=request))
        except UserError:
            raise
        except Exception as error:
            if is_remote(folder):
                raise explain(error, folder) from error
            raise CheckpointError(
                f"checkpoint {checkpoint.path} cannot be read: {type(error).__name__}: "
                f"{str(error)[:400]}; move the folder away to use the one before it"
            ) from error


def _empty(shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    whole = np.zeros(shape, dtype)
    return jax.make_array_from_callback(shape, sharding, lambda index: whole[index])


_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.EFBIG, errno.EIO, errno.ESTALE),
)


def _check_space(arrays: dict[str, jax.Array], path: Path) -> None:
    """Refuse what cannot fit before anything is written."""
    if is_remote(path):
        return
    needed = sum(array.nbytes for array in arrays.values())
    disk = shutil.disk_usage(path)
    if disk.total and disk.free < needed:  # some network file systems say 0 of 0
        raise _full(path, f"needs {needed / 1e6:.1f} MB, {disk.free / 1e6:.1f} MB are free")


def _full(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"disk full: checkpoint {path} was not saved ({reason}); free some space and run the "
        "same command again (earlier checkpoints are intact)"
    )


def _explain(error: BaseException, path: Path) -> CheckpointError | None:
    """One line for a store's error, or a disk that is full or refuses; None for anything else.

    Orbax and TensorStore wrap the system's error in their own, often as text only.
    """
    if is_remote(path):
        return explain(error, path)
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context
    text = " ".join(str(link) for link in chain)
    codes = [link.errno for link in chain if isinstance(link, OSError)]
    for code in _FULL:
        if code in codes or os.strerror(code) in text:
            return _full(path, os.strerror(code))
    refused = [code for code in codes if code]
    refused += [code for code in _REFUSED if os.strerror(code) in text]
    if not refused:
        return None
    reason = os.strerror(refused[0])
    return CheckpointError(
        f"cannot write to {path}: {reason}; make it writable or choose another workdir"
    )
