"""What makes a folder a checkpoint: a manifest with the checksum of every file, written last."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jax

import jaxmlcl
from jaxmlcl.errors import CheckpointError
from jaxmlcl.io import sync_folder, write_atomic
from jaxmlcl.training import _storage
from jaxmlcl.training._storage import is_remote

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: what its manifest says, without the arrays.

    Attributes:
      path: its folder, or its place in a bucket.
      step: training steps done when it was saved.
      finished: saved at the end of its stage; never pruned.
      best: the best by the validation metric when it was saved.
      host: what the caller saved beside the arrays, as JSON gives it back (tuples are lists).
      machine: platform, device_count, process_count and cpu_count of the run that saved it.
      versions: of jaxmlcl, jax and orbax.
      arrays: path of each leaf (`jax.tree_util.keystr`) to its shape, dtype and keys.
    """

    path: Path
    step: int
    finished: bool
    best: bool
    host: dict[str, Any]
    machine: dict[str, Any] = field(repr=False)
    versions: dict[str, str] = field(repr=False)
    arrays: dict[str, dict[str, Any]] = field(repr=False)
    files: dict[str, dict[str, Any]] = field(repr=False)
    folder: str = field(default="state", repr=False)

    @property
    def identity(self) -> str:
        """SHA-256 over the names, sizes and checksums of the files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


class DamagedError(Exception):
    """Why a checkpoint cannot be used, in a few words."""


def read_manifest(path: Path) -> Checkpoint:
    """The checkpoint in `path` if its manifest is whole."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST} is missing (the save was interrupted)") from None
    except OSError as error:
        if is_remote(path):
            raise  # of the network, not of the checkpoint
        raise DamagedError(f"{MANIFEST} cannot be read ({error.strerror})") from None
    except ValueError:  # not UTF-8, or not JSON
        raise DamagedError(f"{MANIFEST} is damaged (not JSON)") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DamagedError(
            f"{MANIFEST} has format {version} and this jaxmlcl reads up to {FORMAT_VERSION} "
            "(upgrade jaxmlcl if a newer one wrote it)"
        )
    if version != FORMAT_VERSION or manifest.get("sha256") != _checksum(manifest):
        raise DamagedError(f"{MANIFEST} is damaged (sha256 differs)")
    return Checkpoint(
        path=path,
        step=manifest["step"],
        finished=manifest["finished"],
        best=manifest["best"],
        host=manifest["host"],
        machine=manifest["machine"],
        versions=manifest["versions"],
        arrays=manifest["arrays"],
        files=manifest["files"],
        folder=manifest["state"],
    )


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Complete the checkpoint in `path`: flush its files, then write the manifest atomically."""
    arrays = path / manifest["state"]
    if is_remote(path):
        names = [f"{arrays.name}/{name}" for name in _storage.objects(arrays)]
    else:
        names = [file.relative_to(path).as_posix() for file in _flush(arrays)]
    with _storage.measuring(path, names) as measure:
        manifest["files"] = {name: measure(name) for name in names}
    manifest["sha256"] = _checksum(manifest)
    content = json.dumps(manifest, indent=1) + "\n"
    if is_remote(path):
        (path / MANIFEST).write_bytes(content.encode())  # one object, whole or not at all
        return
    write_atomic(path / MANIFEST, content)
    sync_folder(path.parent)


def verify(checkpoint: Checkpoint) -> None:
    """Compare every file with the manifest: all sizes first, which costs nothing."""
    size_of = _storage.size_of(checkpoint.path)
    try:
        for name, expected in checkpoint.files.items():
            size = size_of(name)
            if size < expected["bytes"]:
                reason = f"truncated: {size} of {expected['bytes']} bytes"
                raise DamagedError(f"{name} is damaged ({reason})")
            if size > expected["bytes"]:
                reason = f"{size} bytes instead of {expected['bytes']}"
                raise DamagedError(f"{name} is damaged ({reason})")
        with _storage.measuring(checkpoint.path, checkpoint.files) as measure:
            for name, expected in checkpoint.files.items():
                if measure(name)["sha256"] != expected["sha256"]:
                    raise DamagedError(f"{name} is damaged (sha256 differs)")
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{name} is damaged (missing)") from None
    except OSError as error:
        if is_remote(checkpoint.path):
            raise
        raise DamagedError(f"{name} cannot be read ({error.strerror})") from None


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own checksum, independent of layout."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _flush(folder: Path) -> list[Path]:
    """Force a folder's files to the disk, so that the manifest never gets there before them."""
    files = []
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent, name)
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            files.append(file)
        sync_folder(parent)
    sync_folder(folder.parent)
    return sorted(files)


