"""A run directory such as training and evaluation leave, written from arrays made on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

FINGERPRINT = "3fa94c0d" * 8
METRICS = ("hamming_accuracy", "example_f1", "micro_f1", "macro_f1")


def canvases(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Canvases [count, 48, 48, 1] with one to four digits, and which digits are on them."""
    digits = load_digits()
    images = np.zeros((count, 48, 48, 1), np.uint8)
    labels = np.zeros((count, 10), np.uint8)
    for index in range(count):
        for corner in rng.permutation(4)[: rng.integers(1, 5)]:
            chosen = int(rng.integers(len(digits.images)))
            digit = np.kron(digits.images[chosen] * 15, np.ones((2, 2))).astype(np.uint8)
            top, left = rng.integers(0, 8, 2) + np.array(divmod(corner, 2)) * 24
            images[index, top : top + 16, left : left + 16, 0] = digit
            labels[index, digits.target[chosen]] = 1
    return images, labels


def ratio(numerator: Any, denominator: Any) -> Any:
    """Their quotient, 0 where the denominator is 0."""
    return np.divide(
        numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator > 0
    )


def f1(predicted: np.ndarray, labels: np.ndarray, axis: int | None) -> np.ndarray:
    """2 hits / (predicted + true) over an axis."""
    return ratio(2.0 * (predicted & labels).sum(axis), (predicted.sum(axis) + labels.sum(axis)))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean over the positives of the precision at their rank."""
    ranked = labels[np.argsort(-scores, kind="stable")]
    at = np.flatnonzero(ranked)
    return float(np.mean(np.arange(1, len(at) + 1) / (at + 1))) if len(at) else None


def result(scores: np.ndarray, labels: np.ndarray, names: Sequence[str], stage: str) -> dict:
    """The figures of one scoring stage."""
    truth = labels > 0

    def protocol(threshold: float) -> dict[str, Any]:
        predicted = scores >= threshold
        return {
            "hamming_accuracy": float((predicted == truth).mean()),
            "example_f1": float(f1(predicted, truth, 1).mean()),
            "micro_f1": float(f1(predicted, truth, None)),
            "macro_f1": float(f1(predicted, truth, 0).mean()),
        }

    predicted = scores >= 0.4
    hits = (predicted & truth).sum(0)
    columns = {
        "precision": ratio(hits, predicted.sum(0)),
        "recall": ratio(hits, truth.sum(0)),
        "f1": f1(predicted, truth, 0),
    }

    def row(index: int) -> dict[str, Any]:
        return {
            "label": names[index],
            "positives": int(truth[:, index].sum()),
            "average_precision": average_precision(scores[:, index], truth[:, index]),
            **{name: float(values[index]) for name, values in columns.items()},
            "threshold": 0.4,
        }

    rows = [row(index) for index in range(len(names))]
    precisions = [r["average_precision"] for r in rows if r["average_precision"] is not None]
    best = labels[np.arange(len(scores)), scores.argmax(axis=1)]
    return {
        "threshold_free": {
            "map": float(np.mean(precisions)) if precisions else float("nan"),
            "precision_at_1": float(best.mean()) if len(best) else float("nan"),
        },
        "protocols": {
            "best_on_val": {**protocol(0.4), "thresholds": dict.fromkeys(METRICS, 0.4)},
            "fixed_0.5": protocol(0.5),
            "paper": {**protocol(0.3), "thresholds": dict.fromkeys(METRICS, 0.3)},
        },
        "per_label": rows,
        "run": {
            "stage": stage,
            "step": 900,
            "seed": 7,
            "checkpoint": f"checkpoints/{stage}/000000900",
        },
    }


def write_evaluation(
    workdir: Path,
    stages: dict[str, np.ndarray],
    labels: np.ndarray,
    names: Sequence[str],
) -> None:
    """evaluation/test.json and the predictions of every stage, from its scores [n, L]."""
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    results = {stage: result(scores, labels, names, stage) for stage, scores in stages.items()}
    data = {
        "source": "digits:test?size=400&seed=0",
        "fingerprint": FINGERPRINT,
        "num_rows": len(labels),
        "num_labels": len(names),
        "label_names": list(names),
    }
    content = {"split": "test", "data": data, "stages": results, **list(results.values())[-1]}
    (folder / "test.json").write_text(json.dumps(content))
    for stage, scores in stages.items():
        np.savez(
            folder / f"{stage}-test.npz",
            ids=np.arange(1000, 1000 + len(labels), dtype=np.int32),
            scores=scores.astype(np.float32),
            labels=labels.astype(np.uint8),
            label_names=np.array(names, dtype=np.str_),
        )


def noisy_scores(rng: np.random.Generator, labels: np.ndarray, noise: float) -> np.ndarray:
    """Scores in (0, 1) that follow the labels as far as the noise lets them."""
    logits = 3.0 * labels - 1.8 + noise * rng.normal(size=labels.shape)
    return 1.0 / (1.0 + np.exp(-logits))


def train_records(
    rng: np.random.Generator, stage: str, steps: range, contrastive: bool
) -> Iterator[dict[str, Any]]:
    """What training logs; scoring stages are validated every 150 steps."""
    last = steps[-1]
    for step in steps:
        decay = np.exp(-4 * step / last)
        record = {
            "kind": "train",
            "stage": stage,
            "step": step,
            "epoch": step / 94,
            "loss": float((4.5 if contrastive else 0.2) + 2 * decay + 0.1 * rng.normal()),
            "learning_rate": float(0.05 * (1 + np.cos(np.pi * step / last))),
            "gradient_norm": float(np.exp(-5 * step / last + 0.2 * rng.normal())),
            "parameter_norm": 31.0,
            "update_norm": 0.01,
            "samples_per_second": 612.0,
        }
        if contrastive:
            record["queue_fill"] = min(1.0, step / (0.3 * last))
            record["positives_per_anchor"] = float(record["queue_fill"] * 300 + rng.normal())
            record["valid_anchor_fraction"] = 1.0
        yield record
        if not contrastive and step % 150 == 0:
            yield {
                "kind": "validation",
                "stage": stage,
                "step": step,
                "epoch": step / 94,
                "loss": float(0.25 + 2 * decay),
                "map": float((0.93 if stage == "probe" else 0.88) - 0.4 * decay),
                "micro_f1": float(0.8 - 0.3 * decay),
            }


STAGES = {
    "pretrain": ("mulsupcon", "20 epochs", None, 1880, 41.2),
    "probe": ("linear probe", "10 epochs", "pretrain", 900, 9.6),
    "bce": ("binary cross-entropy", "flops of pretrain + probe", None, 2300, 37.4),
}


def write_run(workdir: Path) -> tuple[np.ndarray, np.ndarray]:
    """A finished run on canvases; returns their images and ids."""
    rng = np.random.default_rng(0)
    workdir.mkdir(parents=True, exist_ok=True)
    experiment = {
        "type": "Experiment",
        "name": "Digits, MulSupCon against BCE",
        "data": {
            "type": "Data",
            "train": "digits:train?size=6000&seed=0",
            "validation": "digits:validation?size=400&seed=0",
            "test": "digits:test?size=400&seed=0",
        },
        "stages": {
            name: {
                "objective": {"type": objective, "temperature": 0.1},
                "duration": duration,
                "starts_from": start,
                "batch_size": 64,
                "optimizer": {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9},
            }
            for name, (objective, duration, start, _, _) in STAGES.items()
        },
        "seed": 7,
    }
    (workdir / "experiment.json").write_text(json.dumps(experiment, indent=1))
    stages = {
        name: {
            "objective": objective,
            "gives_scores": name != "pretrain",
            "steps": steps,
            "select": "map" if start else "last",
            "best_step": 750 if start else None,
            "starts_from": start,
            "epochs": steps * 64 / 6000,
            "batch_size": 64,
            "gflop_per_step": gflop,
            "gflop_total": gflop * steps,
            "parameters": 175_978,
            "bytes": {"parameters": 703_912, "optimizer": 703_912, "queue": 4_300_000},
            "compile_seconds": 7.42,
            "train_seconds": 83.1,
            "machine": {
                "platform": "cpu",
                "device": "cpu",
                "mesh": {"data": 1, "fsdp": 1},
                "cpu_cores": 2,
                "jax": "0.10.2",
            },
        }
        for name, (objective, _, start, steps, gflop) in STAGES.items()
    }
    (workdir / "stages.json").write_text(json.dumps(stages))
    with open(workdir / "metrics.jsonl", "w") as file:
        for name, (_, _, _, steps, _) in STAGES.items():
            every = 2 if name == "pretrain" else 10
            for record in train_records(rng, name, range(every, steps + 1, every), not every - 2):
                file.write(json.dumps(record) + "\n")
    images, labels = canvases(rng, 400)
    scores = {"probe": noisy_scores(rng, labels, 0.9), "bce": noisy_scores(rng, labels, 1.3)}
    write_evaluation(workdir, scores, labels, [str(digit) for digit in range(10)])
    return images, np.arange(1000, 1400)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on small images, to be copied and not to be changed."""
    path = tmp_path_factory.mktemp("report") / "run"
    write_run(path)
    return path


@pytest.fixture
def run_directory(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run on small images."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def scored_run(run_directory: Path) -> Path:
    """A run without its log: the page has no curves, which take most of the time."""
    (run_directory / "metrics.jsonl").unlink()
    return run_directory


@pytest.fixture
def image_samples() -> dict[str, Any]:
    """Images of the evaluated split, as the command line hands them to the report."""
    images, _ = canvases(np.random.default_rng(1), 30)
    return {"inputs": images, "ids": np.arange(1000, 1030)}


@pytest.fixture
def evaluate() -> Callable[..., None]:
    """Writes evaluation/ from scores and labels."""
    return write_evaluation
