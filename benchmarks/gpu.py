"""Every check and benchmark that wants a GPU: one JSON file and one table, with the chip's name.

    make gpu

Runs with the packages that are there (JAX, Flax, Optax and Orbax; neither grain nor tyro), writes
build/gpu.json, and exits with 1 if a check fails. Without a GPU it says so and exits with 0.

Checks: golden values and gradients of the losses in float32; the queue against one on the host;
20 steps of the whole training step against the same steps on the host's CPU. Benchmarks: value and
gradient of the loss, and whole pretraining steps, as ratios to a named peer in the same run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.steps import Case, prepare
from benchmarks.train_step import OUR_STEP, Settings
from benchmarks.train_step import measure as measure_steps
from jaxmlcl import losses
from jaxmlcl import queue as momentum_queue
from jaxmlcl.bench import OURS, LossProblem, has_torch, median
from jaxmlcl.bench import bench_loss as measure_loss
from jaxmlcl.data.augment import Intensity, Shift, ZeroMask
from jaxmlcl.data.source import ArraySource
from jaxmlcl.methods import MulSupCon
from jaxmlcl.models import MLP, Projection, ResNet
from jaxmlcl.training.duration import steps
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "reference" / "golden.json"
OUTPUT = ROOT / "build" / "gpu.json"


def main() -> int:
    """Run everything; 0 if every check holds."""
    # The GPU is shared with the peers.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() != "gpu":
        print("no GPU: nothing to check")
        return 0
    device = jax.devices()[0]
    rows: list[dict[str, Any]] = []
    for name, check in (
        ("golden losses, float32", check_golden),
        ("queue against the host", check_queue),
        ("20 steps against the CPU, MLP", lambda: check_steps("vectors")),
        ("20 steps against the CPU, ResNet", lambda: check_steps("pictures")),
    ):
        rows.append(attempt("check", name, check))
        show(rows[-1])
    for name, bench in (
        ("loss (256, 8192, 80)", lambda: bench_loss(256, 8192, 80, 2.9)),
        ("loss (256, 65536, 365)", lambda: bench_loss(256, 65536, 365, 10)),
        ("loss (4096, 65536, 365)", lambda: bench_loss(4096, 65536, 365, 10)),
        ("loss (4096, 1048576, 365)", lambda: bench_loss(4096, 1048576, 365, 10)),
        ("step, Yeast MLP, batch 64", lambda: bench_step("yeast", 64, "float32")),
        ("step, Yeast MLP, batch 256", lambda: bench_step("yeast", 256, "float32")),
        ("step, digits ResNet, batch 256", lambda: bench_step("digits", 256, "float32")),
        ("step, ResNet-50 224 px bf16, batch 256", bench_photographs),
    ):
        rows.append(attempt("benchmark", name, bench))
        show(rows[-1])
    report = {
        "chip": device.device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "rows": rows,
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")
    failed = [row["name"] for row in rows if not row["ok"]]
    held = f"{len(rows) - len(failed)} of {len(rows)} ok"
    print(f"{device.device_kind}, JAX {jax.__version__}: {held}")
    print(f"written: {OUTPUT}")
    return 1 if failed else 0


def attempt(kind: str, name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One row; an exception is a failure that does not keep the others from running."""
    started = time.perf_counter()
    try:
        result = {"ok": True, **function()}
    except Exception as error:
        message = f"{type(error).__name__}: {str(error)[:200]}"
        result = {"ok": False, "error": " ".join(message.split())}
    return {"kind": kind, "name": name, **result, "seconds": time.perf_counter() - started}


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    hidden = ("kind", "name", "ok", "seconds")
    figures = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key not in hidden
    )
    print(f"{'ok  ' if row['ok'] else 'FAIL'} {row['name']:<42} {figures}", flush=True)


