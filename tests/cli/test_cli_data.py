"""`jaxmlcl data inspect`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

ROWS = "x,z,sea,sky\n1,0,1,0\n2,0,1,1\n1,0,0,1\n"


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(ROWS)
    (tmp_path / "test.csv").write_text("x,z,sea,sky\n2,0,1,0\n5,1,1,0\n")
    return tmp_path


def test_tables(run: Run, birds: Path) -> None:
    uris = ["train.csv?labels=s*", "test.csv?labels=s*"]
    code, out, err = run("data", "inspect", *uris, "--data.root", birds)
    assert (code, err) == (0, "")
    assert out == (
        "[1] train.csv?labels=s*\n"
        "[2] test.csv?labels=s*\n"
        "\n"
        "     rows  inputs  labels  labels/row  density  label sets  no label  twice\n"
        "[1]     3       2       2        1.33   0.6667           3         0      1\n"
        "[2]     2       2       2        1.00   0.5000           1         0      0\n"
        "\n"
        "label  [1]  share  [2]  share\n"
        "sea      2  0.667    2  1.000\n"
        "sky      2  0.667    0  0.000\n"
        "\n"
        "labels that occur together  rows of [1]  Jaccard\n"
        "sea + sky                             1    0.333\n"
        "\n"
        "problems:\n"
        "  [1]: 1 of 3 rows repeat the inputs of an earlier row, 1 of them with other labels\n"
        "  [1]: 1 of 2 features never change: z\n"
        "  [2]: 1 of 2 labels have no positive: sky\n"
        "  [2]: 1 of 2 labels are positive in every row: sea\n"
        "  [2]: 1 of 2 rows have inputs that occur in [1]\n"
    )


def test_a_uri_that_begins_another_keeps_its_number(run: Run, birds: Path) -> None:
    whole = birds / "train.csv"
    (birds / "train.labels.json").write_text('["sky"]')
    code, out, _ = run("data", "inspect", whole, f"{whole}?part=rest&fraction=0.5", "--labels", "1")
    assert code == 0
    assert "rows have inputs that occur in [1]\n" in out
    assert str(whole) not in out.partition("problems:")[2]


def test_json_and_the_number_of_labels(run: Run, birds: Path) -> None:
    uri = f"{birds}/train.csv?labels=s*"
    code, out, err = run("data", "inspect", uri, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["sources"][0]["source"] == uri
    assert document["labels"][1] == {"label": "sky", "positives": [2]}
    out = run("data", "inspect", uri, "--labels", "1").out
    assert "and 1 less frequent labels: --labels 0 shows all\n" in out
    assert "less frequent" not in run("data", "inspect", uri, "--labels", "0").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "data has two actions, inspect and pack"),
        (("inspct", "a.csv"), "data has two actions, inspect and pack"),
        (("inspect",), "SOURCE"),
        (("inspect", "a.csv?labels=y"), "a.csv: no such file"),
        (("inspect", "digits:test?size=2", "digits:test?size=2"), "is given twice"),
        (("inspect", "digits:test", "--labels", "-1"), "--labels"),
        (("inspect", "digits:test", "--jsn"), "did you mean --json?"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = run("data", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
