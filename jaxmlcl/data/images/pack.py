"""Packing: any source of encoded images into ArrayRecord shards, in parallel, a shard at a time."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmlcl import __version__
from jaxmlcl.data.images._source import EncodedSource, Stored
from jaxmlcl.data.images.shards import (
    INDEX,
    MANIFEST,
    VERSION,
    array_record,
    file_sha256,
    msgpack,
)
from jaxmlcl.errors import ConfigError, DataError
from jaxmlcl.io import lock_folder, sync_folder, write_atomic

_PARTS = "parts"
# Images of a shard, where nobody says how many shards there are.
_PER_SHARD = 10_000


@dataclasses.dataclass(frozen=True)
class Packing:
    """How a set is packed."""

    short_side: int | None = 256
    """Pixels that the short side of a larger image is reduced to; None: images stay as they are."""
    quality: int = 90
    """Of the JPEG of a reduced image, 1 to 100."""
    shards: int | None = None
    """How many files; None: one for every 10 000 images."""
    unreadable: Literal["error", "skip"] = "error"
    """What becomes of an image that is missing or cannot be decoded."""

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("short_side", self.short_side is None or self.short_side >= 1, "at least 1"),
            ("quality", 1 <= self.quality <= 100, "from 1 to 100"),
            ("shards", self.shards is None or self.shards >= 1, "at least 1"),
        ):
            if not fits:
                raise ConfigError(f"pack: {name} must be {wanted}, not {getattr(self, name)}")


def pack(
    source: EncodedSource,
    folder: Path,
    packing: Packing,
    *,
    origin: str = "",
    threads: int | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Write a source into ArrayRecord shards with an index and a manifest.

    An image whose short side is larger is reduced to `short_side` (Lanczos) and written as a JPEG;
    all others keep their bytes. Every image is decoded, so nothing in the shards is undecodable. A
    shard appears whole or not at all; a call that was stopped goes on with the shards that are not
    there. Memory is that of some dozen images and of the labels.

    Args:
      source: what to pack.
      folder: where to; it is created.
      packing: how.
      origin: what the source is called, for the manifest.
      threads: that decode and reduce; one for each core if left out.
      report: called with images done and of all.

    Returns:
      The manifest.

    Raises:
      DataError: the folder is in use or holds another set; an image that is missing or cannot be
        decoded, unless those are skipped.
      ConfigError: the extra `images` is not installed.
    """
    if source.metadata.kind != "encoded":
        raise DataError(f"{origin or source.metadata.name}: only image files can be packed")
    array_record(), msgpack()
    count = packing.shards or -(-len(source) // _PER_SHARD)
    bounds = np.linspace(0, len(source), min(count, len(source)) + 1).astype(int)
    plan = {
        "fingerprint": source.metadata.fingerprint,
        "short_side": packing.short_side,
        "quality": packing.quality,
        "shards": len(bounds) - 1,
        "unreadable": packing.unreadable,
    }
    lock = lock_folder(folder)
    if lock is None:
        raise DataError(f"{folder}: another process packs into it; wait, or choose another folder")
    with lock:
        finished = _finished(folder, plan)
        if finished is not None:
            return finished
        parts = []
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            for shard in range(len(bounds) - 1):
                rows = range(int(bounds[shard]), int(bounds[shard + 1]))
                part = _part(folder, shard, plan)
                if part is None:
                    part = _write_shard(source, folder, shard, plan, rows, packing, pool, report)
                report(rows.stop, len(source))
                parts.append(part)
        return _finish(source, folder, plan, parts, origin)


def _finished(folder: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a set that is packed whole, if it is this one."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        same = found["made"]["plan"] == plan
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise DataError(f"{folder}: holds another packed set; choose another folder, or empty it")
    return found


def _part(folder: Path, shard: int, plan: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call noted about a shard, if it was written under the same plan."""
    try:
        found: dict[str, Any] = json.loads((folder / _PARTS / f"{shard:05d}.json").read_bytes())
        whole = os.path.getsize(folder / found["file"]) == found["bytes"]
        return found if found["plan"] == plan and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_shard(
    source: EncodedSource,
    folder: Path,
    shard: int,
    plan: dict[str, Any],
    rows: range,
    packing: Packing,
    pool: ThreadPoolExecutor,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    name = f"{source.metadata.name}-{shard:05d}-of-{plan['shards']:05d}.arrayrecord"
    path, temporary = folder / name, folder / f".{name}.unfinished"
    kept: list[int] = []
    encode = msgpack().encode
    writer = array_record().ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
        for row, found in _in_order(pool, rows, lambda row: _packed(source, row, packing)):
            if found is not None:
                writer.write(encode(found))
                kept.append(row)
            if row % 100 == 0:
                report(row, len(source))
        writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if writer.is_open():
            writer.close()
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    part = {
        "plan": plan,
        "file": name,
        "rows": kept,
        "skipped": len(rows) - len(kept),
        "bytes": os.path.getsize(path),
        "sha256": file_sha256(path),
    }
    write_atomic(folder / _PARTS / f"{shard:05d}.json", json.dumps(part))
    return part


def _finish(
    source: EncodedSource,
    folder: Path,
    plan: dict[str, Any],
    parts: list[dict[str, Any]],
    origin: str,
) -> dict[str, Any]:
    rows = np.concatenate([np.array(part["rows"], np.int64) for part in parts])
    if len(rows) == 0:
        raise DataError(f"{origin or source.metadata.name}: no image could be packed")
    labels, known = source.labels()[rows], source.label_mask()
    arrays = {"ids": source.ids[rows], "labels": np.packbits(labels, axis=1)}
    if known is not None:
        arrays["known"] = np.packbits(known[rows], axis=1)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomic(folder / INDEX, buffer.getvalue())
    names = source.metadata.label_names
    manifest = {
        "version": VERSION,
        "name": source.metadata.name,
        "rows": len(rows),
        "label_names": list(names),
        "positives": dict(zip(names, labels.sum(axis=0, dtype=int).tolist(), strict=True)),
        "unlabelled": int((~labels.any(axis=1)).sum()),
        "index_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "shards": [
            {
                **{name: part[name] for name in ("file", "bytes", "sha256")},
                "rows": len(part["rows"]),
            }
            for part in parts
        ],
        "made": {
            "by": f"jaxmlcl {__version__}",
            "from": origin,
            "skipped": sum(part["skipped"] for part in parts),
            "plan": plan,
        },
    }
    # Last of all: a set without it is not there yet.
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    # A kill may have left what was being written there, beside what was finished.
    shutil.rmtree(folder / _PARTS)
    return manifest


def _packed(source: EncodedSource, row: int, packing: Packing) -> dict[str, Any] | None:
    """The record of a row; None if it is unreadable and those are skipped."""
    try:
        record = source[row]
        image, size = reduced(record["inputs"], source.place(row), packing)
    except DataError:
        if packing.unreadable == "skip":
            return None
        raise
    found = {"image": image, "id": record["id"], "size": size}
    found["labels"] = np.packbits(record["labels"]).tobytes()
    if "label_mask" in record:
        found["known"] = np.packbits(record["label_mask"]).tobytes()
    return found


def reduced(content: Stored, where: str, packing: Packing) -> tuple[bytes, tuple[int, int]]:
    """An image's bytes as they are packed, and its width and height before.

    Args:
      content: an encoded image; or pixels, which become a PNG where they need not shrink.
      where: what messages call it.
      packing: `short_side` and `quality`.

    Raises:
      DataError: it cannot be decoded whole.

    Example:
      >>> from PIL import Image
      >>> buffer = io.BytesIO()
      >>> Image.new("RGB", (40, 20)).save(buffer, "PNG")
      >>> small, size = reduced(buffer.getvalue(), "a.png", Packing(short_side=10))
      >>> size, Image.open(io.BytesIO(small)).size
      ((40, 20), (20, 10))
      >>> reduced(buffer.getvalue(), "a.png", Packing(short_side=20))[0] == buffer.getvalue()
      True
    """
    from PIL import Image

    if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(content.squeeze(-1) if content.shape[-1] == 1 else content).save(
            buffer, "PNG"
        )
        content = buffer.getvalue()
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            # A small file that says it is enormous is no photograph. Pillow only warns at first,
            # and filters of warnings are shared by all threads.
            if size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or size[0] * size[1]):
                raise ValueError(f"{size[0]} x {size[1]} pixels are too many")
            side = packing.short_side
            if side is None or min(size) <= side:
                image.load()
                return content, size
            factor = side / min(size)
            wanted = (max(side, round(size[0] * factor)), max(side, round(size[1] * factor)))
            # A JPEG is decoded at the smallest scale that is enough.
            image.draft("RGB", wanted)
            small = image.convert("RGB").resize(wanted, Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: cannot be decoded: {error}") from None
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=packing.quality)
    return buffer.getvalue(), size


def _in_order(
    pool: ThreadPoolExecutor, rows: range, function: Callable[[int], Any]
) -> Iterator[tuple[int, Any]]:
    """Each row with its result, in order, with only so many under way that all threads work."""
    waiting: collections.deque[tuple[int, Future[Any]]] = collections.deque()
    try:
        for row in rows:
            waiting.append((row, pool.submit(function, row)))
            if len(waiting) > 64:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
