"""NumPy files: arrays by name, and MPVAE's rows."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.data import open_source
from jaxmlcl.errors import DataError

FEATURES = np.array([[0.5, 1.0], [2.0, -3.0], [0.0, 4.0]])
LABELS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]])


def write(path: Path, **content: Any) -> Path:
    arrays = {"features": FEATURES, "labels": LABELS, **content}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize("inputs", ["features", "inputs", "x"])
@pytest.mark.parametrize("labels", ["labels", "targets", "y"])
def test_npz_opens_under_each_name(tmp_path, inputs, labels) -> None:
    np.savez_compressed(tmp_path / "tiny.npz", **{inputs: FEATURES, labels: LABELS.astype(bool)})
    source = open_source(tmp_path / "tiny.npz")
    np.testing.assert_array_equal(source.arrays()["inputs"], FEATURES.astype(np.float32))
    np.testing.assert_array_equal(source.arrays()["labels"], LABELS)
    assert source.metadata.input_dtype == "float32"
    assert source.metadata.label_names == ("label_0", "label_1", "label_2")


@pytest.mark.parametrize("encode", [np.array, lambda names: np.char.encode(names, "utf-8")])
def test_npz_label_names(tmp_path, encode) -> None:
    path = write(tmp_path / "tiny.npz", label_names=encode(["sea", "sky", "forêt"]))
    assert open_source(path).metadata.label_names == ("sea", "sky", "forêt")


def test_npz_images(tmp_path) -> None:
    images = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    for stored in (images, images.transpose(0, 3, 1, 2)):
        source = open_source(write(tmp_path / "tiny.npz", features=stored))
        np.testing.assert_array_equal(source.arrays()["inputs"], images)
        assert source.metadata.kind == "image"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features": None}, "no array features or inputs or x or representation; the file"),
        ({"labels": None, "z": LABELS}, "no array labels or targets or y; the file holds features"),
        ({"y": LABELS}, "holds both labels and y; keep one of them"),
        ({"features": FEATURES[0]}, r"inputs have shape \(2,\)"),
        ({"labels": LABELS[:2]}, "3 rows of inputs but 2 rows of labels"),
        ({"labels": LABELS * 2}, "label 'label_0': 2 is not 0 or 1"),
        ({"features": FEATURES * np.nan}, "feature 'feature_0': nan is not a number"),
        ({"features": FEATURES * 1e40}, "inf is outside the range of float32"),
        ({"features": FEATURES.astype(str)}, "inputs have type .* expected numbers"),
        ({"features": FEATURES.astype(object)}, "features: Python objects; store numbers"),
        ({"features": np.zeros((3, 4, 4, 3))}, "images have type float64"),
        ({"label_names": np.array(["a", "b"])}, "2 label names for 3 label columns"),
        ({"label_names": np.array(["a", "b", "c"], object)}, "label_names: Python objects"),
        ({"label_names": np.array([1, 2, 3])}, "expected strings"),
    ],
)
def test_bad_npz_is_refused(tmp_path, content, message) -> None:
    path = write(tmp_path / "tiny.npz", **content)
    with pytest.raises(DataError, match=message) as error:
        open_source(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path, content) -> None:
    for name, kind in (("tiny.npz", "npz"), ("tiny.npy?labels=1", "npy")):
        (tmp_path / name.partition("?")[0]).write_bytes(content)
        with pytest.raises(DataError, match=f"cannot be read as {kind}"):
            open_source(f"{tmp_path}/{name}")


def test_a_claim_beyond_memory_is_refused(tmp_path) -> None:
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**10)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(write(tmp_path / "tiny.npz", features=None), "a") as archive:
        archive.writestr("features.npy", header.getvalue() + bytes(80))
    with pytest.raises(DataError, match="features claims 9007199254740992 bytes in a file of"):
        open_source(tmp_path / "tiny.npz")
    (tmp_path / "tiny.npy").write_bytes(header.getvalue() + bytes(80))
    with pytest.raises(DataError, match="cannot be read as npy"):
        open_source(f"{tmp_path / 'tiny.npy'}?labels=1")


# MPVAE: [meta | labels | features], and the numbers of the rows of a split.


@pytest.fixture
def rows(tmp_path) -> Path:
    meta = np.array([[9.0], [8.0], [7.0]])
    np.save(tmp_path / "data.npy", np.hstack([meta, LABELS, FEATURES]))
    np.save(tmp_path / "train_idx.npy", np.array([2, 0]))
    return tmp_path / "data.npy"


def test_meta_columns_come_after_the_features(rows) -> None:
    source = open_source(f"{rows}?labels=3&meta=1")
    np.testing.assert_array_equal(source.arrays()["inputs"], [[0.5, 1, 9], [2, -3, 8], [0, 4, 7]])
    np.testing.assert_array_equal(source.arrays()["labels"], LABELS)
    assert source.feature_names == ("feature_0", "feature_1", "meta_0")


def test_indices_choose_rows_and_are_their_ids(rows) -> None:
    source = open_source(f"{rows}?labels=3&meta=1&indices=train_idx.npy")
    assert source.metadata.name == "data-train_idx"
    np.testing.assert_array_equal(source.arrays()["ids"], [2, 0])
    np.testing.assert_array_equal(source.arrays()["inputs"], [[0, 4, 7], [0.5, 1, 9]])
    np.testing.assert_array_equal(source.arrays()["labels"], LABELS[[2, 0]])


def test_without_meta_columns(rows) -> None:
    np.save(rows, np.hstack([LABELS, FEATURES]))
    np.testing.assert_array_equal(open_source(f"{rows}?labels=3").arrays()["inputs"], FEATURES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "how many columns are labels"),
        ("?labels=0", "labels='0' must be a whole number from 1"),
        ("?labels=5&meta=1", "6 columns; 1 of meta data and 5 labels leave no feature"),
        ("?labels=3", r"row 0 \(counted from 0\), label 'label_0': 9.0 is not 0 or 1"),
        ("?labels=3&meta=1&indices=none.npy", "none.npy: no such file; tried"),
        ("?labels=3&meta=1&indices=bad.npy", r"bad.npy: row 3 is not in .*, which has 3 rows"),
        ("?labels=3&meta=1&indices=real.npy", "real.npy: type float64"),
        ("?labels=3&meta=1&indices=twice.npy", "id 1 occurs more than once"),
        ("?labels=3&meta=1&indices=no.npy", "no rows"),
        ("?labels=3&meta=1&indices=set.npy", "is an archive, one array is expected"),
    ],
)
def test_bad_rows_are_refused(rows, options, message) -> None:
    indices = {"bad": [0, 3], "real": [0.0], "twice": [1, 1], "no": np.array([], int)}
    for name, values in indices.items():
        np.save(rows.parent / f"{name}.npy", values)
    write(rows.parent / "set.npz").rename(rows.parent / "set.npy")
    with pytest.raises(DataError, match=message):
        open_source(f"{rows}{options}")


def test_pickles_are_never_read(tmp_path) -> None:
    np.save(tmp_path / "data.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as npy"):
        open_source(f"{tmp_path / 'data.npy'}?labels=1")
