"""Unknown labels: every format that can hold them, parts, fingerprints, and what inspect says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jaxmlcl.cli.data import tables
from jaxmlcl.data import ArraySource, open_source
from jaxmlcl.data.inspect import inspect_sources
from jaxmlcl.data.pipeline import GlobalOrder, Records
from jaxmlcl.data.source import row_origin
from jaxmlcl.errors import DataError

FEATURES = np.float32([[0.5], [1.5], [2.5], [3.5]])
LABELS = np.uint8([[1, 0], [0, 1], [1, 1], [0, 0]])
KNOWN = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], bool)
EXPECTED = LABELS * KNOWN
XML = '<labels><label name="sea"/><label name="sky"/></labels>'
ARFF = "@relation x\n@attribute a numeric\n@attribute sea {0,1}\n@attribute sky {0,1}\n@data\n"


def write(folder: Path, kind: str) -> str:
    """The rows above in a file of each kind, as a URI."""
    path = folder / f"tiny.{kind}"
    if kind == "csv":
        path.write_text("a,sea,sky\n0.5,1,\n1.5,0,1\n2.5, NA ,1\n3.5,?,nan\n")
        return f"{path}?labels=s*&unknown=mask"
    if kind == "arff":
        (folder / "tiny.xml").write_text(XML)
        path.write_text(ARFF + "0.5,1,?\n1.5,0,1\n2.5,?,1\n3.5,?,?\n")
        return f"{path}?unknown=mask"
    if kind == "npz":
        # What stands in unknown cells does not matter.
        labels = np.where(KNOWN, LABELS, 7)
        np.savez(path, x=FEATURES, y=labels, label_mask=KNOWN, label_names=["sea", "sky"])
    elif kind == "npy":
        np.save(path, np.hstack([np.where(KNOWN, LABELS, np.nan), FEATURES]))
        return f"{path}?labels=2&unknown=mask"
    else:
        with h5py.File(path, "w") as file:
            file["feature"], file["target"] = FEATURES, np.where(KNOWN, LABELS, np.nan)
            file["label_mask"] = KNOWN.astype(np.uint8)
            file["label_names"] = np.char.encode(["sea", "sky"], "utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "arff", "npz", "npy", "h5"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    source = open_source(write(tmp_path, kind))
    assert source.metadata.unknown_labels
    arrays = source.arrays()
    np.testing.assert_array_equal(arrays["inputs"], FEATURES)
    np.testing.assert_array_equal(arrays["labels"], EXPECTED)
    np.testing.assert_array_equal(arrays["label_mask"], KNOWN)
    assert (arrays["labels"].dtype, arrays["label_mask"].dtype) == (np.uint8, np.bool_)
    np.testing.assert_array_equal(source[2]["label_mask"], [False, True])
    assert not arrays["label_mask"].flags.writeable


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("csv", "line 2, column 'sky': missing value; .* '.unknown=mask' if it is a label"),
        ("arff", "line 6, attribute 'sky': missing value; .* '.unknown=mask' if it is a label"),
        ("npy", r"row 0 \(counted from 0\), label 'label_1': nan is not 0 or 1"),
    ],
)
def test_without_the_option_they_are_refused(tmp_path: Path, kind: str, said: str) -> None:
    uri = write(tmp_path, kind).replace("&unknown=mask", "").replace("?unknown=mask", "")
    with pytest.raises(DataError, match=said):
        open_source(uri)
    with pytest.raises(DataError, match="option unknown='zero'; write unknown=mask"):
        open_source(f"{uri}{'&' if '?' in uri else '?'}unknown=zero")


def test_missing_features_and_unknown_labels_are_two_things(tmp_path: Path) -> None:
    path = tmp_path / "both.csv"
    path.write_text("a,sea\n1,1\n,\n4,0\n")
    source = open_source(f"{path}?labels=sea&missing=mean&unknown=mask")
    np.testing.assert_array_equal(source.arrays()["inputs"], [[1], [2.5], [4]])
    np.testing.assert_array_equal(source.arrays()["label_mask"], [[True], [False], [True]])
    for option in ("missing=mean", "unknown=mask"):
        with pytest.raises(DataError, match=r"line 3, column .(a|sea).: missing value"):
            open_source(f"{path}?labels=sea&{option}")


def test_a_mask_without_a_gap_is_none(tmp_path: Path) -> None:
    path = tmp_path / "full.csv"
    path.write_text("a,sea\n1,1\n4,0\n")
    source = open_source(f"{path}?labels=sea&unknown=mask")
    assert source.metadata == open_source(f"{path}?labels=sea").metadata
    assert set(source.arrays()) == {"inputs", "labels", "ids"}
    assert set(source[0]) == {"inputs", "labels", "id"}


def test_the_fingerprint_covers_the_mask() -> None:
    def fingerprint(**more: Any) -> str:
        return ArraySource(FEATURES, EXPECTED, name="x", **more).metadata.fingerprint

    # As before there were masks, so that checkpoints know their data.
    assert fingerprint().startswith("078dd7f5")
    other = KNOWN.copy()
    other[3, 0] = True
    found = [fingerprint(label_mask=mask) for mask in (None, KNOWN, other, np.ones((4, 2)))]
    assert found[0] == found[3]
    assert len(set(found)) == 3
    hidden = ArraySource(FEATURES, np.where(KNOWN, LABELS, 9), name="x", label_mask=KNOWN)
    assert hidden.metadata.fingerprint == found[1]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (KNOWN[:, :1], r"label_mask has shape \(4, 1\), labels have \(4, 2\)"),
        (np.full((4, 2), 2), "label_mask holds 2; it is 1 where the label is known, else 0"),
        (np.zeros((4, 2)), "no label is known in any row"),
        (np.full((4, 2), "yes"), "label_mask: type <U3 where numbers are expected"),
    ],
)
def test_bad_masks_are_refused(mask: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ArraySource(FEATURES, LABELS, name="x", label_mask=mask)


def test_known_labels_are_checked_under_a_mask() -> None:
    with pytest.raises(DataError, match=r"row 1 \(counted from 0\), label 'label_1': 5 is not 0"):
        ArraySource(FEATURES, [[1, 5], [0, 5], [5, 1], [5, 5]], name="x", label_mask=KNOWN)


def test_parts_keep_their_rows_of_the_mask(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    known = generator.random((60, 3)) < 0.7
    labels = (generator.random((60, 3)) < 0.4) * known
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.arange(60.0)[:, None], y=labels, label_mask=known)
    rows = []
    for part in ("rest", "held-out"):
        arrays = open_source(f"{path}?part={part}").arrays()
        np.testing.assert_array_equal(arrays["label_mask"], known[arrays["ids"]])
        np.testing.assert_array_equal(arrays["labels"], labels[arrays["ids"]])
        rows += arrays["ids"].tolist()
    assert sorted(rows) == list(range(60))
    # Unknown is not a positive: the split is that of the same labels without a mask.
    np.savez(tmp_path / "plain.npz", x=np.arange(60.0)[:, None], y=labels)
    plain = open_source(f"{tmp_path / 'plain.npz'}?part=held-out").arrays()
    np.testing.assert_array_equal(plain["ids"], arrays["ids"])


def test_batches_of_records_carry_the_mask() -> None:
    source = ArraySource(FEATURES, LABELS, name="x", label_mask=KNOWN)
    batch = Records(source, GlobalOrder(4, 4, 0))[0]
    np.testing.assert_array_equal(batch["label_mask"], KNOWN[batch["ids"]])
    plain = ArraySource(FEATURES, LABELS, name="x")
    assert set(Records(plain, GlobalOrder(4, 4, 0))[0]) == {"inputs", "labels", "ids"}


def test_hidden_digits() -> None:
    plain = open_source("digits:train?size=300")
    source = open_source("digits:train?size=300&unknown=0.3&unknown_seed=5")
    arrays, all_known = source.arrays(), plain.arrays()
    known = arrays["label_mask"]
    np.testing.assert_array_equal(arrays["inputs"], all_known["inputs"])
    np.testing.assert_array_equal(arrays["labels"], all_known["labels"] * known)
    # 3000 cells: the share of known ones is within three standard deviations.
    assert abs(known.mean() - 0.7) < 3 * np.sqrt(0.21 / 3000)
    record = source[7]
    np.testing.assert_array_equal(record["label_mask"], known[7])
    np.testing.assert_array_equal(record["labels"], arrays["labels"][7])
    more = open_source("digits:train?size=400&unknown=.3&unknown_seed=5").arrays()
    np.testing.assert_array_equal(more["label_mask"][:300], known)
    other = open_source("digits:train?size=300&unknown=0.3")
    assert (other.arrays()["label_mask"] != known).any()
    prints = {s.metadata.fingerprint for s in (plain, source, other)}
    assert len(prints) == 3
    assert plain.metadata.fingerprint.startswith("a7079b6a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("unknown=1", "option unknown='1' must be a number between 0 and 1"),
        ("unknown=x", "option unknown='x' must be a number"),
        ("unknown_seed=3", "option 'unknown_seed' without unknown"),
        ("unknown=.3&unknown_seed=-1", "option unknown_seed='-1' must be a whole number"),
    ],
)
def test_bad_options_of_digits(options: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_source(f"digits:train?{options}")


def test_inspect_counts_unknown_labels() -> None:
    masked = ArraySource(
        [[0.0], [0], [1], [2]],
        [[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]],
        label_mask=[[1, 1, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]],
        name="masked",
        label_names=["sea", "sky", "sun"],
    )
    full = ArraySource(
        [[5.0], [6]], [[1, 0, 1], [0, 1, 1]], name="full", label_names=["sea", "sky", "sun"]
    )
    document = inspect_sources([("a", masked), ("b", full)])
    one, two = document["sources"]
    assert one["unknown_labels"] == 6
    assert "unknown_labels" not in two
    assert (one["cardinality"], one["density"]) == (1.0, 4 / 6)
    assert document["labels"][0] == {"label": "sea", "positives": [3, 1], "unknown": [1, 0]}
    assert document["labels"][2]["unknown"] == [4, 0]
    # Row 1 repeats row 0: they differ in sky, which both know, but not in sea.
    assert (one["duplicate_rows"], one["conflicting_rows"]) == (1, 1)
    assert "a: 1 of 3 labels are positive in every row: sea" in document["problems"]
    assert "a: 1 of 3 labels are known in no row: sun" in document["problems"]
    text = "\n".join(tables(document, 0))
    assert "twice  unknown" in text
    assert [line.split() for line in text.splitlines() if line.startswith("sun")] == [
        ["sun", "0", "-", "4", "2", "1.000", "0"]
    ]
    alone = inspect_sources([("b", full)])
    assert "unknown" not in "\n".join(tables(alone, 0))
    assert set(alone["labels"][0]) == {"label", "positives"}


def test_rows_that_agree_as_far_as_is_known_do_not_conflict() -> None:
    source = ArraySource([[0.0], [0]], [[1, 0], [0, 0]], label_mask=[[1, 1], [0, 1]], name="x")
    assert inspect_sources([("x", source)])["sources"][0]["conflicting_rows"] == 0


def test_what_ids_refer_to(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("n,x,sea\n3,1,1\n4,4,0\n")

    def same(one: str, other: str) -> bool:
        return row_origin(one, root=tmp_path) == row_origin(other, root=tmp_path)

    assert same("a.csv?labels=sea", f"{tmp_path}/a.csv?labels=sea&part=rest&fraction=.5")
    assert same("a.csv?labels=sea", "a.csv?labels=sea&unknown=mask&missing=mean")
    assert not same("a.csv?labels=sea", "b.csv?labels=sea")
    assert not same("a.csv?labels=sea", "a.csv?labels=sea&id=n")
    assert same("digits:train?size=40&unknown=.3", "digits:train?seed=0")
    assert not same("digits:train", "digits:train?seed=1")
    assert not same("digits:train", "digits:test")


def test_a_damaged_mask_in_an_archive_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=FEATURES, y=LABELS, label_mask=np.array([["a", None]], object))
    (tmp_path / "bad.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="label_mask: Python objects"):
        open_source(tmp_path / "bad.npz")
