"""A run whose validation rows are held out of its training file, from the file to the figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxmlcl import cli
from jaxmlcl.data.source import open_source

CONFIG = """
from jaxmlcl.config import *

experiment = Experiment(
    "birds",
    Data("birds.csv?COLUMNS&part=rest&split_seed=3",
         "birds.csv?COLUMNS&part=held-out&split_seed=3",
         "birds-test.csv?COLUMNS", inputs="standardize"),
    {
        "joint": Stage(
            JointMulSupCon(MulSupCon(MLP((8,)), Projection(4), queue_capacity=32)), epochs(2),
            batch_size=16, augmentation=(ZeroMask(0.2),)),
        "probe": Stage(
            linear_probe(MLP((8,))), steps(12), batch_size=16, starts_from="joint",
            frozen=("^encoder/",), optimizer=Optimizer(learning_rate=0.05),
            validate_every=steps(4), select="loss"),
    },
)
"""
COLUMNS = "labels=wren,robin,heron&id=number"
ROWS = 120


def write_birds(path: Path, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three labels that depend on four features; rows are numbered from 1000 upwards."""
    x = np.random.default_rng(seed).normal(loc=2.0, size=(rows, 4)).round(6)
    y = (x @ np.random.default_rng(9).normal(size=(4, 3)) > 0.5).astype(int)
    lines = ["number,a,b,c,d,wren,robin,heron"]
    lines += [",".join(map(str, (1000 + i, *x[i], *y[i]))) for i in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return x, y


@pytest.mark.slow
def test_training_and_validation_are_parts_of_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXMLCL_DATA", raising=False)
    x, y = write_birds(tmp_path / "birds.csv", ROWS, seed=0)
    write_birds(tmp_path / "birds-test.csv", 50, seed=1)
    (tmp_path / "birds.py").write_text(CONFIG.replace("COLUMNS", COLUMNS))

    parts = {
        part: open_source(f"birds.csv?{COLUMNS}&part={part}&split_seed=3").arrays()  # type: ignore[attr-defined]
        for part in ("rest", "held-out")
    }
    ids = {part: set(arrays["ids"].tolist()) for part, arrays in parts.items()}
    assert ids["rest"].isdisjoint(ids["held-out"])
    assert ids["rest"] | ids["held-out"] == set(range(1000, 1000 + ROWS))
    assert 0.15 * ROWS <= len(ids["held-out"]) <= 0.25 * ROWS
    for arrays in parts.values():
        np.testing.assert_allclose(arrays["inputs"], x[arrays["ids"] - 1000], rtol=1e-6)
        np.testing.assert_array_equal(arrays["labels"], y[arrays["ids"] - 1000])

    assert cli.main(["train", "birds.py"]) == 0
    assert cli.main(["evaluate", "runs/birds"]) == 0

    # Mean and deviation are those of the rest: the held-out rows took no part.
    with np.load("runs/birds/preparation.npz") as prepared:
        rest = x[parts["rest"]["ids"] - 1000]
        np.testing.assert_allclose(prepared["shift"], rest.mean(0), rtol=1e-5)
        np.testing.assert_allclose(prepared["scale"], 1 / rest.std(0), rtol=1e-5)
    lines = [json.loads(line) for line in Path("runs/birds/metrics.jsonl").read_text().splitlines()]
    validated = [(line["stage"], line["step"]) for line in lines if line["kind"] == "validation"]
    assert validated[-3:] == [("probe", 4), ("probe", 8), ("probe", 12)]
    # The joint stage gives scores while it pretrains.
    assert {stage for stage, _ in validated} == {"joint", "probe"}
    terms = [line for line in lines if line["kind"] == "train" and line["stage"] == "joint"][-1]
    assert terms["loss"] == pytest.approx(terms["contrastive_loss"] + terms["classification_loss"])
    # An epoch is one of the rest's rows, not of the file's.
    stages = json.loads(Path("runs/birds/stages.json").read_text())
    assert stages["joint"]["steps"] == round(2 * len(ids["rest"]) / 16)
    found = json.loads(Path("runs/birds/evaluation/test.json").read_text())
    assert found["data"]["num_rows"] == 50
    assert "best_on_val" in found["protocols"]
    assert set(found["stages"]) == {"joint", "probe"}
