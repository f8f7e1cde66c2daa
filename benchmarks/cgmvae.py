"""Speed of C-GMVAE beside the same network in plain PyTorch; part of `benchmarks.vectors`.

The loops are whole: shuffled batches of 128, loss, gradient, Adam, log and checkpoints. Two shapes:
Yeast's with the configuration of Yeast, and delicious's, of 983 labels, with that of delicious.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmlcl.bench import side

BATCH = 128
# What our whole loop must reach, as a multiple of the peer's.
BAR = 2.0
DROPOUT = 0.5


class Shape(NamedTuple):
    """Data of a set's shape, and the width of its configuration."""

    rows: int
    features: int
    labels: int
    cardinality: float
    embedding: int
    cost: int
    """Cost of a step, in steps of Yeast's shape."""


SHAPES = {
    "yeast": Shape(1200, 103, 14, 4.2, 512, 1),
    "delicious": Shape(10_219, 500, 983, 19.0, 2048, 6),
}


def bench_cgmvae(
    repetitions: int, steps: int, cores: int, folder: Path, checks: dict[str, Any]
) -> dict[str, Any]:
    """Interleaved rates of both loops, for both shapes, and whether both compute the same."""
    has_peer = importlib.util.find_spec("torch") is not None
    report: dict[str, Any] = {"bar": BAR}
    print(
        f"\nC-GMVAE, whole loops at batch {BATCH}, bar {BAR:g} times; median (least-most) steps/s"
    )
    for name, shape in SHAPES.items():
        # Speed depends on shapes and on how many labels a row has, not on what they say.
        generator = np.random.default_rng(0)
        inputs = generator.normal(size=(shape.rows, shape.features)).astype(np.float32)
        drawn = generator.random((shape.rows, shape.labels)) < shape.cardinality / shape.labels
        file = folder / f"{name}.npz"
        np.savez(file, features=inputs, labels=drawn.astype(np.uint8))
        settings = (str(file), str(folder), shape.embedding, DROPOUT, BATCH)
        counts = {"jaxmlcl": max(20, steps // shape.cost)}
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(side("benchmarks.cgmvae_jax", "Ours", *settings))
            loops = {"jaxmlcl": ours}
            if has_peer:
                of_peer = ("benchmarks.cgmvae_torch", "Peer", *settings, cores)
                loops["torch"] = stack.enter_context(side(*of_peer))
                counts["torch"] = max(10, counts["jaxmlcl"] // 4)
                checks[f"C-GMVAE, {name}"] = compare(ours, loops["torch"])
                loops["torch"]("loop", 10)
            rates: dict[str, list[float]] = {loop: [] for loop in loops}
            for _ in range(repetitions):
                for loop, where in loops.items():
                    rates[loop].append(counts[loop] / where("loop", counts[loop]))
        for loop, values in rates.items():
            print(f"{name:<12}{loop:<12}{told(values)}")
        report[name] = {"steps_per_second": rates}
        if has_peer:
            ratios = [a / b for a, b in zip(rates["jaxmlcl"], rates["torch"], strict=True)]
            print(f"{name:<12}{'ratio':<12}{told(ratios)}")
            report[name]["times_as_fast"] = ratios
    return report


def told(values: list[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def compare(ours: Callable[..., Any], peer: Callable[..., Any]) -> dict[str, Any]:
    """Whether both sides have the same network and the same loss and gradient of its scores."""
    weights = peer("weights")
    x = np.random.default_rng(1).normal(size=(BATCH, weights["encoder.0.weight"].shape[1]))
    x = x.astype(np.float32)
    found, expected = ours("scores", weights, x), peer("scores", x)
    check = {"scores": float(np.abs(found - expected).max())}
    arrays = example(expected.shape[1])
    (value, *slopes), (peer_value, *peer_slopes) = ours("loss", *arrays), peer("loss", *arrays)
    check["loss"] = abs(value / peer_value - 1.0)
    check["gradient"] = max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(slopes, peer_slopes, strict=True)
    )
    result = {"ok": max(check.values()) < 1e-4, **check}
    print(f"{'ok  ' if result['ok'] else 'FAIL'} {json.dumps(result)}")
    return result


def example(labels: int, latent: int = 64) -> tuple[np.ndarray, ...]:
    """Scores of three branches, points, Gaussians of rows and labels, and the rows' labels."""
    generator = np.random.default_rng(2)
    y = (generator.random((BATCH, labels)) < 0.3).astype(np.float32)
    y[:, 0] = 1.0
    arrays = (
        generator.normal(size=(3, BATCH, labels)),
        generator.normal(size=(BATCH, latent)),
        generator.normal(size=(BATCH, latent)),
        generator.normal(scale=0.3, size=(BATCH, latent)),
        generator.normal(size=(labels, latent)),
        generator.normal(scale=0.3, size=(labels, latent)),
    )
    return (*(array.astype(np.float32) for array in arrays), y)
