"""Packing image files into shards: what is kept, what is reduced, resuming, and damage."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxmlcl.cli import main
from jaxmlcl.data import open_source
from jaxmlcl.data.images.pack import Packing, pack, reduced
from jaxmlcl.errors import ConfigError, DataError

pytest.importorskip("array_record")
pytest.importorskip("msgspec")


def noise(size: tuple[int, int], seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["file,sea,sky"]
    for i in range(12):
        size = (40, 30) if i % 3 else (30, 90)
        (folder / f"{i}.jpg").write_bytes(noise(size, i))
        rows.append(f"{i}.jpg,{int(i % 2 == 0)},{int(i % 4 == 1)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def source_of(photos: Path) -> Any:
    return open_source(f"folder:{photos / 'photos'}")


def test_large_images_are_reduced_and_small_ones_keep_their_bytes(photos: Path) -> None:
    source, folder = source_of(photos), photos / "packed"
    manifest = pack(source, folder, Packing(short_side=30, shards=5), origin="mine")
    assert manifest["rows"] == 12
    assert sum(shard["rows"] for shard in manifest["shards"]) == 12
    assert (len(manifest["shards"]), manifest["positives"]) == (5, {"sea": 6, "sky": 3})
    assert (manifest["unlabelled"], manifest["made"]["from"]) == (3, "mine")
    packed = open_source(f"shards:{folder}")
    assert packed.metadata.label_names == ("sea", "sky")
    assert packed.labels().tolist() == source.labels().tolist()
    for row in range(12):
        # Their short side is 30 pixels: never larger, never rewritten.
        assert packed[row]["inputs"] == source[row]["inputs"]
        assert packed[row]["id"] == row
        assert packed[row]["labels"].tolist() == source[row]["labels"].tolist()
    assert {path.name for path in folder.iterdir()} == {
        *(shard["file"] for shard in manifest["shards"]),
        *("index.npz", "manifest.json", ".lock"),
    }

    pack(source, photos / "small", Packing(short_side=20, quality=95, shards=1))
    small: Any = open_source(f"shards:{photos / 'small'}")
    for row in range(12):
        with Image.open(io.BytesIO(small[row]["inputs"])) as image:
            assert image.size == ((27, 20) if row % 3 else (20, 60))
            found = np.asarray(image, float)
        assert small.original_size(row) == ((40, 30) if row % 3 else (30, 90))
        with Image.open(io.BytesIO(source[row]["inputs"])) as image:
            wanted = np.asarray(image.resize((found.shape[1], found.shape[0]), 1), float)
        # Noise is what JPEG is worst at; of another image it would be some 85.
        assert np.abs(found - wanted).mean() < 20


def test_other_formats_are_packed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(noise((50, 40), 0, "PNG"))
    buffer = io.BytesIO()
    Image.new("LA", (50, 40), (90, 120)).save(buffer, "PNG")
    (tmp_path / "b.png").write_bytes(buffer.getvalue())
    (tmp_path / "labels.csv").write_text("file,x\na.png,1\nb.png,0\n")
    pack(open_source(f"folder:{tmp_path}"), tmp_path / "out", Packing(short_side=20))
    packed = open_source(f"shards:{tmp_path / 'out'}")
    for row in range(2):
        with Image.open(io.BytesIO(packed[row]["inputs"])) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (25, 20))


def test_unknown_labels_and_parts(tmp_path: Path) -> None:
    rows = [f"{i}.jpg,{int(i % 2 == 0)},{'' if i == 3 else int(i % 5 == 0)}" for i in range(20)]
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(noise((8, 8), i))
    (tmp_path / "labels.csv").write_text("\n".join(["file,even,fifth", *rows]) + "\n")
    source: Any = open_source(f"folder:{tmp_path}?unknown=mask")
    pack(source, tmp_path / "out", Packing(shards=3))
    packed: Any = open_source(f"shards:{tmp_path / 'out'}")
    assert packed.metadata.unknown_labels
    np.testing.assert_array_equal(packed.label_mask(), source.label_mask())
    assert packed[3]["label_mask"].tolist() == [True, False]
    part: Any = open_source(f"shards:{tmp_path / 'out'}?part=held-out&fraction=0.25")
    for row in range(len(part)):
        assert part[row]["inputs"] == source[int(part.ids[row])]["inputs"]
    assert part.metadata.fingerprint != packed.metadata.fingerprint
    labelled = open_source(f"shards:{tmp_path / 'out'}?empty=drop")
    assert len(labelled) == int(packed.labels().any(axis=1).sum())


def test_workers_get_no_open_files(photos: Path) -> None:
    pack(source_of(photos), photos / "packed", Packing(shards=2))
    packed = open_source(f"shards:{photos / 'packed'}")
    first = packed[0]["inputs"]
    again = pickle.loads(pickle.dumps(packed))
    assert again[0]["inputs"] == first


@pytest.mark.parametrize("damage", ["cut", "altered", "gone", "index", "manifest"])
def test_damage_is_told_with_the_file(photos: Path, damage: str) -> None:
    folder = photos / "packed"
    manifest = pack(source_of(photos), folder, Packing(shards=3))
    shard = folder / manifest["shards"][1]["file"]
    content = shard.read_bytes()
    uri = f"shards:{folder}"
    if damage == "cut":
        shard.write_bytes(content[:-10])
        with pytest.raises(DataError, match=rf"{shard.name}: damaged: {len(content) - 10} bytes"):
            open_source(uri)
    elif damage == "gone":
        shard.unlink()
        with pytest.raises(DataError, match=f"{shard.name}: a shard that cannot be read"):
            open_source(uri)
    elif damage == "altered":
        middle = len(content) // 2
        changed = bytes([content[middle] ^ 1])
        shard.write_bytes(content[:middle] + changed + content[middle + 1 :])
        source: Any = open_source(uri)
        message = rf"{shard.name}: damaged, record \d cannot be read"
        with pytest.raises(DataError, match=message):
            _ = [source[row] for row in range(len(source))]
        with pytest.raises(DataError, match=f"{shard.name}: damaged: its checksum is another"):
            source.verify()
        assert main(["data", "inspect", uri, "--check-images"]) == 2
    elif damage == "index":
        (folder / "index.npz").write_bytes(b"PK" + bytes(100))
        with pytest.raises(DataError, match=r"index.npz: damaged: its checksum is another"):
            open_source(uri)
    else:
        (folder / "manifest.json").unlink()
        with pytest.raises(DataError, match=r"manifest.json: no such file; was the set packed"):
            open_source(uri)
        for text, message in (("{", "not the manifest"), ('{"version": 7}', "version 7 of packed")):
            (folder / "manifest.json").write_text(text)
            with pytest.raises(DataError, match=message):
                open_source(uri)


def test_a_manifest_does_not_lead_out_of_its_folder(photos: Path) -> None:
    folder = photos / "packed"
    manifest = pack(source_of(photos), folder, Packing(shards=1))
    manifest["shards"][0]["file"] = "../secret"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not the manifest of a packed set"):
        open_source(f"shards:{folder}")


def test_unreadable_images_stop_it_or_are_left_out_and_counted(photos: Path) -> None:
    good = (photos / "photos" / "4.jpg").read_bytes()
    (photos / "photos" / "4.jpg").write_bytes(good[: len(good) // 2])
    (photos / "photos" / "7.jpg").unlink()
    with pytest.raises(DataError, match=r"photos/4.jpg: cannot be decoded"):
        pack(source_of(photos), photos / "packed", Packing(shards=2))
    assert not list((photos / "packed").glob("*unfinished*"))
    packing = Packing(shards=2, unreadable="skip")
    manifest = pack(source_of(photos), photos / "packed", packing)
    assert (manifest["rows"], manifest["made"]["skipped"]) == (10, 2)
    packed: Any = open_source(f"shards:{photos / 'packed'}")
    assert packed.ids.tolist() == [0, 1, 2, 3, 5, 6, 8, 9, 10, 11]
    assert packed[6]["inputs"] == (photos / "photos" / "8.jpg").read_bytes()


def test_it_goes_on_where_it_was_stopped(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder, packing = source_of(photos), photos / "packed", Packing(shards=4)
    read: list[int] = []
    plain = type(source).read

    def counted(self: Any, row: int) -> bytes:
        if len(read) == 8 and not resumed:
            raise KeyboardInterrupt
        read.append(row)
        return plain(self, row)

    monkeypatch.setattr(type(source), "read", counted)
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        pack(source, folder, packing, threads=1)
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrayrecord")}
    assert 1 <= len(written) <= 2
    assert not (folder / "manifest.json").exists()
    read.clear()
    resumed = True
    manifest = pack(source, folder, packing, threads=1)
    assert len(read) == 12 - 3 * len(written)
    for name, moment in written.items():
        assert (folder / name).stat().st_mtime_ns == moment
    fresh = pack(source, photos / "fresh", packing)
    assert [one["sha256"] for one in manifest["shards"]] == [
        one["sha256"] for one in fresh["shards"]
    ]
    # Done: a further call reads nothing.
    read.clear()
    assert pack(source, folder, packing) == manifest
    assert read == []


def test_files_that_say_they_are_enormous_are_no_photographs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    content = noise((40, 30), 0)
    with (
        pytest.raises(DataError, match=r"a.jpg: cannot be decoded: 40 x 30 pixels are too many"),
        pytest.warns(Image.DecompressionBombWarning),
    ):
        reduced(content, "a.jpg", Packing())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a.jpg: cannot be decoded"):
        reduced(content, "a.jpg", Packing())


def test_a_folder_holds_one_set(photos: Path) -> None:
    pack(source_of(photos), photos / "packed", Packing(shards=2))
    with pytest.raises(DataError, match="holds another packed set"):
        pack(source_of(photos), photos / "packed", Packing(shards=2, quality=50))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_side": 0}, "short_side must be at least 1"),
        ({"quality": 101}, "quality must be from 1 to 100"),
        ({"shards": 0}, "shards must be at least 1"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Packing(**changes)


def test_command(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "pack", "folder:photos", "--data.root", str(photos), "-o"]
    out = photos / "packed"
    assert main([*words, str(out), "--short-side", "20", "--shards", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("12 images, 2 labels, 2 shards, ")
    assert f"next: jaxmlcl data inspect shards:{out}" in printed
    assert main(["data", "inspect", f"shards:{out}", "--check-images"]) == 0
    inspected = capsys.readouterr().out
    assert "20x60" in inspected
    assert main(["data", "pack", "digits:train?size=8", "-o", str(photos / "no")]) == 2
    assert "only image files can be packed" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_kill_left_half_written_is_taken_away(photos: Path) -> None:
    out = photos.parent / "packed"
    (out / "parts").mkdir(parents=True)
    (out / "parts" / ".00000.json.half").write_text("{")
    pack(source_of(photos), out, Packing(shards=2))
    assert not (out / "parts").exists()
    assert len(open_source(f"shards:{out}")) == len(source_of(photos))


def test_a_killed_process_leaves_whole_shards_and_is_continued(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i}.jpg").write_bytes(noise((300, 300), i))
    rows = "".join(f"{i}.jpg,{i % 2}\n" for i in range(400))
    (folder / "labels.csv").write_text("file,odd\n" + rows)
    out = tmp_path / "packed"
    words = ["data", "pack", f"folder:{folder}", "-o", str(out), "--shards", "20"]
    command = [sys.executable, "-m", "jaxmlcl", *words, "--short-side", "64"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and len(list(out.glob("*.arrayrecord"))) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packed: Any = open_source(f"shards:{out}")
    packed.verify()
    assert len(packed) == 400
    assert packed.ids.tolist() == list(range(400))
    assert not [path for path in out.iterdir() if "unfinished" in path.name]


def test_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    uri = "coco:images/coco_256/annotations/instances_val2017.json"
    source: Any = open_source(uri, root=shared_data)
    manifest = pack(source, tmp_path / "coco", Packing(short_side=128, shards=4))
    packed: Any = open_source(f"shards:{tmp_path / 'coco'}")
    assert packed.ids.tolist() == source.ids.tolist()
    np.testing.assert_array_equal(packed.labels(), source.labels())
    for row in (0, 50, 127):
        with Image.open(io.BytesIO(packed[row]["inputs"])) as image:
            assert min(image.size) == 128
        assert min(packed.original_size(row)) == 256
    sizes = sum(one["bytes"] for one in manifest["shards"])
    assert sizes < sum(len(source[row]["inputs"]) for row in range(128))
