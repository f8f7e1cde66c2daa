"""Sources in memory, and opening by URI."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmlcl.data import ArraySource, Source, SourceMetadata, open_source, register_source
from jaxmlcl.data import source as source_module
from jaxmlcl.data.digits import DigitsSource
from jaxmlcl.errors import DataError

INPUTS = np.array([[0.5, 1.0], [2.0, -3.0], [0.0, 4.0]], np.float32)
LABELS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]])


def make(inputs=INPUTS, labels=LABELS, **options) -> ArraySource:
    return ArraySource(inputs, labels, name="tiny", **options)


def test_records_arrays_and_metadata() -> None:
    source = make(label_names=["sea", "sky", "sun"], feature_names=["depth", "height"])
    assert isinstance(source, Source)
    assert len(source) == 3
    record = source[1]
    np.testing.assert_array_equal(record["inputs"], [2.0, -3.0])
    np.testing.assert_array_equal(record["labels"], [0, 0, 0])
    assert record["id"] == 1
    assert source[-1]["id"] == 2
    assert source[np.int64(0)]["id"] == 0
    arrays = source.arrays()
    np.testing.assert_array_equal(arrays["inputs"], INPUTS)
    np.testing.assert_array_equal(arrays["labels"], LABELS)
    np.testing.assert_array_equal(arrays["ids"], [0, 1, 2])
    assert arrays["labels"].dtype == np.uint8
    assert arrays["ids"].dtype == np.int32
    metadata = source.metadata
    assert metadata.label_names == ("sea", "sky", "sun")
    assert (metadata.input_shape, metadata.input_dtype, metadata.kind) == (
        (2,),
        "float32",
        "vector",
    )
    assert (metadata.num_features, metadata.num_labels, metadata.image_size) == (2, 3, None)
    assert source.feature_names == ("depth", "height")


def test_iteration_ends_and_indices_are_checked() -> None:
    source = make()
    assert [record["id"] for record in source] == [0, 1, 2]
    for index in (3, -4):
        with pytest.raises(IndexError, match="3 records"):
            source[index]


def test_images() -> None:
    source = make(np.zeros((3, 4, 5, 1), np.uint8))
    assert source.metadata.kind == "image"
    assert source.metadata.image_size == (4, 5)
    assert source.metadata.num_features is None
    assert source.metadata.input_dtype == "uint8"
    assert source.feature_names is None


def test_the_source_does_not_change_under_its_fingerprint() -> None:
    inputs = INPUTS.copy()
    source = make(inputs)
    inputs[0, 0] = 9.0
    assert source[0]["inputs"][0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        source.arrays()["inputs"][0, 0] = 9.0
    assert inputs.flags.writeable


def test_fingerprint_by_hand() -> None:
    digest = hashlib.sha256()
    for array, kind in ((INPUTS, "<f4"), (LABELS, "|u1")):
        digest.update(json.dumps([kind, list(array.shape)]).encode())
        digest.update(array.astype(kind).tobytes())
    digest.update(json.dumps(["label_0", "label_1", "label_2"]).encode())
    assert make().metadata.fingerprint == digest.hexdigest()


def test_fingerprint_depends_on_content_only() -> None:
    reference = make().metadata.fingerprint
    same = ArraySource(INPUTS[:, ::-1][:, ::-1], LABELS.astype(bool), name="other")
    assert same.metadata.fingerprint == reference
    big_endian = make(INPUTS.astype(">f4"))
    assert big_endian.metadata.fingerprint == reference
    assert big_endian.metadata.input_dtype == "float32"
    changed = INPUTS.copy()
    changed[2, 0] = -0.0
    others = [
        make(changed),
        make(INPUTS.astype(np.float64)),
        make(labels=1 - LABELS),
        make(label_names="abc"),
        make(INPUTS.reshape(3, 2, 1, 1)),
    ]
    assert len({reference, *(other.metadata.fingerprint for other in others)}) == 6


def test_pickle_round_trip() -> None:
    source = make(locate=lambda row: f"line {row}")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.metadata == source.metadata
    np.testing.assert_array_equal(copy[2]["inputs"], source[2]["inputs"])


def with_value(array: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    result = array.astype(np.float64)
    result[row, column] = value
    return result


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (INPUTS[:0], LABELS[:0], "tiny: no rows"),
        (INPUTS[:2], LABELS, "2 rows of inputs but 3 rows of labels"),
        (INPUTS[:, :0], LABELS, r"inputs are empty, their shape is \(3, 0\)"),
        (INPUTS, LABELS[:, :0], "no labels"),
        (INPUTS[0], LABELS, r"inputs have shape \(2,\)"),
        (INPUTS, LABELS[:, 0], r"labels have shape \(3,\)"),
        (INPUTS, LABELS * 2, r"row 0 \(counted from 0\), label 'label_0': 2 is not 0 or 1"),
        (INPUTS, with_value(LABELS, 1, 2, 0.5), "row 1 .*label 'label_2': 0.5 is not 0 or 1"),
        (INPUTS, with_value(LABELS, 2, 1, np.nan), "row 2 .*label 'label_1': nan is not 0 or 1"),
        (INPUTS, with_value(LABELS, 2, 1, -1), "row 2 .*label 'label_1': -1.0 is not 0 or 1"),
        (with_value(INPUTS, 1, 0, np.nan), LABELS, "row 1 .*feature 'feature_0': nan is not a num"),
        (with_value(INPUTS, 2, 1, -np.inf), LABELS, "row 2 .*feature 'feature_1': -inf is outside"),
        (np.full((3, 2, 2, 1), np.nan), LABELS, r"row 0 .*pixel \(0, 0, 0\): nan"),
        ([["a", "b"]] * 3, LABELS, "inputs: type .* where numbers are expected"),
        (INPUTS, [["a"]] * 3, "labels: type .* where numbers are expected"),
        (INPUTS, [[1], [1, 0], [0]], "labels: rows of different lengths"),
        (INPUTS.astype(complex), LABELS, "type complex"),
    ],
)
def test_bad_content_is_refused(inputs, labels, message) -> None:
    with pytest.raises(DataError, match=message):
        make(inputs, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_names": ["a", "b"]}, "2 label names for 3 label columns"),
        ({"label_names": ["a", "b", "a"]}, "label name 'a' occurs more than once"),
        ({"feature_names": ["a"]}, "1 feature names for 2 feature columns"),
        ({"feature_names": ["a", "a"]}, "feature name 'a' occurs more than once"),
    ],
)
def test_bad_names_are_refused(options, message) -> None:
    with pytest.raises(DataError, match=message):
        make(**options)


def test_feature_names_of_images_are_refused() -> None:
    with pytest.raises(DataError, match="not to images"):
        make(np.zeros((3, 2, 2, 1)), feature_names=["a"])


def test_messages_say_where() -> None:
    with pytest.raises(DataError) as error:
        make(
            labels=LABELS * 2,
            label_names=["sea\nshore", "sky", "sun"],
            where="/data/tiny.arff",
            locate=lambda row: f"line {row + 10}",
        )
    assert str(error.value) == "/data/tiny.arff, line 10, label 'sea\\nshore': 2 is not 0 or 1"


# Opening by URI.


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "vectors.txt",
            "unknown kind of source; supported are .arff, .csv, .h5, .*digits:, .*openml:",
        ),
        ("", "unknown kind of source"),
        ("digit:train", r"unknown kind of source \(did you mean 'digits'\?\)"),
        ("digits:training?seeds=1", r"unknown option 'seeds' \(did you mean 'seed'\?\)"),
        ("digits:train?zzz=1", "unknown option 'zzz'; known are size, seed"),
        ("digits:train?seed=1&seed=2", "option 'seed' is given twice"),
        ("digits:train?seed", "option 'seed' has no value"),
        ("digits:train?seed=", "option 'seed' has no value"),
        ("digits:train?size=0", "size='0' must be a whole number from 1"),
        ("digits:train?size=-3", "size='-3' must be"),
        ("digits:train?size=2.5", "size='2.5' must be"),
        ("digits:train?seed=9223372036854775808", "seed='9223372036854775808' must be"),
        ("digits:tset", "unknown split 'tset'; it is train, validation or test"),
        ("digits", "unknown kind of source"),
        ("set.h5?xml=a.xml", "unknown option 'xml'; known are images, part, fraction"),
        ("set.arff?xlm=a.xml", r"unknown option 'xlm' \(did you mean 'xml'\?\)"),
        ("bad\0name.arff", "no such file"),
        ("x" * 5000 + ".arff", "no such file"),
    ],
)
def test_bad_uris_are_refused(uri, message) -> None:
    with pytest.raises(DataError, match=message):
        open_source(uri)


def write_set(folder: Path, value: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.xml").write_text('<labels><label name="y"/></labels>')
    rows = f"@relation t\n@attribute x numeric\n@attribute y {{0,1}}\n@data\n{value},1\n"
    (folder / "tiny.arff").write_text(rows)


def test_relative_paths_are_sought_in_root_then_environment_then_here(
    tmp_path, monkeypatch
) -> None:
    root, named, here = tmp_path / "root", tmp_path / "named", tmp_path / "here"
    here.mkdir()
    root.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("JAXMLCL_DATA", str(named))
    with pytest.raises(DataError) as error:
        open_source("sets/tiny.arff", root=root)
    for place in (root, named, here):
        assert str(place / "sets" / "tiny.arff") in str(error.value)
    assert str(error.value).count("tiny.arff") == 4
    for value, folder in ((1, here), (2, named), (3, root)):
        write_set(folder / "sets", value)
        assert open_source("sets/tiny.arff", root=root)[0]["inputs"][0] == value
    assert open_source(here / "sets" / "tiny.arff", root=root)[0]["inputs"][0] == 1


@pytest.mark.parametrize("uri", ["tiny.arff", "/nowhere/tiny.arff"])
def test_a_root_that_is_no_folder_is_refused(tmp_path, uri: str) -> None:
    for root in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(DataError) as error:
            open_source(uri, root=root)
        assert str(error.value) == f"{root}: data.root is not a folder; name the one with the data"


def test_digits_need_no_root(tmp_path) -> None:
    assert len(open_source("digits:train?size=8", root=tmp_path / "nowhere")) == 8


def test_an_absolute_path_stands_by_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JAXMLCL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"tried /nowhere/tiny\.arff;"):
        open_source("/nowhere/tiny.arff", root=tmp_path)


def test_a_folder_is_refused(tmp_path) -> None:
    (tmp_path / "set.arff").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        open_source(tmp_path / "set.arff")


def test_options_may_be_percent_encoded(tmp_path) -> None:
    write_set(tmp_path, 5)
    (tmp_path / "tiny.xml").rename(tmp_path / "a & b.xml")
    source = open_source(f"{tmp_path}/tiny.arff?xml=a%20%26%20b.xml")
    assert source[0]["inputs"][0] == 5


def test_schemes_and_endings_do_not_depend_on_case(tmp_path) -> None:
    write_set(tmp_path, 5)
    (tmp_path / "tiny.arff").rename(tmp_path / "tiny.ARFF")
    assert len(open_source(tmp_path / "tiny.ARFF")) == 1
    assert isinstance(open_source("Digits:test?size=1"), DigitsSource)


def test_registering(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(source_module, "_ENDINGS", dict(source_module._ENDINGS))
    (tmp_path / "a.rows").write_text("1 2")

    def open_rows(path, options, places):
        row = [float(word) * int(options["times"]) for word in path.read_text().split()]
        return ArraySource([row], [[1]], name=path.stem)

    register_source(".rows", open_rows, ["times"])
    source = open_source("a.rows?times=3", root=tmp_path)
    np.testing.assert_array_equal(source[0]["inputs"], [3.0, 6.0])
    for key in ("rows.", "c", ".a b", ""):
        with pytest.raises(ValueError, match="neither a file ending"):
            register_source(key, open_rows)


def test_ids_are_the_row_numbers_or_those_given() -> None:
    source = make(ids=[7, 2**31 - 1, 0])
    np.testing.assert_array_equal(source.arrays()["ids"], [7, 2**31 - 1, 0])
    assert source.arrays()["ids"].dtype == np.int32
    assert [record["id"] for record in source] == [7, 2**31 - 1, 0]
    assert source.metadata.fingerprint != make().metadata.fingerprint


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], r"ids have type int64 and shape \(2,\); expected 3 whole numbers"),
        ([0.0, 1.0, 2.0], "ids have type float64"),
        ([0, 1, -1], "ids must be from 0 to 2147483647, found -1...1"),
        ([0, 1, 2**31], "ids must be from 0 to 2147483647"),
        ([4, 1, 4], "id 4 occurs more than once"),
        (["a", "b", "c"], "ids: type .* where numbers are expected"),
    ],
)
def test_bad_ids_are_refused(ids, message) -> None:
    with pytest.raises(DataError, match=message):
        make(ids=ids)


def test_options_of_parts_are_reserved() -> None:
    with pytest.raises(ValueError, match="option 'part' belongs to open_source"):
        register_source("birds", make, ["part"])


def test_metadata_is_frozen_and_comparable() -> None:
    first = SourceMetadata("a", ("x",), (2,), "float32", "vector", "f")
    assert first == SourceMetadata("a", ("x",), (2,), "float32", "vector", "f")
    with pytest.raises(AttributeError):
        first.name = "b"


def test_importing_the_room_stays_light() -> None:
    program = (
        "import sys, jaxmlcl.data\n"
        "heavy = {'sklearn', 'h5py', 'arff', 'grain', 'tensorflow_datasets', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
