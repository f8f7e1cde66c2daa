"""`jaxmlcl labels`: inner products of label embeddings, as a table and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CONFIG = """
from jaxmlcl.config import *

network = CGMVAE(MLP((8,)), embedding=6, latent=3, label_hidden=(5,), decoder_hidden=(7,))
experiment = Experiment(
    "small",
    Data("rows.csv?labels=is_*"),
    {
        "train": Stage(network, steps(3), batch_size=8),
        "bce": Stage(Classification(encoder=MLP((8,))), steps(1), batch_size=8),
    },
)
"""


@pytest.fixture
def workdir(run: Callable[..., Any], tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    names = ["x", "y", "is_left", "is_right", "is_up, down", "is_none"]
    rows = [
        [*generator.normal(size=2).round(3), *(generator.random(4) < 0.5).astype(int)]
        for _ in range(24)
    ]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    (tmp_path / "small.py").write_text(CONFIG)
    folder = tmp_path / "run"
    result = run("train", tmp_path / "small.py", "--workdir", folder, "--data.root", tmp_path)
    assert result.code == 0, result.err
    return folder


def test_table_and_picture(run: Callable[..., Any], workdir: Path, tmp_path: Path) -> None:
    result = run("labels", workdir, "--stage", "train", "-o", tmp_path / "labels.csv")
    assert result.code == 0, result.err
    assert result.out == f"written: {tmp_path / 'labels.csv'}\n"
    with open(tmp_path / "labels.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert sorted(head[1:]) == ["is_left", "is_none", "is_right", "is_up, down"]
    assert [row[0] for row in rows] == head[1:]
    table = np.array([row[1:] for row in rows], float)
    np.testing.assert_array_equal(table, table.T)
    assert (np.linalg.eigvalsh(table) > -1e-6).all()

    options = ("--stage", "train", "--order", "data", "--cosine")
    assert run("labels", workdir, *options, "-o", tmp_path / "data.csv").code == 0
    with open(tmp_path / "data.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["label", "is_left", "is_right", "is_up, down", "is_none"]
    cosines = np.array([row[1:] for row in rows], float)
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-8)
    assert np.abs(cosines).max() <= 1 + 1e-8

    assert run("labels", workdir, "--stage", "train", "-o", tmp_path / "labels.png").code == 0
    assert (tmp_path / "labels.png").read_bytes()[:4] == b"\x89PNG"

    result = run("labels", workdir, "--stage", "bce", "-o", tmp_path / "no.csv")
    assert result.code == 2
    assert "bce: bce has no embeddings of labels; C-GMVAE has" in result.err
    assert not (tmp_path / "no.csv").exists()
    result = run("labels", workdir, "-o", tmp_path / "labels.pdf")
    assert result.code == 2
    assert ".csv" in result.err
    assert ".png" in result.err
