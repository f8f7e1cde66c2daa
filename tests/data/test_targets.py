"""Targets beside a source: found by id and by name, in three kinds of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from jaxmlcl.data import ArraySource, open_source
from jaxmlcl.data.pipeline import GlobalOrder, Records
from jaxmlcl.data.source import row_origin
from jaxmlcl.data.targets import with_targets
from jaxmlcl.errors import DataError

RNG = np.random.default_rng(4)
NAMES = ["sea", "sky", "sun"]
INPUTS = RNG.normal(size=(8, 2)).astype(np.float32)
LABELS = RNG.integers(0, 2, (8, 3))
IDS = np.arange(8) * 3
DEGREES = RNG.dirichlet(np.ones(3), 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "birds.npz", features=INPUTS, labels=LABELS, label_names=NAMES)
    return tmp_path


def targets_of(uri: str) -> np.ndarray:
    source = open_source(uri)
    assert isinstance(source, ArraySource)
    assert source.metadata.soft_labels
    found = source.arrays()["targets"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(source[3]["targets"], found[3])
    np.testing.assert_array_equal(source[3]["labels"], LABELS[3])
    return found


@pytest.mark.parametrize("kind", ["npz", "mat", "csv"])
def test_rows_by_id_and_columns_by_name(folder: Path, kind: str) -> None:
    order, columns = RNG.permutation(8), [2, 0, 1]
    shuffled, names = DEGREES[order][:, columns], [NAMES[j] for j in columns]
    path = folder / f"enhanced.{kind}"
    if kind == "csv":
        rows = [
            f"{i},note {i},{','.join(map(str, row))}"
            for i, row in zip(order, shuffled.tolist(), strict=True)
        ]
        path.write_text("\n".join([f"id,note,{','.join(names)}", *rows]))
    elif kind == "npz":
        np.savez(path, distributions=shuffled, ids=order, label_names=names)
    else:
        fields = {"labelDistribution": shuffled, "ids": order, "label_names": names}
        savemat(path, fields)
    found = targets_of(f"{folder}/birds.npz?targets=enhanced.{kind}")
    np.testing.assert_array_equal(found, DEGREES.astype(np.float32))


def test_a_file_may_be_its_own(folder: Path) -> None:
    path = folder / "whole.npz"
    np.savez(path, features=INPUTS, labels=LABELS, distributions=DEGREES)
    np.testing.assert_array_equal(
        targets_of(f"{path}?targets=whole.npz"), DEGREES.astype(np.float32)
    )


def test_targets_without_names_or_ids_are_in_order(folder: Path) -> None:
    scaled = DEGREES / DEGREES.max(1, keepdims=True)  # they need not sum to 1
    np.savez(folder / "t.npz", distributions=scaled)
    found = targets_of(f"{folder}/birds.npz?targets=t.npz")
    np.testing.assert_array_equal(found, scaled.astype(np.float32))


def test_parts_masks_and_batches_carry_them(folder: Path) -> None:
    mask = np.ones((8, 3), int)
    mask[2, 1] = 0
    np.savez(folder / "m.npz", features=INPUTS, labels=LABELS, label_mask=mask)
    np.savez(folder / "t.npz", distributions=DEGREES)
    source = open_source(f"{folder}/m.npz?targets=t.npz&part=rest&fraction=.4")
    assert isinstance(source, ArraySource)
    arrays = source.arrays()
    assert 0 < len(source) < 8
    np.testing.assert_array_equal(arrays["targets"], DEGREES.astype(np.float32)[arrays["ids"]])
    assert "label_mask" in arrays
    batch = Records(source, GlobalOrder(len(source), 2, 0))[0]
    assert set(batch) == {"inputs", "labels", "label_mask", "targets", "ids"}
    np.testing.assert_array_equal(batch["targets"], DEGREES.astype(np.float32)[batch["ids"]])


def test_they_count_in_the_fingerprint_but_not_in_what_the_rows_are(folder: Path) -> None:
    np.savez(folder / "a.npz", distributions=DEGREES)
    np.savez(folder / "b.npz", distributions=DEGREES[:, ::-1])
    plain = open_source(folder / "birds.npz").metadata
    first, second = (
        open_source(f"{folder}/birds.npz?targets={name}.npz").metadata for name in "ab"
    )
    assert len({plain.fingerprint, first.fingerprint, second.fingerprint}) == 3
    assert plain.fingerprint_of_rows == first.fingerprint_of_rows == second.fingerprint_of_rows
    assert not plain.soft_labels
    assert row_origin(f"{folder}/birds.npz?targets=a.npz") == row_origin(folder / "birds.npz")


def test_any_source_in_memory_takes_them(folder: Path) -> None:
    np.savez(folder / "t.npz", distributions=np.full((6, 10), 0.1))
    source = open_source("digits:train?size=6&targets=t.npz", root=folder)
    assert source[5]["targets"].shape == (10,)


def npz(path: Path, **fields: Any) -> str:
    np.savez(path, **fields)
    return path.name


def test_refused(folder: Path) -> None:
    file = folder / "t.npz"
    bad = DEGREES.copy()
    bad[4, 1] = 1.5
    (folder / "t.csv").write_text("sea,sky\n1,0\n")
    (folder / "u.csv").write_text("id,sea,sky,sun\n0,1,x,0\n")
    (folder / "v.csv").write_text("id,sea,sky,sun\n.5,1,0,0\n")
    (folder / "t.txt").write_text("1")
    for name, message in (
        (npz(file, distributions=bad), "id 4, label 'sky': the target 1.5 is not in"),
        ("t.csv", "t.csv: no column 'sun', which is a label"),
        ("u.csv", "u.csv, line 2, column 'sky': 'x' is not a number"),
        ("v.csv", "v.csv: ids have type float64"),
        ("t.txt", "t.txt: targets are read from .csv, .npz and .mat"),
        ("none.csv", "none.csv: no such file; tried"),
        ("birds.npz", "one field labelDistribution or distributions; the file holds features, la"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(f"{folder}/birds.npz?targets={name}")
    for fields, message in (
        ({"distributions": DEGREES[:5]}, "5 rows of targets without ids for the 8 rows"),
        ({"distributions": DEGREES[:, :2]}, "2 columns of targets for 3 labels"),
        ({"distributions": DEGREES[0]}, r"targets have shape \(3,\), expected \[n, L\]"),
        ({"distributions": DEGREES, "ids": np.arange(8) + 1}, "no row with id 0, which is one of"),
        ({"distributions": DEGREES, "ids": np.zeros(8, int)}, "id 0 occurs more than once"),
        ({"distributions": DEGREES, "label_names": ["a", "b", "c"]}, "no label 'sea'"),
        ({"distributions": DEGREES, "label_names": ["a"]}, "1 label names for 3 columns"),
        ({"distributions": DEGREES * np.nan}, "the target nan is not in"),
    ):
        npz(file, **fields)
        with pytest.raises(DataError, match=message):
            open_source(f"{folder}/birds.npz?targets=t.npz")
    with pytest.raises(DataError, match="targets belong to sources that fit in memory"):
        with_targets(_Streamed(), file, "stream")  # type: ignore[arg-type]


class _Streamed:
    metadata = None
