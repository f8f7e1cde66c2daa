"""Sources of label distributions: MATLAB, NPZ and CSV files, and what is refused."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from jaxmlcl.data import logical_labels, open_distributions, open_source
from jaxmlcl.data.matlab import read_mat
from jaxmlcl.errors import DataError
from tests.data.matlab_files import write_mat73
from tests.data.test_damaged import damage, run_all

RNG = np.random.default_rng(2)
FEATURES = RNG.normal(size=(7, 4))
DEGREES = RNG.dirichlet(np.ones(3), 7)
LABELS = logical_labels(DEGREES, rule="top-k", k=2)
NAMES = ["sea", "sky", "grüne Au"]


def write_mat5(path: Path, fields: dict[str, Any]) -> None:
    cells = {
        name: np.array(value, object) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    savemat(path, cells, do_compression=True)


def write_npz(path: Path, fields: dict[str, Any]) -> None:
    np.savez(path, **fields)


WRITERS: dict[str, tuple[str, Callable[[Path, dict[str, Any]], None]]] = {
    "mat5": (".mat", write_mat5),
    "mat73": (".mat", write_mat73),
    "npz": (".npz", write_npz),
}
Writer = Callable[[dict[str, Any]], Path]


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Writer:
    ending, function = WRITERS[request.param]

    def written(fields: dict[str, Any]) -> Path:
        path = tmp_path / f"birds{ending}"
        function(path, fields)
        return path

    return written


def test_both_are_there(write: Writer) -> None:
    path = write(
        {
            "features": FEATURES,
            "logicalLabel": LABELS,
            "labelDistribution": DEGREES,
            "label_names": NAMES,
        }
    )
    data = open_distributions(path)
    np.testing.assert_array_equal(data.features, FEATURES)
    np.testing.assert_array_equal(data.labels, LABELS)
    np.testing.assert_array_equal(data.distributions, DEGREES)
    assert data.label_names == tuple(NAMES)
    assert (data.name, len(data), data.labels_derived) == ("birds", 7, False)
    assert data.labels.dtype == np.uint8
    assert data.ids.tolist() == list(range(7))


def test_labels_may_be_degrees_or_labels(write: Writer) -> None:
    data = open_distributions(write({"features": FEATURES, "labels": DEGREES}))
    np.testing.assert_array_equal(data.distributions, DEGREES)
    np.testing.assert_array_equal(data.labels, logical_labels(DEGREES))
    assert data.labels_derived
    assert data.label_names == ("label_0", "label_1", "label_2")
    data = open_distributions(write({"features": FEATURES, "labels": LABELS.astype(float)}))
    assert data.distributions is None
    np.testing.assert_array_equal(data.labels, LABELS)
    data = open_distributions(
        write({"features": FEATURES, "labels": DEGREES, "logicalLabel": LABELS == 1})
    )
    np.testing.assert_array_equal(data.labels, LABELS)
    np.testing.assert_array_equal(data.distributions, DEGREES)


def changed(array: np.ndarray, place: tuple[int, int], value: float) -> np.ndarray:
    copy = array.astype(np.float64)
    copy[place] = value
    return copy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": LABELS, "x": FEATURES}, "no field features; the file holds labels, x"),
        ({"features": FEATURES}, "no field labels, logicalLabel or labelDistribution; the file"),
        (
            {"features": FEATURES, "labels": changed(DEGREES, (3, 1), np.nan)},
            "row 3 .*label 'label_1': the degree nan is not a number",
        ),
        (
            {"features": FEATURES, "labels": changed(DEGREES, (3, 1), -0.25)},
            "row 3 .*label 'label_1': the degree -0.25 is negative",
        ),
        (
            {"features": FEATURES, "labels": DEGREES * 1.01},
            r"row 0 .*: the degrees sum to 1.01, not to 1 \(within 0.001\)",
        ),
        (
            {"features": FEATURES, "logicalLabel": changed(LABELS, (2, 2), 0.5)},
            "row 2 .*label 'label_2': 0.5 is not 0 or 1",
        ),
        ({"features": changed(FEATURES, (1, 2), np.inf), "labels": LABELS}, "row 1 .*: inf is"),
        ({"features": FEATURES[:5], "labels": LABELS}, "5 rows of inputs but 7 rows of labels"),
        (
            {"features": FEATURES, "labels": LABELS, "logicalLabel": LABELS},
            "holds both labels and logicalLabel; keep one",
        ),
        (
            {"features": FEATURES, "labels": DEGREES, "labelDistribution": DEGREES},
            "labels are not 0 or 1 throughout, so they and labelDistribution would both",
        ),
        (
            {"features": FEATURES, "distributions": DEGREES, "labelDistribution": DEGREES},
            "holds both labelDistribution and distributions; keep one",
        ),
        (
            {"features": FEATURES, "logicalLabel": LABELS[:, :2], "labelDistribution": DEGREES},
            r"distributions have shape \(7, 3\), labels \(7, 2\)",
        ),
        (
            {"features": FEATURES, "labels": DEGREES, "label_names": NAMES[:2]},
            "2 label names for 3 label columns",
        ),
    ],
)
def test_refused(write: Writer, fields: dict[str, Any], message: str) -> None:
    path = write(fields)
    with pytest.raises(DataError, match=message) as refusal:
        open_distributions(path)
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)


def test_degrees_may_be_rounded(write: Writer) -> None:
    rounded = DEGREES.round(4)
    data = open_distributions(write({"features": FEATURES, "labels": rounded}))
    np.testing.assert_array_equal(data.distributions, rounded)


def test_a_matlab_file_is_a_source_for_any_stage(tmp_path: Path) -> None:
    for number, (_, function) in enumerate(list(WRITERS.values())[:2]):
        path = tmp_path / f"birds{number}.mat"
        fields = {"features": FEATURES, "labels": DEGREES, "label_names": NAMES}
        function(path, fields)
        source = open_source(path.name, root=tmp_path)
        arrays = source.arrays()  # type: ignore[attr-defined]
        assert arrays["inputs"].dtype == np.float32
        np.testing.assert_array_equal(arrays["labels"], logical_labels(DEGREES))
        assert source.metadata.label_names == tuple(NAMES)
        parts = [open_source(f"{path}?part={part}&fraction=.3") for part in ("rest", "held-out")]
        assert len(parts[0]) + len(parts[1]) == 7
    with pytest.raises(DataError, match="unknown option 'labels'"):
        open_source(f"{path}?labels=a")


def test_names_as_rows_of_characters(tmp_path: Path) -> None:
    savemat(
        tmp_path / "a.mat",
        {"features": FEATURES, "labels": LABELS, "label_names": ["a", "bc", "d"]},
    )
    assert open_distributions(tmp_path / "a.mat").label_names == ("a", "bc", "d")
    write_mat73(tmp_path / "b.mat", {"features": FEATURES, "labels": LABELS})
    codes = np.array([[97, 98, 100], [32, 99, 32]], np.uint16)
    with h5py.File(tmp_path / "b.mat", "r+") as file:
        file["label_names"] = codes
        file["label_names"].attrs["MATLAB_class"] = np.bytes_("char")
    assert open_distributions(tmp_path / "b.mat").label_names == ("a", "bc", "d")


def test_fields_of_other_kinds(tmp_path: Path) -> None:
    """Structures, sparse matrices, cells and text in the place of numbers are named."""
    from scipy.sparse import csc_array

    path = tmp_path / "odd.mat"
    for value, kind in (
        ({"a": FEATURES}, "struct"),
        (csc_array(FEATURES), "sparse"),
        (np.array(["a", "b"], object), "cell"),
        ("text", "char"),
        (np.ones((2, 2, 2)), r"shape \(2, 2, 2\)"),
    ):
        savemat(path, {"features": value, "labels": LABELS})
        with pytest.raises(DataError, match=rf"field 'features' .*{kind}"):
            open_distributions(path)
    savemat(path, {"features": FEATURES, "labels": LABELS, "label_names": np.ones(3)})
    with pytest.raises(DataError, match="field 'label_names' is double, expected a cell of str"):
        open_distributions(path)
    for content, kind in (("group", "a structure"), ("text", "object")):
        write_mat73(path, {"labels": LABELS})
        with h5py.File(path, "r+") as file:
            if content == "group":
                file.create_group("features")
            else:
                file["features"] = [["a", "b"]]
        with pytest.raises(DataError, match=f"field 'features' is .*({kind}|cell)"):
            open_distributions(path)


def test_other_fields_are_not_read(tmp_path: Path) -> None:
    """What has nothing to do with the data may be anything, objects of Python included."""
    fields = {"features": FEATURES, "labels": LABELS}
    savemat(tmp_path / "a.mat", {**fields, "notes": {"who": "me", "when": np.array([{}], object)}})
    np.savez(tmp_path / "a.npz", **fields, notes=np.array([{}], object))
    for name in ("a.mat", "a.npz"):
        np.testing.assert_array_equal(open_distributions(tmp_path / name).labels, LABELS)
    np.savez(tmp_path / "b.npz", features=np.array([[{}]], object), labels=LABELS)
    with pytest.raises(DataError, match="Python objects"):
        open_distributions(tmp_path / "b.npz")


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "birds.csv"
    header = "id,x,sea,y,sky"
    path.write_text(f"{header}\n7,1,.25,2,.75\n9,3,1,4,0\n")
    data = open_distributions(f"{path}?id=id", labels="sea,sky")
    np.testing.assert_array_equal(data.distributions, [[0.25, 0.75], [1, 0]])
    np.testing.assert_array_equal(data.labels, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(data.features, [[1, 2], [3, 4]])
    assert (data.label_names, data.feature_names) == (("sea", "sky"), ("x", "y"))
    assert data.ids.tolist() == [7, 9]
    assert open_distributions(f"{path}?labels=s*&id=id").label_names == ("sea", "sky")
    with pytest.raises(DataError, match="label columns are named once"):
        open_distributions(f"{path}?labels=s*", labels="sea")
    path.write_text(f"{header}\n7,1,1,2,1\n9,3,0,4,0\n")
    data = open_distributions("birds.csv?id=id", labels="sea,sky", root=tmp_path)
    assert data.distributions is None
    assert data.labels.tolist() == [[1, 1], [0, 0]]
    for cells, message in (
        ("7,1,.25,2,.25", "line 3: the degrees sum to 0.5"),
        ("7,1,-.5,2,1.5", "line 3, label 'sea': the degree -0.5 is negative"),
        ("7,1,,2,1", "line 3, column 'sea': missing value"),
    ):
        path.write_text(f"{header}\n5,1,.5,2,.5\n{cells}\n")
        with pytest.raises(DataError, match=message):
            open_distributions(f"{path}?id=id", labels="sea,sky")
    with pytest.raises(DataError, match="no column 'see'"):
        open_distributions(path, labels="see")


def test_other_sources_have_labels(tmp_path: Path) -> None:
    (tmp_path / "tiny.arff").write_text(
        "@relation t\n@attribute x numeric\n@attribute sea {0,1}\n@data\n.5,1\n2,0\n"
    )
    (tmp_path / "tiny.xml").write_text('<labels><label name="sea"/></labels>')
    data = open_distributions("tiny.arff", root=tmp_path)
    assert (data.labels.tolist(), data.distributions) == ([[1], [0]], None)
    assert data.feature_names == ("x",)
    with pytest.raises(DataError, match="takes vectors in memory, this source holds images"):
        open_distributions("digits:test?size=4")
    with pytest.raises(DataError, match="no such file"):
        open_distributions("none.mat", root=tmp_path)
    np.savez(
        tmp_path / "m.npz", features=FEATURES, labels=LABELS, label_mask=LABELS * 0 + [1, 1, 0]
    )
    with pytest.raises(DataError, match="some labels are unknown"):
        open_distributions(f"{tmp_path}/m.npz?part=rest")
    with pytest.raises(DataError, match="some labels are unknown"):
        open_distributions(tmp_path / "m.npz")


@pytest.mark.parametrize("writer", ["mat5", "mat73"])
def test_damaged(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "whole.mat"
    fields = {"features": FEATURES, "labels": DEGREES, "label_names": NAMES}
    if writer == "mat5":
        savemat(path, {**fields, "label_names": np.array(NAMES, object)})
    else:
        write_mat73(path, fields)
    content = path.read_bytes()
    run_all(
        tmp_path / "broken.mat", damage(content, 3, flips=120, every=1 + len(content) // 150), 300
    )


@pytest.mark.parametrize("compressed", [True, False])
def test_matrices_are_those_of_scipy(tmp_path: Path, compressed: bool) -> None:
    fields = {
        "double": FEATURES,
        "small": np.arange(12.0).reshape(3, 4),
        "single": FEATURES.astype(np.float32),
        "bool": LABELS == 1,
        "one": np.array([[7.5]]),
        **{kind: (9 * FEATURES).astype(kind) for kind in ("int8", "uint16", "int32", "uint64")},
    }
    path = tmp_path / "a.mat"
    savemat(path, fields, do_compression=compressed)
    read, held = read_mat(path, fields)
    assert held == sorted(fields)
    for name, expected in loadmat(path, variable_names=list(fields)).items():
        if not name.startswith("__"):
            np.testing.assert_array_equal(read[name], expected, err_msg=name)


def test_files_of_both_byte_orders() -> None:
    """A file of a big-endian machine, put together by hand; its numbers stand in 8 bits."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    matrix = (
        element(6, struct.pack(">II", 6, 0))
        + element(5, struct.pack(">ii", 2, 3))
        + struct.pack(">HH4s", 3, 1, b"abc\0")
        + element(2, bytes([1, 2, 3, 4, 5, 6]))
    )
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">HH", 0x0100, 0x4D49)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.mat"
        path.write_bytes(header + element(14, matrix))
        read, _ = read_mat(path, ["abc"])
        np.testing.assert_array_equal(read["abc"], loadmat(path)["abc"])
    np.testing.assert_array_equal(read["abc"], [[1, 3, 5], [2, 4, 6]])


