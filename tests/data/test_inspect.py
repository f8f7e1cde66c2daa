"""What a data set is like."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxmlcl.data import ArraySource, open_source
from jaxmlcl.data.inspect import inspect_sources
from jaxmlcl.errors import DataError

NAMES = ["sea", "sky", "sun"]
TRAIN = ArraySource(
    [[0.0, 1.0, 5.0], [1, 2, 5], [-0.0, 1, 5], [0, 1, 5], [3, 3, 5]],
    [[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]],
    name="train",
    label_names=NAMES,
    feature_names=["depth", "height", "width"],
)
TEST = ArraySource(
    np.array([[1, 2, 5], [7, 7, 7], [0, 1, 5], [0, 1, 5]], np.uint8),
    [[0, 0, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0]],
    name="test",
    label_names=NAMES,
)


def test_by_hand() -> None:
    document = json.loads(json.dumps(inspect_sources([("a", TRAIN), ("b", TEST)])))
    train, test = document["sources"]
    assert (train["num_rows"], train["num_labels"], train["input_shape"]) == (5, 3, [3])
    assert (train["cardinality"], train["density"]) == pytest.approx((8 / 5, 8 / 15))
    assert train["labels_per_row"] == {"1": 2, "2": 3}
    assert (train["label_sets"], test["label_sets"]) == (2, 3)
    assert (train["unlabelled_rows"], test["unlabelled_rows"]) == (0, 1)
    assert (train["constant_features"], test["constant_features"]) == (["width"], [])
    # Rows 2 and 3 repeat row 0; -0 is 0; row 3 has other labels.
    assert (train["duplicate_rows"], train["conflicting_rows"]) == (2, 1)
    assert (test["duplicate_rows"], test["conflicting_rows"]) == (1, 0)
    assert train["fingerprint"] == TRAIN.metadata.fingerprint
    assert document["labels"] == [
        {"label": "sea", "positives": [5, 2]},
        {"label": "sky", "positives": [3, 0]},
        {"label": "sun", "positives": [0, 1]},
    ]
    assert document["overlaps"] == [{"source": "b", "occurs_in": "a", "rows": 3, "of": 4}]
    assert document["co_occurrences"] == [{"labels": ["sea", "sky"], "rows": 3, "jaccard": 0.6}]
    assert document["problems"] == [
        "a: 2 of 5 rows repeat the inputs of an earlier row, 1 of them with other labels",
        "a: 1 of 3 features never change: width",
        "a: 1 of 3 labels have no positive: sun",
        "a: 1 of 3 labels are positive in every row: sea",
        "b: 1 of 4 rows repeat the inputs of an earlier row",
        "b: 1 of 4 rows have no label",
        "b: 1 of 3 labels have no positive: sky",
        "b: 1 of 3 labels have positives here but none in a: sun",
        "b: 3 of 4 rows have inputs that occur in a",
    ]


def test_nothing_to_complain_about() -> None:
    source = ArraySource([[0.0], [1.0]], [[1, 0], [0, 1]], name="clean")
    document = inspect_sources([("clean", source)])
    assert document["problems"] == []
    assert document["co_occurrences"] == []


def test_the_strongest_pairs_come_first() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random((300, 8)) < 0.3).astype(np.uint8)
    labels[:, 5] = labels[:, 2]
    source = ArraySource(np.arange(300.0)[:, None], labels, name="pairs")
    pairs = inspect_sources([("pairs", source)], pairs=4)["co_occurrences"]
    assert pairs[0] == {
        "labels": ["label_2", "label_5"],
        "rows": int(labels[:, 2].sum()),
        "jaccard": 1.0,
    }
    for pair in pairs:
        a, b = (labels[:, int(name[-1])].astype(bool) for name in pair["labels"])
        assert pair["rows"] == (a & b).sum()
        assert pair["jaccard"] == pytest.approx((a & b).sum() / (a | b).sum())
    assert len(pairs) == 4
    assert np.diff([pair["jaccard"] for pair in pairs]).max() <= 0


def test_images() -> None:
    source = open_source("digits:train?size=20")
    document = inspect_sources([("digits", source)])
    assert document["sources"][0]["input_shape"] == [48, 48, 1]
    assert document["sources"][0]["constant_features"] == []
    assert sum(label["positives"][0] for label in document["labels"]) == int(
        source.arrays()["labels"].sum()
    )


def test_sources_that_do_not_belong_together_are_refused() -> None:
    other = ArraySource([[1.0]], [[1, 0, 1]], name="other", label_names=NAMES)
    for sources, message in (
        ([], "no source to inspect"),
        ([("a", TRAIN), ("a", TEST)], "a: is given twice"),
        ([("a", TRAIN), ("b", ArraySource([[1.0]], [[1]], name="x"))], "b has other labels than a"),
        ([("a", TRAIN), ("b", other)], r"b has inputs of shape \(1,\), a of \(3,\)"),
    ):
        with pytest.raises(DataError, match=message):
            inspect_sources(sources)


@pytest.mark.parametrize(
    ("name", "rows", "of"), [("scene", 6, 1196), ("enron", 62, 579), ("delicious", 871, 3185)]
)
def test_test_rows_that_occur_in_training(shared_data, name, rows, of) -> None:
    folder = shared_data / "vectors" / name
    parts = [(part, open_source(folder / f"{name}-{part}.arff")) for part in ("train", "test")]
    document = inspect_sources(parts)
    assert document["overlaps"] == [
        {"source": "test", "occurs_in": "train", "rows": rows, "of": of}
    ]
    if name == "delicious":
        assert [label["label"] for label in document["labels"] if label["positives"][1] == 0] == [
            "TAG_addons"
        ]
