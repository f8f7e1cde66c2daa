"""HDF5 files of vectors and images."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jaxmlcl.data import ArraySource, hdf5, open_source
from jaxmlcl.data.images import Crops, EncodedSource, Images, Photographs
from jaxmlcl.data.inspect import inspect_sources
from jaxmlcl.errors import DataError

FEATURES = np.array([[0.5, 1.0], [2.0, -3.0], [0.0, 4.0]])
TARGETS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
NAMES = np.char.encode(["sea", "sky", "forêt"], "utf-8")


def write(path: Path, **content: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in {"feature": FEATURES, "target": TARGETS, **content}.items():
            if value is not None:
                file[name] = value
    return path


@pytest.mark.parametrize("ending", [".h5", ".hdf5"])
@pytest.mark.parametrize("kind", [np.float64, np.int8, bool, np.uint16])
def test_opens(tmp_path, ending, kind) -> None:
    source = open_source(write(tmp_path / f"tiny{ending}", target=TARGETS.astype(kind)))
    arrays = source.arrays()
    np.testing.assert_array_equal(arrays["inputs"], FEATURES.astype(np.float32))
    np.testing.assert_array_equal(arrays["labels"], TARGETS)
    assert arrays["inputs"].dtype == np.float32
    assert source.metadata.name == "tiny"
    assert source.metadata.label_names == ("label_0", "label_1", "label_2")


@pytest.mark.parametrize("place", ["dataset", "target", "file"])
def test_label_names(tmp_path, place) -> None:
    path = write(tmp_path / "tiny.h5", label_names=NAMES if place == "dataset" else None)
    with h5py.File(path, "a") as file:
        if place == "target":
            file["target"].attrs["label_names"] = NAMES
        elif place == "file":
            file.attrs["label_names"] = NAMES
    assert open_source(path).metadata.label_names == ("sea", "sky", "forêt")


def test_values_that_float32_cannot_hold_are_refused(tmp_path) -> None:
    path = write(tmp_path / "tiny.h5", feature=FEATURES * 1e40)
    with pytest.raises(DataError, match=r"row 0 .*feature 'feature_0': inf is outside"):
        open_source(path)


@pytest.mark.parametrize("first", [False, True])
def test_images_that_stay_in_the_file(tmp_path, first, monkeypatch) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 24, 3)).astype(np.uint8)
    stored = images.transpose(0, 3, 1, 2) if first else images
    path = write(tmp_path / "tiny.h5", feature=None, Image=stored, label_names=NAMES)
    assert isinstance(open_source(path), ArraySource)
    source = open_source(f"{path}?images=photographs")
    assert isinstance(source, EncodedSource)
    for row, image in enumerate(images):
        np.testing.assert_array_equal(source[row]["inputs"], image)
        assert source[row]["labels"].tolist() == TARGETS[row].tolist()
    assert source.metadata.label_names == ("sea", "sky", "forêt")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1]["inputs"], images[1])
    part = source.subset(np.array([2]), "part")
    assert part[0]["id"] == 2
    np.testing.assert_array_equal(part[0]["inputs"], images[2])
    assert part.metadata.fingerprint != source.metadata.fingerprint
    # Large ones are photographs by themselves.
    monkeypatch.setattr(hdf5, "_IN_MEMORY", images.nbytes - 1)
    assert isinstance(open_source(path), EncodedSource)
    assert isinstance(open_source(f"{path}?images=memory"), ArraySource)
    for changed in (1, 2):
        others = stored.copy()
        others[changed] = 0
        other = open_source(write(tmp_path / f"{changed}.h5", feature=None, Image=others))
        assert other.metadata.fingerprint != source.metadata.fingerprint


def test_photographs_of_a_file_are_cut_like_others(tmp_path) -> None:
    pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 24, 1)).astype(np.uint8)
    path = write(tmp_path / "tiny.h5", feature=None, Image=images)
    photographs = Photographs(open_source(f"{path}?images=photographs"), Images(size=8, resize=8))
    assert photographs[0]["inputs"].shape == (8, 8, 3)
    view, row = photographs.reader(Crops(seed=0, views=2))(2, 0)
    assert (view.shape, row) == ((2, 8, 8, 3), 2)
    document = inspect_sources(
        [("tiny", open_source(f"{path}?images=photographs"))], check_images=True
    )
    assert document["sources"][0]["images"]["sizes"] == [[24, 20], [24, 20]]


@pytest.mark.parametrize(
    ("content", "option", "message"),
    [
        ({}, "photographs", "option images=photographs, but the file holds feature"),
        ({}, "disk", "option images='disk'; write images=memory or images=photographs"),
        ({"target": TARGETS[:2]}, "photographs", "Image has 3 rows, target has 2"),
        ({"target": TARGETS * 2}, "photographs", "row 0 .*: 2 is not 0 or 1"),
        ({"Image": np.zeros((3, 4, 4, 3))}, "photographs", "expected uint8"),
        ({"Image": np.zeros((3, 4, 4, 2), np.uint8)}, "photographs", "neither axis 1 nor 3"),
    ],
)
def test_photographs_that_cannot_be(tmp_path, content, option, message) -> None:
    images = {} if not content else {"feature": None, "Image": np.zeros((3, 4, 4, 3), np.uint8)}
    path = write(tmp_path / "tiny.h5", **{**images, **content})
    with pytest.raises(DataError, match=message):
        open_source(f"{path}?images={option}")


@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_their_channels_last_or_second(tmp_path, channels) -> None:
    images = np.arange(3 * 4 * 5 * channels, dtype=np.uint8).reshape(3, 4, 5, channels)
    for stored in (images, images.transpose(0, 3, 1, 2)):
        source = open_source(write(tmp_path / "tiny.h5", feature=None, Image=stored))
        np.testing.assert_array_equal(source.arrays()["inputs"], images)
        assert (source.metadata.kind, source.metadata.input_dtype) == ("image", "uint8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Image": np.zeros((3, 4, 4, 3), np.uint8)}, "holds both feature and Image"),
        ({"feature": None, "Image": np.zeros((3, 4, 4, 3))}, "Image: images have type float64"),
        ({"feature": None, "Image": np.zeros((3, 4, 4), np.uint8)}, "'Image' .*four axes"),
        ({"feature": None, "Image": np.zeros((3, 4, 4, 4), np.uint8)}, "neither axis 1 nor 3"),
        ({"feature": None, "Image": np.zeros((2, 4, 4, 3), np.uint8)}, "Image has 2 rows"),
        ({"feature": None}, "no dataset 'feature'; the file holds target"),
        ({"target": None}, "no dataset 'target'; the file holds feature"),
        ({"feature": FEATURES[0]}, r"'feature' has shape \(2,\), expected two axes"),
        ({"feature": 3.0}, r"'feature' has shape \(\), expected two axes"),
        ({"feature": h5py.Empty("f8")}, "'feature' has shape None"),
        ({"target": TARGETS[..., None]}, r"'target' has shape \(3, 3, 1\)"),
        ({"target": TARGETS[:2]}, "feature has 3 rows, target has 2"),
        ({"feature": FEATURES[:0], "target": TARGETS[:0]}, "no rows"),
        ({"target": TARGETS[:, :0]}, "no labels"),
        ({"target": TARGETS * 2}, "label 'label_0': 2 is not 0 or 1"),
        ({"target": FEATURES}, "label 'label_0': 0.5 is not 0 or 1"),
        ({"feature": FEATURES * np.nan}, "feature 'feature_0': nan is not a number"),
        ({"feature": FEATURES.astype("S4")}, "'feature' has type .*expected numbers"),
        ({"feature": FEATURES.astype(str).astype(object)}, "'feature' has type object"),
        ({"feature": FEATURES.astype(complex)}, "'feature' has type complex"),
        ({"label_names": NAMES[:2]}, r"label_names has shape \(2,\) for 3 labels"),
        ({"label_names": NAMES[[0, 0, 1]]}, "label name 'sea' occurs more than once"),
        ({"label_names": ["sea", "sky", "sun"]}, "not strings of fixed length; store numpy"),
        ({"label_names": [1, 2, 3]}, "not strings of fixed length"),
        ({"label_names": np.array([b"\xff", b"b", b"c"])}, "cannot be read as HDF5.*utf-8"),
    ],
)
def test_bad_content_is_refused(tmp_path, content, message) -> None:
    path = write(tmp_path / "tiny.h5", **content)
    with pytest.raises(DataError, match=message) as error:
        open_source(path)
    assert str(error.value).startswith(str(path))


def test_a_group_in_place_of_an_array_is_refused(tmp_path) -> None:
    path = write(tmp_path / "tiny.h5", feature=None)
    with h5py.File(path, "a") as file:
        file.create_group("feature")
    with pytest.raises(DataError, match="'feature' is a group"):
        open_source(path)


def test_a_claim_beyond_memory_is_refused(tmp_path) -> None:
    path = write(tmp_path / "tiny.h5", feature=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("feature", (2**40, 2**10), "f8", chunks=(1, 2**10))
    with pytest.raises(DataError, match="claims 9007199254740992 bytes of data in a file of"):
        open_source(path)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n"])
def test_other_files_are_refused(tmp_path, content) -> None:
    (tmp_path / "tiny.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"tiny\.h5: cannot be read as HDF5"):
        open_source(tmp_path / "tiny.h5")


@pytest.mark.parametrize(("split", "rows"), [("train", 1200), ("val", 300), ("test", 917)])
def test_yeast(shared_data, split, rows) -> None:
    source = open_source(shared_data / "vectors" / "yeast" / f"yeast_official_{split}.hdf5")
    assert len(source) == rows
    assert (source.metadata.num_features, source.metadata.num_labels) == (103, 14)


def test_yeast_holds_the_rows_of_the_arff_file(shared_data) -> None:
    folder = shared_data / "vectors" / "yeast"
    ours = open_source(folder / "yeast-test.arff").arrays()
    theirs = open_source(folder / "yeast_official_test.hdf5").arrays()
    np.testing.assert_array_equal(ours["inputs"], theirs["inputs"])
    # The authors' label columns are in another order.
    columns = [sorted(map(tuple, arrays["labels"].T)) for arrays in (ours, theirs)]
    assert columns[0] == columns[1]