def check_golden() -> dict[str, Any]:
    """Every golden value and gradient entry of the contrastive losses, to 1e-5."""
    golden = json.loads(GOLDEN.read_text())
    names = {
        "mulsupcon_w0": "mulsupcon",
        "mulsupcon_w1": "mulsupcon_mean",
        "supcon_all": "all",
        "supcon_any": "any",
    }
    worst = 0.0
    for prefix, weighting in names.items():
        for temperature in ("0.5", "0.1"):
            entry = golden[f"{prefix}_tau{temperature}"]
            arrays = {k: jnp.asarray(v, jnp.float32) for k, v in entry["inputs"].items()}

            def loss(q: jax.Array, arrays: Any = arrays, weighting: str = weighting) -> jax.Array:
                keys = jnp.concatenate([arrays["k_batch_raw"], arrays["k_queue_raw"]])
                return losses.multi_positive_infonce(
                    losses.normalize(q),
                    losses.normalize(keys),
                    arrays["Y"],
                    jnp.concatenate([arrays["Y"], arrays["Y_queue"]]),
                    weighting=weighting,
                    temperature=float(arrays["tau"]),
                )

            value, gradient = jax.jit(jax.value_and_grad(loss))(arrays["q_raw"])
            worst = max(
                worst,
                abs(float(value) / entry["value"] - 1.0),
                abs(float(gradient[0, 1]) - entry["grad"]["value"]),
            )
    if worst > 1e-5:
        raise ValueError(f"largest deviation {worst:.2e} is above 1e-5")
    return {"largest_deviation": worst}


def check_queue() -> dict[str, Any]:
    """The device's queue holds what a first-in-first-out list on the host holds."""
    capacity, width, labels = 48, 8, 5
    generator = np.random.default_rng(0)
    queue = momentum_queue.init(capacity, width, labels)
    enqueue = jax.jit(momentum_queue.enqueue, donate_argnums=0)
    held: list[int] = []
    for step in range(20):
        ids = np.arange(16 * step, 16 * step + 16, dtype=np.int32)
        rows = np.repeat(ids[:, None], width, axis=1).astype(np.float32)
        queue = enqueue(queue, rows, generator.integers(0, 2, (16, labels)), ids)
        held = (held + ids.tolist())[-capacity:]
    keys, _, ids, valid = jax.device_get(momentum_queue.contents(queue))
    if not valid.all() or sorted(ids.tolist()) != held or (keys[:, 0] != ids).any():
        raise ValueError("the queue does not hold the newest keys")
    return {"keys_seen": 20 * 16}


def make_case(kind: str, batch: int) -> Case:
    """Synthetic data of a real experiment's shapes, with its network."""
    generator = np.random.default_rng(0)

    def stage(encoder: Any, queue: int, augmentation: Any, optimizer: Optimizer) -> Stage:
        method = MulSupCon(encoder=encoder, head=Projection(), queue_capacity=queue)
        return Stage(method, steps(20), batch, optimizer, augmentation)

    def labels(rows: int, count: int, mean: float) -> np.ndarray:
        return (generator.random((rows, count)) < mean / count).astype(np.uint8)

    adam, sgd = Optimizer("adam", 4e-4), Optimizer("sgd", 0.1, weight_decay=1e-4)
    if kind in ("vectors", "yeast"):
        x = generator.normal(size=(1200, 103)).astype(np.float32)
        source = ArraySource(x, labels(1200, 14, 4.2), name=kind)
        return Case(source, "standardize", stage(MLP(), 256, (ZeroMask(),), adam))
    width = 8 if kind == "pictures" else 16
    encoder = ResNet(depths=(1, 1, 1, 1), channels=width)
    pixels = generator.integers(0, 256, (512, 48, 48, 1), np.uint8)
    source = ArraySource(pixels, labels(512, 10, 2.3), name=kind)
    return Case(source, "unit", stage(encoder, 1024, (Shift(), Intensity()), sgd))


