"""Rows of a second file behind those of the first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxmlcl.data import open_source
from jaxmlcl.data.source import row_origin
from jaxmlcl.errors import DataError


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    for name, rows in (("a", "1,2,1,0\n3,4,0,1\n"), ("b", "5,6,1,1\n7,8,0,0\n9,1,1,0\n")):
        (tmp_path / f"{name}.csv").write_text("x,y,sea,sky\n" + rows)
    return tmp_path


def test_rows_and_ids_go_on(birds: Path) -> None:
    both = open_source("a.csv?labels=sea,sky&and=b.csv", root=birds)
    first, second = (open_source(f"{name}.csv?labels=sea,sky", root=birds) for name in "ab")
    assert both.metadata.name == "a-and-b"
    arrays = both.arrays()
    for name in ("inputs", "labels"):
        expected = np.concatenate([first.arrays()[name], second.arrays()[name]])
        np.testing.assert_array_equal(arrays[name], expected)
    assert arrays["ids"].tolist() == [0, 1, 2, 3, 4]
    assert both.metadata.label_names == ("sea", "sky")
    assert both.metadata.fingerprint not in (
        first.metadata.fingerprint,
        second.metadata.fingerprint,
    )


def test_parts_are_taken_of_all_rows(birds: Path) -> None:
    uri = "a.csv?labels=sea,sky&and=b.csv&part={}&fraction=0.4"
    ids = [open_source(uri.format(p), root=birds).arrays()["ids"] for p in ("rest", "held-out")]
    assert sorted(np.concatenate(ids).tolist()) == [0, 1, 2, 3, 4]
    assert len(ids[1]) == 2


def test_what_ids_mean_depends_on_both_files(birds: Path) -> None:
    both = row_origin("a.csv?labels=sea&and=b.csv", root=birds)
    assert both == row_origin("a.csv?labels=sky&and=b.csv&part=rest", root=birds)
    assert both != row_origin("a.csv?labels=sea", root=birds)
    assert both != row_origin("a.csv?labels=sea&and=a.csv", root=birds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y,sea,tree\n1,2,0,1\n", "'sky'"),
        ("x,z,sea,sky\n1,2,0,1\n", "has not the features of the first"),
        ("x,sea,sky\n1,0,1\n", "has not the inputs of the shape of the first"),
        ("x,y,sky,sea\n1,2,0,1\n", "has not the labels of the first"),
    ],
)
def test_other_columns_are_refused(birds: Path, text: str, message: str) -> None:
    (birds / "c.csv").write_text(text)
    labels = "sea,sky" if "tree" in text else "s*"
    with pytest.raises(DataError, match=message):
        open_source(f"a.csv?labels={labels}&and=c.csv", root=birds)


def test_files_that_are_not_there_and_schemes(birds: Path) -> None:
    with pytest.raises(DataError, match=r"d\.csv: no such file"):
        open_source("a.csv?labels=sea&and=d.csv", root=birds)
    with pytest.raises(DataError, match="'and' names a second file"):
        open_source("digits:train?size=8&and=b.csv", root=birds)


def test_a_whole_set_of_mulan_from_its_two_files(shared_data: Path) -> None:
    both = open_source("vectors/yeast/yeast-train.arff?and=yeast-test.arff", root=shared_data)
    assert len(both) == 2417
    parts = [
        open_source(
            f"vectors/yeast/yeast-train.arff?and=yeast-test.arff&part={part}&split_seed=3",
            root=shared_data,
        )
        for part in ("train", "validation", "test")
    ]
    sizes = [len(part) for part in parts]
    assert sum(sizes) == 2417
    np.testing.assert_allclose(np.array(sizes) / 2417, [0.8, 0.1, 0.1], atol=0.01)
    ids = np.concatenate([part.arrays()["ids"] for part in parts])
    assert len(set(ids.tolist())) == 2417
    rates = [part.arrays()["labels"].mean(axis=0) for part in parts]
    assert max(np.abs(rate - rates[0]).max() for rate in rates) < 0.03
