"""Speed on vectors: pretraining on Yeast, C-GMVAE, and average precision, beside their peers.

    make bench
    python -m benchmarks.vectors --help

Pretraining is `configs/mulsupcon/yeast_released.py` at batch 64 and 256: the whole loop with data,
augmentation, log and checkpoints, and the step alone. The peer is the same in PyTorch
(`benchmarks/torch_side.py`): the step alone on one fixed batch, and the whole loop with a
DataLoader. Repetitions alternate between all of them, so that noise hits all alike, and each ratio
is taken within its repetition. Each side has its own process and all cores. Compilation is timed
apart. Without PyTorch only our side runs.

On a machine that others use, --processor-time gives ratios that hold: one core, the processor's
seconds, a DataLoader without workers.

C-GMVAE's loops are compared at the shapes of Yeast and of delicious (`benchmarks/cgmvae.py`).

JAXMLCL_DATA (or --data) names the folder of the data; without it, data of Yeast's shape are made.
Exits with 1 if the two sides do not compute the same, never for a time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cgmvae import bench_cgmvae
from benchmarks.clock import PROCESSOR_TIME
from benchmarks.machine import BUSY, machine
from benchmarks.measures import bench_measures
from jaxmlcl.bench import side

TRAIN, VALIDATION = (f"vectors/yeast/yeast_official_{split}.hdf5" for split in ("train", "val"))
BATCHES = (64, 256)
QUEUE = 256
# What a whole loop must reach, as multiples of the peer's whole loop and of its bare step.
BARS = {"torch loop": 5.0, "torch step": 1.8}
Rates = dict[str, dict[int, list[float]]]
INSTALL = 'PyTorch is not installed, so there is no peer: pip install "jaxmlcl[benchmark]"'


def main() -> int:
    """Run what is asked for; 0 if both sides compute the same."""
    options = parse()
    # The peer has no other place; what is measured here is the host.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if options.processor_time:
        # One core, so that no thread waits for another one and every second is work.
        os.environ[PROCESSOR_TIME] = "1"
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        options.workers = 0
    here = machine()
    cores = here["cores"]
    report: dict[str, Any] = {
        "machine": here,
        "clock": "processor time on one core" if options.processor_time else "wall",
        "load_before": os.getloadavg()[0],
        "checks": {},
    }
    load = f"load {report['load_before']:.1f}, clock: {report['clock']}"
    print(f"{here['cpu']}, {cores} cores, {load}")
    if report["load_before"] > BUSY and not options.processor_time:
        # Threads that wait for each other lose most, and a DataLoader has more of them than we.
        print("the machine is busy: quote no figure of this run; --processor-time can be used")
    with tempfile.TemporaryDirectory() as folder:
        if "loop" in options.only:
            report["pretraining"] = bench_pretraining(
                options, cores, Path(folder), report["checks"]
            )
        if "cgmvae" in options.only:
            report["cgmvae"] = bench_cgmvae(
                options.repetitions, options.steps // 5, cores, Path(folder), report["checks"]
            )
        if "measures" in options.only:
            report["average_precision"] = bench_measures(options.repetitions, report["checks"])
    report["load_after"] = os.getloadavg()[0]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written: {options.json}")
    failed = [name for name, check in report["checks"].items() if not check["ok"]]
    for name in failed:
        print(f"FAIL {name}: {report['checks'][name]}")
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vectors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--data", default=os.environ.get("JAXMLCL_DATA"), help="folder of data")
    parser.add_argument("--repetitions", type=int, default=5, help="of everything (default 5)")
    parser.add_argument("--steps", type=int, default=3000, help="of our whole loop (default 3000)")
    parser.add_argument("--peer-steps", type=int, default=200, help="of the peer's (default 200)")
    parser.add_argument("--workers", type=int, default=2, help="of its DataLoader (default 2)")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="on one core by processor time, which other programs hardly change (Linux)",
    )
    choices = ("loop", "cgmvae", "measures")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices, help="sections")
    return parser.parse_args()


def bench_pretraining(
    options: argparse.Namespace, cores: int, folder: Path, checks: dict[str, Any]
) -> dict[str, Any]:
    """Interleaved rates of whole loops and steps, our side's parts, and the table of both."""
    data, real = find_data(options.data, folder)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(side("benchmarks.jax_side", "Ours", data, str(folder)))
        versions = {"jax": ours("describe")["version"]}
        runs = {
            "jaxmlcl loop": (ours, "loop", options.steps),
            "jaxmlcl step": (ours, "step", max(50, options.steps // 5)),
        }
        has_peer = importlib.util.find_spec("torch") is not None
        if has_peer:
            settings = (str(Path(data) / TRAIN), str(folder), cores, QUEUE, options.workers)
            peer = stack.enter_context(side("benchmarks.torch_side", "Peer", *settings))
            versions["torch"] = peer("describe")["version"]
            runs["torch step"] = (peer, "step", options.peer_steps)
            runs["torch loop"] = (peer, "loop", options.peer_steps)
            checks |= compare(ours, peer)
        kind = "Yeast" if real else "random numbers of Yeast's shape (no folder of data given)"
        print(f"pretraining on {kind}, {versions}, {cores} threads each side")

        # Caches, thread pools, a full queue; the loop of ours begins anew each time.
        for batch in BATCHES:
            for name, (where, what, _) in runs.items():
                if name != "jaxmlcl loop":
                    where(what, batch, 30)
        rates: Rates = {name: {batch: [] for batch in BATCHES} for name in runs}
        compiling: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        for repetition in range(options.repetitions):
            for batch in BATCHES:
                for name, (where, what, steps) in runs.items():
                    seconds = where(what, batch, steps)
                    if name == "jaxmlcl loop":
                        seconds, compiled = seconds
                        compiling[batch].append(compiled)
                    rates[name][batch].append(steps / seconds)
            print(f"repetition {repetition + 1} of {options.repetitions}", flush=True)
        parts = {batch: ours("parts", batch) for batch in BATCHES}
        gflop = {batch: ours("gflop", batch) for batch in BATCHES}
    ratios = {
        name: {batch: within(rates["jaxmlcl loop"][batch], rates[name][batch]) for batch in BATCHES}
        for name in BARS
        if name in rates
    }
    show_rates(rates, ratios, compiling)
    show_parts(parts, gflop)
    if not has_peer:
        print(INSTALL)
    return {
        "data": kind,
        "versions": versions,
        "steps_per_second": rates,
        "times_as_fast": ratios,
        "bars": BARS,
        "compile_seconds": compiling,
        "parts_ms": parts,
        "products_gflop": gflop,
    }


def within(ours: list[float], theirs: list[float]) -> list[float]:
    """The ratio of each repetition."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def show_rates(rates: Rates, ratios: Rates, compiling: dict[int, list[float]]) -> None:
    """Rates and ratios, for a person."""
    print(f"\n{'median (least-most)':<34}" + "".join(f"{f'batch {b}':>24}" for b in BATCHES))

    def row(name: str, values: dict[int, list[float]], unit: str) -> None:
        cells = [f"{statistics.median(v):.3g} ({min(v):.3g}-{max(v):.3g})" for v in values.values()]
        print(f"{name:<34}" + "".join(f"{cell:>24}" for cell in cells) + f"  {unit}")

    for name, values in rates.items():
        row(name, values, "steps/s")
    for name, values in ratios.items():
        row(f"jaxmlcl loop / {name}", values, f"times (bar {BARS[name]:g})")
    row("jaxmlcl, compiling", compiling, "s")


def show_parts(parts: dict[int, dict[str, float]], gflop: dict[int, float]) -> None:
    """What bounds our step, for a person."""
    print("\none step of jaxmlcl: least milliseconds of its parts, each run alone")

    def row(name: str, values: list[float]) -> None:
        print(f"{name:<34}" + "".join(f"{value:>24.3g}" for value in values))

    for name in parts[BATCHES[0]]:
        row(name, [parts[batch][name] for batch in BATCHES])
    row("GFLOP of the products", [gflop[batch] for batch in BATCHES])
    row("GFLOP/s", [1e3 * gflop[batch] / parts[batch]["matrix products"] for batch in BATCHES])


def compare(ours: Callable[..., Any], peer: Callable[..., Any]) -> dict[str, Any]:
    """Whether both sides have the same loss, gradient and network."""
    checks = {}
    for batch in BATCHES:
        generator = np.random.default_rng(batch)
        rows = [generator.normal(size=(n, 256)) for n in (batch, batch + QUEUE)]
        vectors = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in rows]
        key_labels = (generator.random((batch + QUEUE, 14)) < 0.3).astype(np.float32)
        arrays = (*vectors, key_labels[:batch], key_labels)
        (value, gradient), (expected, slope) = ours("loss", *arrays), peer("loss", *arrays)
        off = (
            abs(value / expected - 1.0),
            float(np.abs(gradient - slope).max() / np.abs(slope).max()),
        )
        checks[f"loss at batch {batch}"] = {
            "ok": max(off) < 1e-5,
            "value": off[0],
            "gradient": off[1],
        }
    # The peer's linear layer before batch normalisation has a bias without effect.
    mine, theirs = ours("describe")["parameters"], peer("describe")["parameters"]
    checks["parameters"] = {"ok": mine == theirs - 256, "jaxmlcl": mine, "torch": theirs}
    for name, check in checks.items():
        print(f"{'ok  ' if check['ok'] else 'FAIL'} {name}: {json.dumps(check)}")
    return checks


def find_data(root: str | None, folder: Path) -> tuple[str, bool]:
    """A folder with Yeast's files, and whether they are the real ones."""
    if root and (Path(root) / TRAIN).exists() and (Path(root) / VALIDATION).exists():
        return str(Path(root).resolve()), True
    import h5py

    generator = np.random.default_rng(0)
    for name, rows in ((TRAIN, 1200), (VALIDATION, 300)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / name, "w") as file:
            file["feature"] = generator.normal(size=(rows, 103))
            file["target"] = (generator.random((rows, 14)) < 0.3).astype(np.int64)
    return str(folder), False


if __name__ == "__main__":
    sys.exit(main())
