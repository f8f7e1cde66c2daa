"""Holding out rows: labels keep their share, rows keep their ids."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from jaxmlcl.data import ArraySource, open_source, register_source
from jaxmlcl.data import source as source_module
from jaxmlcl.data.stratify import stratified_split, take_part
from jaxmlcl.errors import DataError


def deviation(labels: np.ndarray, rows: np.ndarray, fraction: float) -> np.ndarray:
    """By how much each label's held-out share differs from the fraction."""
    positives = labels.sum(axis=0, dtype=int)
    present = positives > 0
    return np.abs(labels[rows].sum(axis=0)[present] / positives[present] - fraction)


def sparse_labels(n: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    frequency = np.exp(generator.uniform(np.log(1e-4), np.log(0.05), width))
    return (generator.random((n, width), np.float32) < frequency).astype(np.uint8)


def check_split(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Checks what holds for every split; the rows held out."""
    rest, held_out = stratified_split(labels, fraction, seed)
    assert (np.diff(rest) > 0).all()
    assert (np.diff(held_out) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held_out])), range(len(labels)))
    return held_out


def test_single_labels_by_hand() -> None:
    # 10, 20 and 5 positives and 5 rows without: a fifth of each.
    labels = np.repeat(np.eye(4, 3, dtype=np.uint8), [10, 20, 5, 5], axis=0)
    held_out = check_split(labels, 0.2, 0)
    np.testing.assert_array_equal(labels[held_out].sum(axis=0), [2, 4, 1])
    assert len(held_out) == 8


def test_a_label_with_one_positive_stays_in_the_larger_part() -> None:
    labels = np.zeros((50, 2), np.uint8)
    labels[17, 0] = labels[:40, 1] = 1
    for seed in range(5):
        assert 17 not in check_split(labels, 0.2, seed)
        assert 17 in check_split(labels, 0.8, seed)


def test_rows_without_labels_settle_the_number_of_rows() -> None:
    assert len(check_split(np.zeros((100, 3), np.uint8), 0.25, 0)) == 25
    labels = sparse_labels(1000, 10)
    assert (labels.sum(axis=1) == 0).sum() > 500
    assert len(check_split(labels, 0.2, 0)) == 200


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_random_sparse_labels_deviate_much_less_than_with_a_random_split(fraction) -> None:
    labels = sparse_labels(5000, 100)
    # Among fewer, whole numbers are far from any share, in whatever way rows are dealt.
    labels = labels[:, labels.sum(axis=0) >= 20]
    generator = np.random.default_rng(1)
    size = round(fraction * len(labels))
    ours, random = [], []
    for seed in range(5):
        held_out = check_split(labels, fraction, seed)
        assert abs(len(held_out) - size) <= 0.02 * size
        ours.append(deviation(labels, held_out, fraction).mean())
        random.append(deviation(labels, generator.permutation(len(labels))[:size], fraction).mean())
    assert np.mean(ours) < 0.4 * np.mean(random)


@pytest.mark.parametrize(("name", "bound"), [("yeast", 0.02), ("scene", 0.01)])
def test_real_labels(shared_data, name, bound) -> None:
    source = open_source(shared_data / "vectors" / name / f"{name}-train.arff")
    labels = source.arrays()["labels"]
    generator = np.random.default_rng(0)
    size = len(labels) // 5
    ours = [deviation(labels, check_split(labels, 0.2, seed), 0.2) for seed in range(10)]
    random = [deviation(labels, generator.permutation(len(labels))[:size], 0.2) for _ in range(10)]
    assert np.max(ours) < bound
    assert np.mean(ours) < 0.15 * np.mean(random)


def test_depends_on_the_seed_only() -> None:
    labels = sparse_labels(500, 20)
    first = stratified_split(labels, 0.2, 3)[1]
    np.testing.assert_array_equal(first, stratified_split(labels.astype(bool), 0.2, 3)[1])
    assert not np.array_equal(first, stratified_split(labels, 0.2, 4)[1])
    # On any machine and with any version of NumPy.
    known = stratified_split(np.repeat(np.eye(3, dtype=np.uint8), 4, axis=0), 0.25)[1]
    np.testing.assert_array_equal(known, [0, 7, 8])


@pytest.mark.slow
def test_a_large_set() -> None:
    labels = sparse_labels(100_000, 1000)
    held_out = stratified_split(labels, 0.2)[1]
    assert deviation(labels, held_out, 0.2).mean() < 0.01


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        ([0, 1], 0.5, r"labels of shape \(2,\) must be \[n, L\]"),
        ([[0, 2]], 0.5, "with the values 0 and 1"),
        ([[0.5, 1]], 0.5, "with the values 0 and 1"),
        ([[0, 1]], 0.0, "fraction 0.0 must be between"),
        ([[0, 1]], 1, "fraction 1 must be between"),
    ],
)
def test_bad_arguments_are_refused(labels, fraction, message) -> None:
    with pytest.raises(ValueError, match=message):
        stratified_split(labels, fraction)


# Parts by URI.


@pytest.fixture
def birds(tmp_path) -> str:
    labels = sparse_labels(200, 5, seed=2)
    with h5py.File(tmp_path / "birds.h5", "w") as file:
        file["feature"] = np.arange(400.0).reshape(200, 2)
        file["target"] = labels
    return str(tmp_path / "birds.h5")


def test_parts_make_up_the_whole(birds) -> None:
    whole = open_source(birds).arrays()
    parts = [open_source(f"{birds}?part={part}") for part in ("rest", "held-out")]
    assert [len(part) for part in parts] == [160, 40]
    assert [part.metadata.name for part in parts] == ["birds-rest", "birds-held-out"]
    ids = np.concatenate([part.arrays()["ids"] for part in parts])
    np.testing.assert_array_equal(np.sort(ids), np.arange(200))
    for part in parts:
        arrays = part.arrays()
        for name in ("inputs", "labels"):
            np.testing.assert_array_equal(arrays[name], whole[name][arrays["ids"]])
        assert part[3]["id"] == arrays["ids"][3]
    held_out = stratified_split(whole["labels"], 0.2, 0)[1]
    np.testing.assert_array_equal(parts[1].arrays()["ids"], held_out)
    same = open_source(f"{birds}?part=held-out&fraction=.2&split_seed=0")
    assert same.metadata == parts[1].metadata
    prints = [open_source(birds), *parts, open_source(f"{birds}?part=rest&split_seed=1")]
    assert len({source.metadata.fingerprint for source in prints}) == 4


def test_a_share_is_stratified_and_keeps_ids(birds) -> None:
    whole = open_source(f"{birds}?part=rest").arrays()
    share = open_source(f"{birds}?part=rest&share=0.25")
    assert len(share) == 40
    assert share.metadata.name == "birds-rest-0.25"
    ids = share.arrays()["ids"]
    assert set(ids) < set(whole["ids"])
    positives = whole["labels"].sum(0)
    assert np.abs(share.arrays()["labels"].sum(0) - positives / 4).max() <= 1
    np.testing.assert_array_equal(
        share.arrays()["inputs"], whole["inputs"][np.isin(whole["ids"], ids)]
    )
    assert len(open_source(f"{birds}?share=.5&split_seed=1")) == 100


def test_every_kind_has_parts(tmp_path) -> None:
    digits = open_source("digits:train?size=50&part=held-out&fraction=0.3")
    assert 13 <= len(digits) <= 17
    whole = open_source("digits:train?size=50")
    np.testing.assert_array_equal(digits[0]["inputs"], whole[digits[0]["id"]]["inputs"])
    (tmp_path / "t.xml").write_text('<labels><label name="y"/></labels>')
    rows = "".join(f"{i},{i % 2}\n" for i in range(20))
    head = "@relation t\n@attribute x numeric\n@attribute y {0,1}\n@data\n"
    (tmp_path / "t.arff").write_text(head + rows)
    part = open_source("t.arff?xml=t.xml&part=held-out", root=tmp_path)
    assert (len(part), part.feature_names, part.metadata.label_names) == (4, ("x",), ("y",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("part=tests", "part='tests'; write part=rest or part=held-out"),
        ("fraction=0.2", "option 'fraction' without a part"),
        ("share=0.5&fraction=0.2", "option 'fraction' without a part"),
        ("share=1.0", "share='1.0' must be a number between 0 and 1"),
        ("share=0.0001", "share 0.0001 of 200 rows is empty"),
        ("part=rest&fraction=0", "fraction='0' must be a number between 0 and 1"),
        ("part=rest&fraction=1.5", "fraction='1.5' must be"),
        ("part=rest&fraction=0.0", "fraction='0.0' must be"),
        ("part=rest&fraction=nan", "fraction='nan' must be"),
        ("part=rest&split_seed=-1", "split_seed='-1' must be a whole number"),
        ("part=held-out&fraction=0.001", "part 'held-out' of 200 rows is empty"),
        ("prat=rest", r"unknown option 'prat' \(did you mean 'part'\?\)"),
    ],
)
def test_bad_options_are_refused(birds, options, message) -> None:
    with pytest.raises(DataError, match=message) as error:
        open_source(f"{birds}?{options}")
    assert str(error.value).startswith(birds)


def test_a_source_that_is_not_in_memory_has_no_parts(monkeypatch) -> None:
    class Stream:
        metadata = ArraySource([[1]], [[1]], name="stream").metadata

    monkeypatch.setattr(source_module, "_SCHEMES", dict(source_module._SCHEMES))
    register_source("stream", lambda *arguments: Stream())
    with pytest.raises(DataError, match="of sources that fit in memory only"):
        open_source("stream:x?part=rest")


def test_ids_of_a_part_of_a_part_are_those_of_the_file(birds) -> None:
    half = open_source(f"{birds}?part=rest&fraction=0.5")
    quarter = take_part(half, {"part": "held-out", "fraction": "0.5"}, "birds")
    assert set(quarter.arrays()["ids"]) <= set(half.arrays()["ids"])


def test_three_parts_are_disjoint_and_whole() -> None:
    uri = "digits:train?size=400&part={}&fraction=0.15&split_seed=2"
    parts = [open_source(uri.format(part)).arrays() for part in ("train", "validation", "test")]
    ids = np.concatenate([part["ids"] for part in parts])
    assert sorted(ids.tolist()) == list(range(400))
    sizes = [len(part["ids"]) for part in parts]
    np.testing.assert_allclose(sizes, [280, 60, 60], atol=6)
    whole = open_source("digits:train?size=400").arrays()["labels"].mean(axis=0)
    for part in parts:
        np.testing.assert_allclose(part["labels"].mean(axis=0), whole, atol=0.03)
    # Test is what two parts hold out, so it does not move when validation is asked for, too.
    held_out = open_source("digits:train?size=400&part=held-out&fraction=0.15&split_seed=2")
    np.testing.assert_array_equal(held_out.arrays()["ids"], parts[2]["ids"])


def test_three_parts_of_different_sizes() -> None:
    uri = "digits:train?size=400&part={}&fraction=0.1&test_fraction=0.25"
    parts = [open_source(uri.format(part)).arrays() for part in ("train", "validation", "test")]
    ids = np.concatenate([part["ids"] for part in parts])
    assert sorted(ids.tolist()) == list(range(400))
    np.testing.assert_allclose([len(part["ids"]) for part in parts], [260, 40, 100], atol=6)
    # A smaller validation leaves test as it is.
    other = open_source("digits:train?size=400&part=test&fraction=0.05&test_fraction=0.25")
    np.testing.assert_array_equal(other.arrays()["ids"], parts[2]["ids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("part=test&fraction=0.5", r"\(0.5\) and test \(0.5\) leave nothing to train on"),
        ("part=test&fraction=0.4&test_fraction=0.6", r"\(0.4\) and test \(0.6\) leave nothing"),
        ("part=train&test_fraction=0.95", r"\(0.1\) and test \(0.95\) leave nothing"),
        ("part=rest&test_fraction=0.2", "'test_fraction' belongs to three parts"),
        ("test_fraction=0.2", "option 'test_fraction' without a part"),
        ("part=test&test_fraction=2", "test_fraction='2' must be a number between 0 and 1"),
    ],
)
def test_three_parts_leave_rows_to_train_on(options: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(f"digits:train?size=40&{options}")
