"""Photographs: boxes belong to the sample, decoding is faithful, what is broken is named."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.data.images import Crops, FileSource, Images, Photographs
from jaxmlcl.data.images.decoding import Box, centre, crops, decode, image_size, random_box
from jaxmlcl.data.pipeline import GlobalOrder, Loading, Views, batches
from jaxmlcl.errors import ConfigError, DataError

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")
pytest.importorskip("simplejpeg", reason="simplejpeg (extra images) is not installed")


def encoded(height: int = 90, width: int = 120, ending: str = ".jpg", blue: int = 90) -> bytes:
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 255 / height, columns * 255 / width, 0 * rows + blue], -1)
    content: bytes = cv2.imencode(ending, image.astype(np.uint8)[..., ::-1])[1].tobytes()
    return content


def files(folder: Path, contents: list[bytes]) -> FileSource:
    for number, content in enumerate(contents):
        (folder / f"{number}.jpg").write_bytes(content)
    n = len(contents)
    labels = np.eye(n, 3, dtype=np.uint8)
    names = [f"{number}.jpg" for number in range(n)]
    ids = np.arange(10, 10 + n)
    return FileSource(folder, names, labels, name="files", label_names="abc", ids=ids)


def test_boxes_are_keyed_by_sample_and_lie_in_the_image() -> None:
    coordinates = {"seed": 3, "epoch": 1, "sample": 4, "view": 0}
    base = random_box(90, 120, **coordinates)
    assert base == random_box(90, 120, **coordinates)
    for name in coordinates:
        assert random_box(90, 120, **{**coordinates, name: 7}) != base
    areas = []
    for sample in range(2000):
        box = random_box(90, 120, seed=0, epoch=0, sample=sample, view=1)
        assert 0 <= box.top <= 90 - box.height
        assert 0 <= box.left <= 120 - box.width
        areas.append(box.height * box.width / (90 * 120))
    assert 0.07 < min(areas) < 0.1
    assert 0.4 < np.mean(areas) < 0.56


def test_a_box_that_never_fits_is_the_central_one() -> None:
    box = random_box(10, 100, seed=0, epoch=0, sample=0, view=0, scale=(1.0, 1.0))
    assert box == Box(0, 43, 10, 13)


def test_decoding_is_red_first_and_png_is_exact() -> None:
    png = decode(encoded(ending=".png"), "x")
    assert png.shape == (90, 120, 3)
    assert (png[..., 2] == 90).all()
    assert png[80, 5, 0] > png[80, 5, 1]
    assert abs(decode(encoded(), "x").astype(int) - png).mean() < 3
    assert image_size(encoded(), "x") == image_size(encoded(ending=".png"), "x") == (90, 120)


def test_damage_is_refused_and_nothing_else_happens() -> None:
    generator = np.random.default_rng(0)
    for ending in (".jpg", ".png"):
        whole = encoded(ending=ending)
        for _ in range(40):
            content = bytearray(whole[: generator.integers(1, len(whole) + 1)])
            for place in generator.integers(0, len(content), 3):
                content[place] = generator.integers(256)
            for read in (
                lambda content: image_size(content, "a"),
                lambda content: decode(content, "a"),
                lambda content: crops(content, "a", [Box(0, 0, 9, 9)], 8),
                lambda content: centre(content, "a", 8, 9),
            ):
                try:
                    read(bytes(content))
                except DataError as error:
                    assert str(error).startswith("a: cannot be decoded")  # noqa: PT017


def test_enormous_images_are_refused_by_their_header() -> None:
    png = bytearray(encoded(ending=".png"))
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    jpeg = bytearray(encoded())
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = (60_000).to_bytes(2, "big") * 2
    for content in (png, jpeg):
        with pytest.raises(DataError, match="60000 x 60000 pixels are too many"):
            decode(bytes(content), "a")


def test_pixels_need_no_decoding() -> None:
    pixels = decode(encoded(ending=".png"), "x")
    assert decode(pixels, "x") is pixels
    assert image_size(pixels, "x") == (90, 120)
    assert decode(pixels[..., :1], "x").shape == (90, 120, 3)
    box = Box(10, 20, 60, 60)
    np.testing.assert_array_equal(
        crops(pixels, "x", [box], 30), crops(encoded(ending=".png"), "x", [box], 30)
    )


def test_a_reduced_scale_shows_the_same_crop() -> None:
    file, box = encoded(640, 800), Box(100, 200, 400, 300)
    assert decode(file, "x", at_least=(80, 100)).shape == (80, 100, 3)
    part = decode(file, "x")[100:500, 200:500]
    whole = cv2.resize(part, (32, 32), interpolation=cv2.INTER_AREA)
    assert abs(crops(file, "x", [box], 32)[0].astype(int) - whole).max() <= 3


def test_the_central_crop_is_in_the_centre() -> None:
    done = centre(encoded(100, 200), "x", 80, 100).astype(int)
    assert done.shape == (80, 80, 3)
    exact = decode(encoded(100, 200), "x")[10:90, 60:140]
    np.testing.assert_array_equal(done, exact)


def test_records_are_central_crops_with_labels(tmp_path: Path) -> None:
    photographs = Photographs(files(tmp_path, [encoded()] * 3), Images(size=32))
    metadata = photographs.metadata
    assert (metadata.kind, metadata.input_shape, metadata.input_dtype) == (
        "image",
        (32, 32, 3),
        "uint8",
    )
    record = photographs[-1]
    assert record["inputs"].shape == (32, 32, 3)
    assert (record["id"], record["labels"].tolist()) == (12, [0, 0, 1])
    np.testing.assert_array_equal(record["inputs"], centre(encoded(), "x", 32, 37))
    with ThreadPoolExecutor(3) as pool:
        together = photographs.inputs(range(1, 3), pool)
    np.testing.assert_array_equal(together, np.stack([photographs[i]["inputs"] for i in (1, 2)]))
    found = photographs.annotations(np.array([2, 0]))
    assert found["ids"].tolist() == [12, 10]
    assert found["labels"].tolist() == [[0, 0, 1], [1, 0, 0]]


def test_fingerprints_tell_sizes_apart_and_rows_together(tmp_path: Path) -> None:
    source = files(tmp_path, [encoded()] * 3)
    small, large = (Photographs(source, Images(size=size)).metadata for size in (32, 64))
    assert small.fingerprint != large.fingerprint
    assert small.fingerprint_of_rows == large.fingerprint_of_rows == source.metadata.fingerprint


def test_views_are_of_the_epoch_and_one_is_the_first_of_two(tmp_path: Path) -> None:
    photographs = Photographs(files(tmp_path, [encoded()] * 3), Images(size=32))
    one, two = (photographs.reader(Crops(seed=5, views=views)) for views in (1, 2))
    both, row = two(1, 0)
    assert row == 1
    assert both.shape == (2, 32, 32, 3)
    # The same box; two views may need a larger scale of decoding than one.
    assert abs(both[0].astype(int) - one(1, 0)[0]).max() <= 6
    np.testing.assert_array_equal(both, two(1, 0)[0])
    assert (both != two(1, 1)[0]).any()
    assert (both[0] != both[1]).any()
    assert (both[0] != photographs.reader(Crops(seed=6))(1, 0)[0]).any()
    np.testing.assert_array_equal(photographs.reader(None)(2, 9)[0], photographs[2]["inputs"])


def test_a_worker_gets_files_but_no_labels(tmp_path: Path) -> None:
    labels = np.zeros((50_000, 400), np.uint8)
    labels[:, 0] = 1
    (tmp_path / "0.jpg").write_bytes(encoded())
    names = [f"{number}.jpg" for number in range(len(labels))]
    source = FileSource(
        tmp_path, names, labels, name="many", label_names=[f"l{i}" for i in range(400)]
    )
    photographs = Photographs(source, Images(size=32))
    order = GlobalOrder(len(source), 4, 0)
    steps = Views(photographs.reader(Crops(0)), photographs.annotations, order)
    sent = pickle.dumps(steps)
    # 2.5 MB of label bits stay at home; 20 bytes a row are names and ids.
    assert len(sent) < 1_200_000
    image, _ = pickle.loads(pickle.dumps(photographs.reader(Crops(0))))(0, 0)
    assert image.shape == (32, 32, 3)


@pytest.mark.parametrize("broken", [b"", b"no image", encoded()[:700]])
def test_what_cannot_be_decoded_is_named_or_replaced(broken: bytes, tmp_path: Path) -> None:
    source = files(tmp_path, [encoded(), broken, encoded(50, 60)])
    strict = Photographs(source, Images(size=32))
    lenient = Photographs(source, Images(size=32, undecodable="skip"))
    for photographs in (strict, lenient):
        # What is scored may not be another image.
        with pytest.raises(DataError, match=r"1.jpg: cannot be decoded .*data pack --unreadable"):
            photographs[1]
    for crop in (Crops(0, 2), None):
        with pytest.raises(DataError, match=r"1.jpg: cannot be decoded.*undecodable to skip"):
            strict.reader(crop)(1, 0)
        image, row = lenient.reader(crop)(1, 0)
        assert row == 2
        np.testing.assert_array_equal(
            image[..., -1, -1, :], lenient.reader(crop)(2, 0)[0][..., -1, -1, :]
        )
    nothing = Photographs(files(tmp_path, [broken] * 2), Images(size=32, undecodable="skip"))
    with pytest.raises(DataError, match=r"^files: no image can be decoded"):
        nothing.reader(Crops(0))(0, 0)


def test_replaced_samples_bring_their_labels_and_are_counted(tmp_path: Path) -> None:
    source = files(tmp_path, [encoded(), b"broken", encoded(50, 60)])
    photographs = Photographs(source, Images(size=16, undecodable="skip"))
    steps = Views(photographs.reader(None), photographs.annotations, GlobalOrder(3, 3, 0))
    batch = steps[0]
    assert sorted(batch["ids"].tolist()) == [10, 12, 12]
    np.testing.assert_array_equal(batch["labels"].argmax(1), batch["ids"] - 10)
    assert steps.replaced == 1
    assert (steps[1], steps.replaced)[1] == 2


def test_values_out_of_range_are_refused() -> None:
    for bad in ({"size": 0}, {"size": 9, "resize": 8}):
        with pytest.raises(ConfigError, match=r"^images: size"):
            Images(**bad)
    for bad in ({"workers": -1}, {"threads": -1}, {"ahead": 0}):
        with pytest.raises(ConfigError, match=r"^loading: "):
            Loading(**bad)


def steps_of(folder: Path, undecodable: Any = "error", count: int = 12) -> Views:
    contents = [encoded(40 + 7 * i, 60, blue=20 * i) for i in range(count)]
    if undecodable == "skip":
        contents[3] = contents[4] = b"broken"
    photographs = Photographs(files(folder, contents), Images(size=24, undecodable=undecodable))
    order = GlobalOrder(count, 5, seed=2)
    return Views(photographs.reader(Crops(seed=7, views=2)), photographs.annotations, order)


@pytest.mark.parametrize("loading", [Loading(1), Loading(2, ahead=3), Loading(4, threads=2)])
def test_batches_do_not_depend_on_workers(loading: Loading, tmp_path: Path) -> None:
    steps = steps_of(tmp_path, "skip")
    iterator = batches(steps, 3, loading)
    found = list(itertools.islice(iterator, 7))
    iterator.close()
    replaced, direct = steps.replaced, steps_of(tmp_path, "skip")
    for offset, batch in enumerate(found):
        expected = direct[3 + offset]
        assert batch.keys() == expected.keys() == {"inputs", "labels", "ids"}
        assert batch["inputs"].shape == (5, 2, 24, 24, 3)
        for name, array in expected.items():
            np.testing.assert_array_equal(batch[name], array)
    assert replaced == direct.replaced > 0


def test_an_error_in_a_worker_is_that_of_the_file(tmp_path: Path) -> None:
    steps = steps_of(tmp_path)
    (tmp_path / "3.jpg").write_bytes(b"broken")
    iterator = batches(steps, 0, Loading(workers=2))
    with pytest.raises(DataError, match=r"3.jpg: cannot be decoded"):
        list(itertools.islice(iterator, 4))


def workers() -> list[int]:
    """The processes that this one has started."""
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def test_a_worker_outlives_a_signal_to_all_and_its_death_is_told(tmp_path: Path) -> None:
    steps = steps_of(tmp_path)
    iterator = batches(steps, 0, Loading(workers=1))
    next(iterator)
    (worker,) = workers()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
    # More than it had read ahead.
    assert len(list(itertools.islice(iterator, 12))) == 12
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match=r"ended with -9; if memory ran out, give fewer"):
        list(itertools.islice(iterator, 12))
    assert not workers()


PROGRAM = """
import sys, time
from tests.data.test_photographs import steps_of
from jaxmlcl.data.pipeline import Loading, batches
from pathlib import Path

if __name__ == "__main__":
    iterator = batches(steps_of(Path(sys.argv[1])), 0, Loading(workers=2))
    next(iterator)
    import multiprocessing
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    (tmp_path / "photographs").mkdir()
    command = [sys.executable, str(program), str(tmp_path / "photographs")]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError("workers are left")


def test_real_photographs() -> None:
    root = os.environ.get("JAXMLCL_DATA")
    folder = Path(root or "") / "images/voc2012_animals/VOC2012/JPEGImages"
    if not root or not folder.is_dir():
        pytest.skip("JAXMLCL_DATA names no folder with images/voc2012_animals")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for path in sorted(folder.glob("*.jpg"))[:8]:
        expected = np.asarray(image.open(path).convert("RGB")).astype(int)
        # Decoders differ by rounding of the inverse transform and of the colours.
        assert abs(decode(path.read_bytes(), str(path)).astype(int) - expected).mean() < 1.0