def delete(path: Path, *, ignore_errors: bool = False) -> None:
    """Delete a checkpoint, its manifest first: a kill half-way leaves nothing that looks valid."""
    (path / MANIFEST).unlink(missing_ok=True)
    if path.is_dir():
        if not is_remote(path):
            sync_folder(path)
        _remove_tree(path, ignore_errors=ignore_errors)


def _remove_tree(folder: Path, *, ignore_errors: bool = False) -> None:
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(Exception if ignore_errors else FileNotFoundError):
        cast(Any, folder).rmtree()


def remove_strays(path: Path, *, keep: str) -> list[Path]:
    """Delete what killed saves left beside the manifest and the arrays it names."""
    removed = []
    for entry in path.iterdir():
        if entry.name in (MANIFEST, keep):
            continue
        if entry.is_dir() and entry.name.startswith("state"):
            _remove_tree(entry, ignore_errors=True)
        elif entry.name.startswith(f".{MANIFEST}."):
            entry.unlink(missing_ok=True)
        else:
            continue  # not ours
        removed.append(entry)
    return removed


def discard_unfinished(path: Path) -> None:
    """After a failed save give its space back; a checkpoint that was there before stays."""
    # The disk, or the network, may be what failed.
    with contextlib.suppress(Exception if is_remote(path) else OSError):
        try:
            keep = read_manifest(path).folder
        except DamagedError:
            if not (path / MANIFEST).exists():
                _remove_tree(path, ignore_errors=True)
        else:
            remove_strays(path, keep=keep)


def describe_versions() -> dict[str, str]:
    """What wrote the checkpoint."""
    orbax = importlib.metadata.version("orbax-checkpoint")
    return {"jaxmlcl": jaxmlcl.__version__, "jax": jax.__version__, "orbax": orbax}


def describe_machine() -> dict[str, Any]:
    """Where it was written: another number of cores or devices changes the last bits."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "platform": jax.default_backend(),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": len(affinity(0)) if affinity else os.cpu_count(),
    }


def describe_arrays(state: Any) -> tuple[dict[str, jax.Array], dict[str, dict[str, Any]]]:
    """The state as flat path -> array (empty arrays left out), and what every leaf is."""
    arrays: dict[str, jax.Array] = {}
    described: dict[str, dict[str, Any]] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        path = jax.tree_util.keystr(keys)
        if not isinstance(leaf, jax.Array):
            kind = type(leaf).__name__
            raise TypeError(f"state{path} is of type {kind}; expected a jax.Array")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"state{path} is a typed random key; save jax.random.key_data of it")
        if path in described:
            raise ValueError(f"state has two leaves with the path {path}")
        described[path] = {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "keys": [jax.tree_util.keystr((key,), simple=True) for key in keys],
        }
        if not is_empty(leaf.shape):
            arrays[path] = leaf
    if not arrays:
        raise ValueError("state holds no arrays")
    return arrays, described


def check_fit(checkpoint: Checkpoint, expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming the first leaves that differ."""
    saved = {path: f"{array['dtype']}{array['shape']}" for path, array in checkpoint.arrays.items()}
    wanted = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in expected.items()}
    differing = [
        f"{path or 'the state'} is {saved.get(path, 'absent')} in the checkpoint, "
        f"{wanted.get(path, 'absent')} here"
        for path in [*wanted, *(path for path in saved if path not in wanted)]
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        rest = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"checkpoint {checkpoint.path} does not fit: {'; '.join(differing[:3])}{rest}. "
            "Use the configuration it was saved with, or another workdir"
        )


def is_empty(shape: Iterable[int]) -> bool:
    """Orbax refuses arrays without elements; the manifest says all there is to say of them."""
    return 0 in tuple(shape)