def test_not_a_matlab_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"features": FEATURES}, format="4")
    for content in (path.read_bytes(), b"", b"text" * 100):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as a MATLAB file.*save it again"):
            open_distributions(path)


def test_published_sets(shared_data: Path) -> None:
    shapes = {"SJAFFE": (213, 243, 6), "Yeast_spo5": (2465, 24, 3), "Movie": (7755, 1869, 5)}
    for name, (rows, width, count) in shapes.items():
        data = open_distributions(f"distributions/{name}.mat", root=shared_data)
        assert data.features.shape == (rows, width)
        assert data.distributions is not None
        assert data.distributions.shape == data.labels.shape == (rows, count)
        assert data.labels_derived
        scipy_s = loadmat(shared_data / "distributions" / f"{name}.mat")
        np.testing.assert_array_equal(data.features, scipy_s["features"])
        np.testing.assert_array_equal(data.distributions, scipy_s["labels"])
    binary = shared_data / "distributions" / "logical_labels" / "SJAFFE_binary.mat"
    both, alone = (
        open_distributions(binary),
        open_distributions("distributions/SJAFFE.mat", root=shared_data),
    )
    assert not both.labels_derived
    np.testing.assert_array_equal(both.labels, alone.labels)
    with pytest.raises(DataError, match="no field features; the file holds logicalLabel"):
        open_distributions("distributions/logical_labels/Movie_binary.mat", root=shared_data)
