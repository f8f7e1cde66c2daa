"""`jaxmlcl bench loss`: time and memory of the loss on this machine, beside its peers."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

from jaxmlcl.cli import Parser

_ABOUT = """\
Time and memory of value and gradient of the multi-positive InfoNCE loss, beside plain jnp (and
PyTorch) forms of the same loss and the floor that the machine's own products and exponentials set.
All forms take turns. It is first checked that they compute the same; no time is a failure. Memory:
what XLA plans beside inputs and outputs, and what was resident over the inputs at most.
"""
# Load of a machine that does something else; no figure counts above it.
_BUSY = 0.5


def run(words: list[str]) -> None:
    """Measure, and print a table or JSON."""
    parser = Parser("jaxmlcl bench loss", _ABOUT)

    def number(flag: str, default: Any, text: str, kind: type = int) -> None:
        shown = f"{text} (default: {default})" if default is not None else text
        metavar = "N" if kind is int else "X"
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=shown)

    number("--anchors", 256, "anchors B")
    number("--keys", 8192, "keys K, those of the batch included")
    number("--labels", 80, "labels L")
    number("--dim", 256, "width D of the embeddings")
    number("--cardinality", 2.9, "mean number of labels per row", float)
    parser.add_argument(
        "--weighting",
        default="mulsupcon",
        metavar="NAME",
        help="mulsupcon, mulsupcon_mean, any, all or jaccard (default: mulsupcon)",
    )
    parser.add_argument(
        "--strategy",
        default="single",
        metavar="NAME",
        help="how several devices share the work: single (one device), gather_keys, "
        "gather_anchors, ring or auto (default: single)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="NAME",
        help="of the embeddings: float32, bfloat16 or float64 (default: float32)",
    )
    number("--chunk-size", None, "keys scored at a time by ours (default: chosen by the loss)")
    number("--repetitions", 7, "turns of every form; slow ones get fewer")
    parser.add_argument(
        "--with-keys-gradient", action="store_true", help="keys have a gradient, too"
    )
    parser.add_argument(
        "--peer", choices=("torch",), help="torch: PyTorch as well, eager and compiled"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.read(words)
    if options.repetitions < 1:
        parser.error(f"argument --repetitions: {options.repetitions} is less than 1")
    # Imported here, so that help and mistakes are told at once.
    from jaxmlcl import bench

    problem = bench.LossProblem(
        anchors=options.anchors,
        keys=options.keys,
        labels=options.labels,
        dim=options.dim,
        cardinality=options.cardinality,
        weighting=options.weighting,
        dtype=options.dtype,
        chunk_size=options.chunk_size,
        keys_gradient=options.with_keys_gradient,
        strategy=options.strategy,
    )
    load = os.getloadavg()[0]
    if load > _BUSY:
        _tell(f"the machine is busy (load {load:.1f}): these times say little")
    figures = bench.bench_loss(
        problem, torch=options.peer == "torch", repetitions=options.repetitions, tell=_tell
    )
    if options.json:
        document = {
            **dataclasses.asdict(figures),
            "floor_ratios": figures.floor_ratios(),
            "load": load,
        }
        print(json.dumps(document, indent=2))
    else:
        about = figures.versions["jax"]
        print(f"(B, K, L) = {problem.title}, D = {problem.dim}, {problem.dtype}", end=", ")
        print(f"{problem.weighting}; JAX {about['version']} on {about['device']}", end="")
        print(
            f", {about['devices']} devices, {problem.strategy}"
            if problem.strategy != "single"
            else ""
        )
        for line in bench.summary(figures):
            print(line)
        print()
        for line in bench.aligned([bench.HEADER, *bench.rows(figures)]):
            print(line)
    if figures.disagreements:
        raise RuntimeError("; ".join(figures.disagreements))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
