"""Data sets in the layout of TensorFlow Datasets: labels once, images when asked for."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmlcl.data import open_source
from jaxmlcl.data.images import EncodedSource, tfds
from jaxmlcl.data.inspect import inspect_sources
from jaxmlcl.data.source import row_origin
from jaxmlcl.errors import DataError

pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")

ROOT = Path(__file__).parent / "tfds"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(uri: str) -> EncodedSource:
    source = open_source(uri, root=ROOT)
    assert isinstance(source, EncodedSource)
    return source


def numbers(source: EncodedSource) -> list[int]:
    """Which pictures they are, by their heights."""
    rows = range(len(source))
    return [Image.open(io.BytesIO(source[row]["inputs"])).height - 8 for row in rows]


OBJECTS = {0: [0, 0, 0], 1: [1, 0, 0], 2: [0, 1, 1], 3: [0, 1, 0], 4: [1, 1, 1]}


def test_objects() -> None:
    source = opened("tfds:five/objects")
    assert source.metadata.label_names == ("cat", "dog", "sky")
    assert source.metadata.name == "five-objects-1.0.0"
    order = numbers(source)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert [source[row]["id"] for row in range(5)] == [100 + number for number in order]
    assert source.labels().tolist() == [OBJECTS[number] for number in order]
    without = opened("tfds:five/objects?crowd=drop")
    expected = {**OBJECTS, 3: [0, 0, 0], 4: [1, 0, 1]}
    assert without.labels().tolist() == [expected[number] for number in order]
    labelled = opened("tfds:five/objects?empty=drop&crowd=drop")
    assert sorted(numbers(labelled)) == [1, 2, 4]
    test = opened("tfds:five/objects/1.0.0?split=test")
    assert sorted(numbers(test)) == [3, 4]
    assert row_origin("tfds:five/objects") != row_origin("tfds:five/objects?split=test")


def test_difficult_labels() -> None:
    source = opened("tfds:five/labels")
    order = numbers(source)
    mask = source.label_mask()
    assert mask is not None
    known = {3: [True, False, True], 4: [True, False, True]}
    assert mask.tolist() == [known.get(number, [True] * 3) for number in order]
    assert source.ids.tolist() == [0, 1, 2, 3, 4]
    expected = {**OBJECTS, 3: [0, 0, 0], 4: [1, 0, 1]}
    assert source.labels().tolist() == [expected[number] for number in order]
    for value, labels in (("positive", OBJECTS), ("negative", expected)):
        found = opened(f"tfds:five/labels?difficult={value}")
        assert found.label_mask() is None
        assert found.labels().tolist() == [labels[number] for number in order]
    certain = opened("tfds:five/labels?labels=labels_no_difficult")
    assert certain.label_mask() is None
    assert certain.labels().tolist() == [expected[number] for number in order]


def test_labels_are_read_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened("tfds:five/labels")
    assert len(list((cache / "jaxmlcl").iterdir())) == 1

    def scanned(*arguments: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(tfds, "_scanned", scanned)
    again = opened("tfds:five/labels")
    assert again.metadata == first.metadata
    np.testing.assert_array_equal(again.labels(), first.labels())
    np.testing.assert_array_equal(again.label_mask(), first.label_mask())
    with pytest.raises(AssertionError, match="read again"):
        opened("tfds:five/objects")
    (remembered,) = (cache / "jaxmlcl").iterdir()
    remembered.write_bytes(remembered.read_bytes()[:100])
    with pytest.raises(AssertionError, match="read again"):
        opened("tfds:five/labels")


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    assert len(opened("tfds:five/labels")) == 5


def test_parts_pickles_and_inspection() -> None:
    source = opened("tfds:five/objects")
    again = pickle.loads(pickle.dumps(source.without_labels()))
    assert again.read(2) == source.read(2)
    part = opened("tfds:five/objects?share=0.6")
    assert len(part) == 3
    assert len(numbers(part)) == 3
    document = inspect_sources([("five", source)], check_images=True)
    assert document["sources"][0]["images"]["undecodable"] == 0


def test_a_prepared_folder_and_the_newest_version(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "five" / "labels" / "1.0.0", tmp_path / "data" / "1.0.0")
    shutil.copytree(ROOT / "five" / "labels" / "1.0.0", tmp_path / "data" / "1.10.0")
    for version in ("1.0.0", "1.10.0"):
        file = tmp_path / "data" / version / "dataset_info.json"
        about = json.loads(file.read_text())
        file.write_text(json.dumps({**about, "version": version}))
    assert opened(f"tfds:{tmp_path}/data").metadata.name == "five-labels-1.10.0"
    assert opened(f"tfds:{tmp_path}/data/1.0.0").metadata.name == "five-labels-1.0.0"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tfds:six", "no prepared data set; tried .*six.*TFDS_DATA_DIR"),
        ("tfds:five/labels?split=dev", "no split 'dev'; there are test, train"),
        ("tfds:five/labels?labels=tags", "no feature 'tags'"),
        ("tfds:five/labels?labels=image", "feature 'image' has no names of classes"),
        ("tfds:five/objects?crowd=some", "crowd='some'; write crowd=keep or crowd=drop"),
        ("tfds:five/objects?crowds=drop", "unknown option 'crowds'"),
    ],
)
def test_what_is_refused(uri: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(uri)


def test_damaged_sets_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "data" / "1.0.0"
    shutil.copytree(ROOT / "five" / "labels" / "1.0.0", place)
    info, file = place / "dataset_info.json", place / "five-train.array_record-00000-of-00001"
    source = opened(f"tfds:{place}")
    content = file.read_bytes()
    file.write_bytes(content[:70_000])
    with pytest.raises(DataError, match=r"record 0: cannot be read as a data set"):
        source.read(0)
    with pytest.raises(DataError, match="cannot be read as a data set of TFDS"):
        opened(f"tfds:{place}")
    file.unlink()
    with pytest.raises(DataError, match=r"five-train.*prepare it again"):
        opened(f"tfds:{place}")
    file.write_bytes(content)
    about = json.loads(info.read_text())
    info.write_text(json.dumps({**about, "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match="stored as tfrecord, which has no random access"):
        opened(f"tfds:{place}")
    info.write_text("{")
    with pytest.raises(DataError, match="cannot be read as a data set of TFDS"):
        opened(f"tfds:{place}")


def test_tensorflow_is_not_needed() -> None:
    program = (
        "import sys\n"
        "from jaxmlcl.data import open_source\n"
        f"print(len(open_source('tfds:five/labels', root={str(ROOT)!r})[1]['inputs']) > 100)\n"
        "print('tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\nFalse\n", done.stderr
