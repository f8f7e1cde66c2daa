"""Speed of average precision beside scikit-learn and torchmetrics; part of `benchmarks.vectors`."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from benchmarks.clock import now
from jaxmlcl.evaluation import average_precision

# What ours must stay within, on two cores.
BAR_SECONDS = 1.0


def bench_measures(repetitions: int, checks: dict[str, Any]) -> dict[str, Any]:
    """Average precision of (80 000 x 365) scores with ties: ours, scikit-learn's, torchmetrics'."""
    generator = np.random.default_rng(0)
    frequencies = np.geomspace(0.001, 0.2, 365)
    labels = (generator.random((80_000, 365)) < frequencies).astype(np.uint8)
    scores = 1.0 / (1.0 + np.exp(-generator.normal(size=labels.shape) - labels))
    scores = np.round(scores, 4).astype(np.float32)
    calls: dict[str, Callable[[], np.ndarray]] = {
        "jaxmlcl": lambda: average_precision(scores, labels),
        "scikit-learn": lambda: sklearn_precision(scores, labels),
    }
    if importlib.util.find_spec("torchmetrics") is not None:
        calls["torchmetrics"] = torchmetrics_precision(scores, labels)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    found: dict[str, np.ndarray] = {}
    for _ in range(repetitions):
        for name, call in calls.items():
            started = now()
            found[name] = call()
            seconds[name].append(now() - started)
    print(f"\nmAP of (80 000 x 365) scores with ties, bar {BAR_SECONDS} s; median (least-most)")
    for name, values in seconds.items():
        off = float(np.abs(found[name] - found["jaxmlcl"]).max())
        print(
            f"{name:<14}{statistics.median(values):>6.2f} ({min(values):.2f}-{max(values):.2f})"
            f"   largest difference from ours {off:.1e}"
        )
        # torchmetrics adds up in float32.
        bound = 1e-4 if name == "torchmetrics" else 1e-12
        checks[f"average precision, {name}"] = {"ok": off <= bound, "largest": off}
    return {"seconds": seconds, "shape": labels.shape, "bar_seconds": BAR_SECONDS}


def sklearn_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One call per label, as scikit-learn's own `average=None` makes them."""
    pairs = zip(labels.T, scores.T, strict=True)
    return np.array([average_precision_score(y, s) for y, s in pairs])


def torchmetrics_precision(scores: np.ndarray, labels: np.ndarray) -> Callable[[], np.ndarray]:
    """The functional form, of tensors made beforehand."""
    import torch
    from torchmetrics.functional.classification import multilabel_average_precision

    tensors = torch.from_numpy(scores), torch.from_numpy(labels.astype(np.int64))

    def call() -> np.ndarray:
        return multilabel_average_precision(*tensors, labels.shape[1], average="none").numpy()

    return call
