"""Files of scores: what is read from them is what was written, or there is no file."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxmlcl.errors import UserError
from jaxmlcl.io import write_atomic, writing
from jaxmlcl.training.tables import by_rank, by_threshold, score_csv, score_file

NAMES = ["plain", "with, comma", 'with "quotes"', "Käuzchen 🦉", "two\nlines", " spaces "]
SCORES = np.random.default_rng(0).random((7, 6)).astype(np.float32)
SCORES[0] = [0, 1, 1e-38, 0.1, 1 / 3, 0.5]
IDS = np.arange(7) + 3


def write(path: Path, ids: np.ndarray = IDS, *, decided: bool = True) -> None:
    decide = by_threshold(np.full(6, 0.5)) if decided else None
    with score_file(path, NAMES, decide) as add:
        for start in range(0, 7, 3):
            add(ids[start : start + 3], SCORES[start : start + 3])


def break_off(path: Path) -> None:
    with score_file(path, NAMES, None) as add:
        add(IDS, SCORES)
        raise ZeroDivisionError


def test_csv_gives_back_names_ids_and_bits(tmp_path: Path) -> None:
    write(tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", *NAMES, *(f"predicted:{name}" for name in NAMES)]
    assert [int(row[0]) for row in rows] == IDS.tolist()
    assert (np.array([row[1:7] for row in rows], np.float32) == SCORES).all()
    assert (np.array([row[7:] for row in rows], int) == (SCORES >= 0.5)).all()
    write(tmp_path / "b.csv", decided=False)
    assert len((tmp_path / "b.csv").read_text().splitlines()[-1].split(",")) == 7


def test_json_lines_give_back_names_ids_and_bits(tmp_path: Path) -> None:
    ids = np.array(["a", 'b"', "ü", "7", "", "é", "x y"])
    write(tmp_path / "a.jsonl", ids)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ids.tolist()
    assert all(list(row["scores"]) == NAMES for row in rows)
    scores = np.array([list(row["scores"].values()) for row in rows], np.float32)
    assert (scores == SCORES).all()
    for row, values in zip(rows, SCORES, strict=True):
        best = sorted(range(6), key=lambda label: -values[label])
        assert row["labels"] == [NAMES[label] for label in best if values[label] >= 0.5]
    assert "Käuzchen 🦉" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    write(tmp_path / "b.jsonl", decided=False)
    assert set(json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])) == {"id", "scores"}


def test_npz_gives_back_names_ids_and_bits(tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["label_names"].tolist() == NAMES
        assert found["ids"].tolist() == IDS.tolist()
        assert found["scores"].dtype == np.float32
        assert (found["scores"] == SCORES).all()
        assert (found["predicted"] == (SCORES >= 0.5)).all()
    write(tmp_path / "b.npz", decided=False)
    assert set(np.load(tmp_path / "b.npz").files) == {"label_names", "ids", "scores"}


@pytest.mark.parametrize(
    ("ids", "kind"),
    [(["3", "4", "10", "0", "-1", "6", "7"], "i"), (["3", "04", "x", "", "é", "1e3", "7"], "U")],
)
def test_ids_that_are_all_numbers_become_numbers(tmp_path: Path, ids: list[str], kind: str) -> None:
    write(tmp_path / "a.npz", np.array(ids))
    found = np.load(tmp_path / "a.npz", allow_pickle=False)["ids"]
    assert found.dtype.kind == kind
    assert [str(identity) for identity in found] == ids


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for ending in ("csv", "jsonl", "npz"):
        write(tmp_path / f"a.{ending}")
        first = (tmp_path / f"a.{ending}").read_bytes()
        write(tmp_path / f"a.{ending}")
        assert (tmp_path / f"a.{ending}").read_bytes() == first


@pytest.mark.parametrize("ending", ["csv", "jsonl", "npz"])
def test_what_is_broken_off_leaves_what_was_there(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write(path)
    before = path.read_bytes()
    for name in (path.name, f"new.{ending}"):
        with pytest.raises(ZeroDivisionError):
            break_off(tmp_path / name)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_an_unknown_form_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"told by its ending: \.csv, \.jsonl, \.npz"):
        write(tmp_path / "a.parquet")
    assert os.listdir(tmp_path) == []


def test_a_score_that_equals_its_threshold_is_predicted() -> None:
    scores = np.array([[0.7, 0.3], [0.3, 0.7]], np.float32)
    assert by_threshold(np.array([0.7, 0.3]))(scores).tolist() == [[1, 1], [0, 1]]


def test_of_equal_scores_the_first_is_ranked_higher() -> None:
    scores = np.array([[0.5, 0.5, 0.5], [0.1, 0.9, 0.2]])
    assert by_rank(1)(scores).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert by_rank(2)(scores).tolist() == [[1, 1, 0], [0, 1, 1]]


def test_csv_goes_to_any_text_file() -> None:
    file = io.StringIO()
    score_csv(file, ["a"], None)(np.array([1]), np.array([[0.25]], np.float32))
    assert file.getvalue() == "id,a\n1,0.25\n"


# ---------------------------------------------------------------------------- files in general


def test_a_refusal_names_the_file_and_not_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".a.json.k3j2"))

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", refuse)
        with pytest.raises(PermissionError) as caught:
            write_atomic(tmp_path / "a.json", "x")
    assert caught.value.filename == str(tmp_path / "a.json")

    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as replaced:
        write_atomic(tmp_path / "folder", "x")
    assert replaced.value.filename == str(tmp_path / "folder")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left") as caught_full:
            write_atomic(tmp_path / "a.json", "x")
    assert caught_full.value.filename == str(tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["folder"]


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, writing(tmp_path / "a"):
        open(tmp_path / "gone")  # noqa: SIM115 - it is not there
    assert caught.value.filename == str(tmp_path / "gone")
    assert os.listdir(tmp_path) == []
