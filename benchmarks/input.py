"""Photographs in: images per second beside a PyTorch DataLoader, on one core and on all of them.

    make bench-input
    python -m benchmarks.input --help

Both sides read the same packed JPEGs (short side 256 pixels, quality 90) in batches of 64 and give
two random crops of 224 pixels as uint8 arrays from one decoding, which count as one image. The
peer's transforms are Pillow's: decode, and crop and resize in one call, bilinear with antialiasing,
as torchvision does; its boxes are ours, so that both cut as much, but drawn beforehand, and its
JPEGs are in memory. Ours reads shards, draws boxes, decodes with simplejpeg and resizes with
OpenCV, in threads or, as the DataLoader always does on several cores, in worker processes, whose
memory is measured, too; flip, jitter and normalisation are left to the device. Sides take turns,
each has its own process, and each ratio is taken within its turn. Without PyTorch only our side
runs.

JAXMLCL_DATA (or --data) names the folder with images/voc2012_animals; without it, parts of the two
photographs that come with scikit-learn are packed. Exits with 1 if the sides do not give the same
images, never for a time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.input_ours import BATCH
from benchmarks.machine import BUSY, machine
from jaxmlcl.bench import side
from jaxmlcl.data.images.pack import Packing, pack
from jaxmlcl.data.source import open_source

# What is aimed at: times the peer's rate, images per second on one core, and MB of a worker.
BARS = {"times as fast": 2.0, "images per second and core": 1500.0, "MB of a worker": 300.0}
# Levels by which pixels of the two sides may differ in the mean: they resize by other filters.
TOLERANCE = 6.0
INSTALL = 'PyTorch is not installed, so there is no peer: pip install "jaxmlcl[benchmark]"'


def main() -> int:
    """Run everything; 0 if both sides give the same images."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--data", default=os.environ.get("JAXMLCL_DATA"), help="folder of data")
    parser.add_argument("--repetitions", type=int, default=5, help="of everything (default 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn (default 4)")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    here = machine()
    cores = here["cores"]
    load = os.getloadavg()[0]
    print(f"{here['cpu']}, {cores} cores, load {load:.1f}")
    if load > BUSY:
        print("the machine is busy: quote no figure of this run")
    has_peer = importlib.util.find_spec("torch") is not None
    if not has_peer:
        print(INSTALL)
    report: dict[str, Any] = {"machine": here, "load": load, "rates": {}, "times_as_fast": {}}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        packed, real = packed_set(options.data, Path(folder))
        report["photographs"] = "VOC 2012, animals" if real else "of scikit-learn"
        ours = stack.enter_context(side("benchmarks.input_ours", "Ours", packed))
        peer = None
        if has_peer:
            peer = stack.enter_context(side("benchmarks.input_torch", "Peer", packed, BATCH))
            difference = float(np.abs(ours("views") - peer("views")).mean())
            report["difference"] = difference
        for title, count, workers in (
            ("one core", 1, {"jaxmlcl": 0, "torch": 0}),
            # A DataLoader has no threads: each of its processes is one.
            (f"{cores} cores", cores, {"jaxmlcl": 0, "torch": cores}),
            (f"{cores} cores, workers", cores, {"jaxmlcl": cores, "torch": cores}),
        ):
            rates: dict[str, list[float]] = {"jaxmlcl": []} | ({"torch": []} if peer else {})
            for _ in range(options.repetitions):
                for name, one in (("jaxmlcl", ours), ("torch", peer)):
                    if one is not None:
                        rates[name].append(one("rate", count, workers[name], options.seconds))
            report["rates"][title] = rates
            show(title, rates, report)
        memory = ours("memory_of_a_worker")
        report["worker_mb"] = memory
        print(
            f"a worker: {memory['resident']:.0f} MB resident, of which {memory['own']:.0f} MB are "
            f"its own (at most {BARS['MB of a worker']:.0f} are aimed at)"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written: {options.json}")
    if report.get("difference", 0.0) > TOLERANCE:
        print(f"FAIL: the sides' images differ by {report['difference']:.1f} levels in the mean")
        return 1
    return 0


def packed_set(data: str | None, folder: Path) -> tuple[str, bool]:
    """A packed set to read, and whether it is of the real photographs."""
    uri = "voc:images/voc2012_animals/VOC2012?set=train"
    real = data is not None and (Path(data) / "images/voc2012_animals/VOC2012").is_dir()
    if not real:
        uri = f"folder:{parts_of_photographs(folder / 'parts')}"
    place = folder / "packed"
    pack(open_source(uri, root=data), place, Packing(short_side=256, quality=90, shards=4))
    return str(place), real


def parts_of_photographs(folder: Path, count: int = 512) -> Path:
    """Parts of the photographs of scikit-learn, of 500 x 375 pixels, as files with a list."""
    from sklearn.datasets import load_sample_images

    folder.mkdir()
    images = load_sample_images().images
    generator = np.random.default_rng(0)
    lines = ["file,flower"]
    for number in range(count):
        image = images[number % 2]
        top, left = (int(generator.integers(0, free + 1)) for free in (427 - 375, 640 - 500))
        part = Image.fromarray(image[top : top + 375, left : left + 500])
        part.save(folder / f"{number}.jpg", quality=90)
        lines.append(f"{number}.jpg,{number % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def show(title: str, rates: dict[str, list[float]], report: dict[str, Any]) -> None:
    """A line for each side, and the ratio within each turn."""
    for name, values in rates.items():
        low, high = min(values), max(values)
        median = statistics.median(values)
        print(f"{title:<17} {name:<8} {median:>7.0f} images/s ({low:.0f}-{high:.0f})")
    if "torch" in rates:
        ratios = [a / b for a, b in zip(rates["jaxmlcl"], rates["torch"], strict=True)]
        report["times_as_fast"][title] = ratios
        bar = BARS["times as fast"]
        print(f"{title:<17} {statistics.median(ratios):.2f} times as fast (aim {bar:g})")


if __name__ == "__main__":
    raise SystemExit(main())
