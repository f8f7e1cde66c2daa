"""CSV tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxmlcl.data import open_source
from jaxmlcl.errors import DataError

TEXT = 'number,depth,"is sea",width,"is, sky"\n7,0.5,1,1e1,0\n9,-2,1,20,1\n'


def write(folder: Path, text: str = TEXT, name: str = "tiny-train.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def refusal(path: Path, options: str) -> str:
    with pytest.raises(DataError) as error:
        open_source(f"{path}{options}")
    return str(error.value).replace(f"{path.parent}/", "")


def test_labels_by_prefix_and_the_id(tmp_path) -> None:
    source = open_source(f"{write(tmp_path)}?labels=is*&id=number")
    arrays = source.arrays()
    np.testing.assert_array_equal(arrays["inputs"], np.float32([[0.5, 10], [-2, 20]]))
    np.testing.assert_array_equal(arrays["labels"], [[1, 0], [1, 1]])
    np.testing.assert_array_equal(arrays["ids"], [7, 9])
    assert source.metadata.label_names == ("is sea", "is, sky")
    assert source.feature_names == ("depth", "width")
    assert source.metadata.input_dtype == "float32"


def test_labels_by_name_in_the_order_of_the_columns(tmp_path) -> None:
    path = write(tmp_path, "sky,depth,sea\r\n1,0.5,0\r\n\r\n0,2,1\r\n")
    source = open_source(f"{path}?labels=sea,sky")
    assert source.metadata.label_names == ("sky", "sea")
    np.testing.assert_array_equal(source.arrays()["labels"], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(source.arrays()["ids"], [0, 1])


def test_labels_listed_beside_the_file(tmp_path) -> None:
    path = write(tmp_path)
    assert "which columns are labels? no file *.labels.json beside it" in refusal(path, "")
    (tmp_path / "tiny.labels.json").write_text(json.dumps(["is, sky"]))
    (tmp_path / "other.labels.json").write_text(json.dumps(["depth"]))
    assert open_source(path).metadata.label_names == ("is, sky",)
    assert open_source(path).feature_names == ("number", "depth", "is sea", "width")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "tiny.labels.json: not JSON"),
        ("{}", "tiny.labels.json: expected a list of column names"),
        ("[]", "tiny.labels.json: expected a list of column names"),
        ("[1]", "tiny.labels.json: expected a list of column names"),
        ('["sea"]', "tiny.labels.json: 'sea' is not a column of tiny-train.csv"),
    ],
)
def test_bad_lists_are_refused(tmp_path, content, message) -> None:
    path = write(tmp_path)
    (tmp_path / "tiny.labels.json").write_text(content)
    assert refusal(path, "").startswith(message)


def test_missing_features_become_the_mean(tmp_path) -> None:
    path = write(tmp_path, "x,y\n1,0\n,1\n4, 1\n")
    source = open_source(f"{path}?labels=y&missing=mean")
    np.testing.assert_array_equal(source.arrays()["inputs"], [[1], [2.5], [4]])
    message = "tiny-train.csv, line 3, column 'x': missing value"
    assert refusal(path, "?labels=y").startswith(message)
    path = write(tmp_path, "x,y\n1,0\n1,\n")
    message = "tiny-train.csv, line 3, column 'y': missing value"
    assert refusal(path, "?labels=y&missing=mean").startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tiny-train.csv: is empty"),
        ("x,y\n", "tiny-train.csv: no rows below the header"),
        ("x,y,x\n1,1,1\n", "tiny-train.csv, line 1: column 'x' occurs more than once"),
        ("x,y,\n1,1,1\n", "tiny-train.csv, line 1: column 3 has no name"),
        ("x,y\n1,1\n2\n", "tiny-train.csv, line 3: 1 fields, the header has 2 columns"),
        ("x,y\n1,1\nred,1\n", "tiny-train.csv, line 3, column 'x': 'red' is not a number"),
        ("x,y\n1,2\n", "tiny-train.csv, line 2, label 'y': 2.0 is not 0 or 1"),
        ("x,y\n1,1\n\nnan,1\n", "tiny-train.csv, line 4, feature 'x': nan is not a number"),
        ("x,y\n1e39,1\n", "tiny-train.csv, line 2, feature 'x': inf is outside the range"),
        ('x,y\n"1,1\n', "tiny-train.csv, line 3: not CSV"),
        ("x,z\n1,1\n", "tiny-train.csv: no column 'y'"),
        ("y\n1\n", "tiny-train.csv: every column is a label or the id"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message) -> None:
    assert refusal(write(tmp_path, text), "?labels=y").startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?labels=is see", "no column 'is see' (did you mean 'is sea'?)"),
        ("?labels=was*", "no column 'was*'"),
        ("?labels=is*&id=is sea", "option id='is sea' must be one column, no label"),
        ("?labels=is*&id=nummer", "no column 'nummer' (did you mean 'number'?)"),
        ("?labels=is*&id=depth", "line 2, column 'depth': 0.5 is not an id"),
        ("?labels=is*&missing=0", "option missing='0'; write missing=mean"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message) -> None:
    assert message in refusal(write(tmp_path), options)


def test_the_same_id_twice_is_refused(tmp_path) -> None:
    path = write(tmp_path, "i,x,y\n3,1,1\n3,2,0\n")
    assert "id 3 occurs more than once" in refusal(path, "?labels=y&id=i")
