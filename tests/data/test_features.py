"""Inputs without labels: found by name or by count, in blocks, and refused in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from jaxmlcl.data import open_source
from jaxmlcl.data.features import Expected, Features, open_features
from jaxmlcl.errors import DataError
from tests.data.test_damaged import DENSE, DENSE_XML, SPARSE, damage

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
NAMED = Expected((3,), feature_names=("a", "b b", "c,d"), label_names=("sea", "sky"))
COUNTED = Expected((3,), feature_names=("feature_0", "feature_1", "feature_2"))
PICTURES = Expected((4, 5, 3), "uint8")


def whole(features: Features, rows: int = 3) -> tuple[np.ndarray, list[object]]:
    """All inputs and ids, read in blocks."""
    parts = list(features.read(rows))
    assert [len(part.inputs) for part in parts[:-1]] == [rows] * (len(parts) - 1)
    assert all(len(part.ids) == len(part.inputs) for part in parts)
    return np.concatenate([part.inputs for part in parts]), [
        identity for part in parts for identity in part.ids.tolist()
    ]


def csv_text(header: str, rows: Callable[[int], str]) -> bytes:
    return "\r\n".join([header, *map(rows, range(len(X)))]).encode("utf-8-sig")


def digits(row: int) -> list[str]:
    return [repr(float(value)) for value in X[row]]


def test_csv_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"

    def row(i: int) -> str:
        a, b, c = digits(i)
        return f"{c},?,{a},id {i},{b},some words"

    path.write_bytes(csv_text('"c,d",sea,a,id,b b,notes', row))
    inputs, ids = whole(open_features(path, NAMED))
    assert inputs.dtype == np.float32
    assert (inputs == X).all()
    assert ids == [f"id {i}" for i in range(7)]
    # The same from standard input, and with ids from another column.
    inputs, ids = whole(open_features("-", NAMED, stdin=io.BytesIO(path.read_bytes())))
    assert (inputs == X).all()
    assert whole(open_features(path, NAMED, id_column="notes"))[1] == ["some words"] * 7


def test_csv_columns_are_taken_by_count_where_no_names_are_known(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_bytes(csv_text("p,q,id,r", lambda i: ",".join([*digits(i)[:2], "x", digits(i)[2]])))
    inputs, ids = whole(open_features(path, COUNTED))
    assert (inputs == X).all()
    assert ids == ["x"] * 7
    labelled = Expected((2,), label_names=("r",))
    assert (whole(open_features(path, labelled))[0] == X[:, :2]).all()


def test_a_column_called_id_may_be_a_feature(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("id,x\n1,2\n")
    inputs, ids = whole(open_features(path, Expected((2,), feature_names=("x", "id"))))
    assert inputs.tolist() == [[2, 1]]
    assert ids == [0]


def test_arrays_are_read_in_blocks(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.astype(np.float64))
    np.savez_compressed(tmp_path / "x.npz", inputs=X, ids=np.arange(7) + 40)
    np.savez(tmp_path / "columns.npz", features=np.asfortranarray(X))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["feature"] = X
    for name, first in (("x.npy", 0), ("x.npz", 40), ("columns.npz", 0), ("x.h5", 0)):
        inputs, ids = whole(open_features(tmp_path / name, NAMED))
        assert (inputs == X).all(), name
        assert ids == list(range(first, first + 7)), name


def test_pictures_may_have_their_channels_first(tmp_path: Path) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (7, 4, 5, 3), np.uint8)
    np.savez(tmp_path / "x.npz", inputs=pictures.transpose(0, 3, 1, 2))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["Image"] = pictures
    for name in ("x.npz", "x.h5"):
        inputs, _ = whole(open_features(tmp_path / name, PICTURES))
        assert inputs.dtype == np.uint8
        assert (inputs == pictures).all()


def test_arff_needs_no_list_of_labels(tmp_path: Path) -> None:
    (tmp_path / "tiny.arff").write_text(DENSE)
    (tmp_path / "tiny.xml").write_text(DENSE_XML)
    source = open_source(tmp_path / "tiny.arff")
    (tmp_path / "tiny.xml").unlink()
    expected = Expected(
        source.metadata.input_shape,
        feature_names=source.feature_names,
        label_names=source.metadata.label_names,
    )
    inputs, ids = whole(open_features(tmp_path / "tiny.arff", expected), rows=2)
    assert (inputs == source.arrays()["inputs"]).all()
    assert ids == [0, 1, 2]
    without = [
        line
        for line in DENSE.splitlines()
        if line.startswith("@") and "sea" not in line and "night" not in line
    ]
    (tmp_path / "new.arff").write_text("\n".join([*without, "1.5,0,red,-2e3"]))
    inputs, _ = whole(open_features(tmp_path / "new.arff", expected))
    assert (inputs == source.arrays()["inputs"][:1]).all()
    # What a row says of labels does not matter.
    (tmp_path / "new.arff").write_text(DENSE.replace("1.5,0,red,1,-2e3,0", "1.5,0,red,?,-2e3,?"))
    inputs, _ = whole(open_features(tmp_path / "new.arff", expected))
    assert (inputs == source.arrays()["inputs"]).all()


def test_a_source_keeps_its_labels_and_ids(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_bytes(csv_text("n,a,b b,c d,sea", lambda i: f"{i + 9},{','.join(digits(i))},1"))
    expected = Expected((3,), feature_names=("c d", "a", "b b"), label_names=("sea",))
    features = open_features(f"{path}?labels=sea&id=n", expected)
    assert features.label_names == ("sea",)
    part = next(features.read(10))
    assert (part.inputs == X[:, [2, 0, 1]]).all()
    assert part.ids.tolist() == list(range(9, 16))
    assert part.labels is not None
    assert part.labels.tolist() == [[1]] * 7


# ------------------------------------------------------------------------------- refusals


def refused(path: Path | str, expected: Expected = NAMED, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        whole(open_features(path, expected, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        ("a,b b\n1,2\n", NAMED, ": 2 features, but the run was trained on 3: no column 'c,d'"),
        (
            "x\n1\n",
            NAMED,
            ": 1 features, but the run was trained on 3: no column 'a', 'b b', 'c,d'",
        ),
        ("a,b b,c-d\n1,2,3\n", NAMED, ": no column 'c,d' (did you mean 'c-d'?), on which the run"),
        ("p,q\n1,2\n", COUNTED, ": 2 features, but the run was trained on 3; give the same colu"),
        ("1,2,3\n4,5,6\n", COUNTED, ": the first line holds numbers; it names the columns"),
        ("p,q,r\n1,2,3\n1,nan,3\n", COUNTED, ", line 3, feature 'feature_1': nan is not a number"),
        ("a,b b,id\n1,2,3\n", NAMED, "no column 'c,d'"),
        ("p,q,r\n1,2,1e60\n", COUNTED, ", line 2, feature 'feature_2': inf is outside the range"),
        ("p,q,r\n1,2,x\n", COUNTED, ", line 2, column 'r': 'x' is not a number"),
        ("p,q,r\n1,,3\n", COUNTED, ", line 2, column 'q': missing value"),
        ("p,q,r\n1,2\n", COUNTED, ", line 2: 2 fields, the header has 3 columns"),
        ("p,q,r\n", COUNTED, ": no rows below the header"),
        ("", COUNTED, ": is empty; the first line names the columns"),
        ("p,q,p\n", COUNTED, ", line 1: column 'p' occurs more than once"),
    ],
)
def test_csv_that_does_not_fit(tmp_path: Path, text: str, expected: Expected, said: str) -> None:
    path = tmp_path / "new.csv"
    path.write_text(text)
    assert said in refused(path, expected)
    with pytest.raises(DataError, match=r"^stdin"):
        whole(open_features("-", expected, stdin=io.BytesIO(text.encode())))


def test_csv_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_bytes(b"p,q,id,r\n1,2,a,3\n1,2,\xe9t\xe9,3\n")
    assert refused(path, COUNTED).endswith("line 3: not UTF-8 text; save the file as UTF-8")
    assert "no column 'nr' (did you mean 'r'?)" in refused(path, COUNTED, id_column="nr")


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", X[:, :2])
    assert "2 features, but the run was trained on 3" in refused(tmp_path / "narrow.npy")
    np.save(tmp_path / "flat.npy", X[0])
    assert "vectors are [n, d]" in refused(tmp_path / "flat.npy")
    np.save(tmp_path / "none.npy", X[:0])
    assert "no rows" in refused(tmp_path / "none.npy")
    np.save(tmp_path / "words.npy", np.array([["a", "b", "c"]]))
    assert "type <U1 where numbers are expected" in refused(tmp_path / "words.npy")
    holes = X.copy()
    holes[5, 1] = np.inf
    np.savez(tmp_path / "holes.npz", x=holes)
    assert "row 5 (counted from 0), feature 'b b': inf" in refused(tmp_path / "holes.npz")
    np.savez(tmp_path / "ids.npz", x=X, ids=[1, 2])
    assert "ids have type int64 and shape (2,); expected 7" in refused(tmp_path / "ids.npz")
    np.savez(tmp_path / "scores.npz", scores=X)
    assert "no array features or inputs or x" in refused(tmp_path / "scores.npz")
    np.savez(tmp_path / "pictures.npz", x=np.zeros((2, 4, 5, 3), np.uint8))
    assert "inputs of shape [4, 5, 3], but the run was trained on [3]" in refused(
        tmp_path / "pictures.npz"
    )
    assert "no such file" in refused("nowhere.npy")
    assert "unknown kind of source" in refused("birds.txt")
    assert "an id column belongs to CSV" in refused(tmp_path / "ids.npz", id_column="a")


def test_damaged_files_open_or_are_refused_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=X, ids=np.arange(7))
    np.save(tmp_path / "a.npy", X)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["feature"] = X
    text = csv_text('a,b b,"c,d",id', lambda i: f"{','.join(digits(i))},{i}")
    (tmp_path / "a.csv").write_bytes(text)
    (tmp_path / "a.arff").write_text(SPARSE)
    lit = Expected((4,), feature_names=("length", "lit", "colour=red", "colour=blue"))
    cases = [(name, NAMED) for name in ("a.npz", "a.npy", "a.h5", "a.csv")]
    for name, expected in [*cases, ("a.arff", lit)]:
        content = (tmp_path / name).read_bytes()
        opened = 0
        for copy in damage(content, 7, flips=150, every=29):
            path = tmp_path / f"damaged-{name}"
            path.write_bytes(copy)
            message = ""
            try:
                inputs, _ = whole(open_features(path, expected))
            except DataError as error:
                message = str(error)
            else:
                opened += 1
                assert inputs.shape[1:] == expected.input_shape
                assert np.isfinite(inputs).all()
            assert "\n" not in message
        assert opened < 150 + len(content) // 29