def check_steps(kind: str) -> dict[str, Any]:
    """Losses of 20 steps on the GPU against the same 20 on the CPU, in float32.

    The GPU multiplies in full float32 here; the first step must agree to 1e-4, the last to 1 %,
    since training multiplies rounding differences from step to step.
    """
    curves = {}
    with jax.default_matmul_precision("highest"):
        for place in ("cpu", "gpu"):
            step, state, batch, constants, _, _ = prepare(
                make_case(kind, 32), jax.local_devices(backend=place)[0], "float32"
            )
            curve = []
            for index in range(20):
                state, measurements = step(state, batch(index), constants)
                curve.append(float(measurements["loss"]))
            curves[place] = np.array(curve)
    deviation = np.abs(curves["gpu"] / curves["cpu"] - 1.0)
    if deviation[0] > 1e-4 or deviation.max() > 1e-2:
        raise ValueError(f"deviation {deviation[0]:.2e} at first, {deviation.max():.2e} at most")
    return {"first": float(deviation[0]), "largest": float(deviation.max())}


def bench_loss(anchors: int, keys: int, labels: int, cardinality: float) -> dict[str, Any]:
    """Value and gradient in float32: ours, and the peers of `benchmarks.loss`.

    PyTorch's forms take part where it is installed, each in a process of its own, with what memory
    of the device JAX leaves to others.
    """
    problem = LossProblem(anchors, keys, labels, cardinality=cardinality)
    # The device is held here.
    figures = measure_loss(problem, torch=has_torch(), seconds=10.0, here=True)
    for name, (value, gradient) in figures.deviations.items():
        if not max(value, gradient) <= 1e-4:
            raise ValueError(f"{name} differs by {value:.1e} (value), {gradient:.1e} (gradient)")
    row: dict[str, Any] = {}
    for form in figures.forms:
        ours = form.name == OURS
        if not form.seconds:
            counted = f", {form.counted / 1e6:.0f} MB counted" if form.counted else ""
            row[form.name] = f"not run: {form.note}{counted}"
            continue
        row["ms" if ours else f"{form.name}, ms"] = 1e3 * median(form.seconds)
        if form.temporaries is not None:
            row["temporaries_mb" if ours else f"{form.name}, MB"] = form.temporaries / 1e6
        if not ours:
            row[f"times as fast as {form.name}"] = median(form.ratios)
    return {**row, "times the floor": median(figures.floor_ratios())}


def bench_step(kind: str, batch: int, precision: str) -> dict[str, Any]:
    """Whole pretraining steps, data on the device; FLOPs are counted, not measured."""
    step, state, host, constants, compiling, program = prepare(
        make_case(kind, batch), jax.local_devices(backend="gpu")[0], precision
    )
    batches = [host(index) for index in range(4)]

    def run(count: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for index in range(count):
            state, _ = step(state, batches[index % 4], constants)
        jax.block_until_ready(state)
        return (time.perf_counter() - started) / count

    run(5)
    # Rounds of about a third of a second, so that one launch does not count.
    count = max(3, int(0.3 / run(5)))
    seconds = statistics.median(run(count) for _ in range(5))
    return {
        "steps_per_second": 1.0 / seconds,
        "samples_per_second": batch / seconds,
        "tflop_per_second": program.flops_per_step / seconds / 1e12,
        "compile_seconds": compiling,
    }


def bench_photographs() -> dict[str, Any]:
    """The step of `benchmarks.train_step` beside PyTorch's, compiled, channels last, autocast."""
    figures = measure_steps(
        Settings(batch=256, precision="bfloat16"), peers=("compiled",), here=True
    )
    failed = [name for name, check in figures.checks.items() if not check["ok"]]
    if failed:
        raise ValueError(f"{failed[0]}: {figures.checks[failed[0]]}")
    row: dict[str, Any] = {}
    for name, found in figures.sides.items():
        if not found.rates:
            row[name] = f"not run: {found.note}"
            continue
        row[f"{name}, images/s"] = median(found.rates)
        row[f"{name}, GB"] = found.peak / 1e9
        row[f"{name}, part of the floor"] = median(figures.parts_of_floor(name))
        if name != OUR_STEP:
            row[f"times as fast as {name}"] = median(figures.ratios(name))
    return row


if __name__ == "__main__":
    sys.exit(main())
