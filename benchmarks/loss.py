"""Time and memory of the loss: value and gradient of MulSupCon beside the forms people write.

    make bench-loss
    python -m benchmarks.loss --help

The peers are plain jnp with a [B, K] weight matrix, plain jnp with class sums, and PyTorch, eager
and compiled, with one row per (anchor, label); each PyTorch form has a process of its own. Labels
are uint8 and every input is on the device. All forms take their turn in every repetition, and each
ratio is taken within its repetition. The floor is measured in the same run: two walks over the keys
at the machine's own rate of products, and one pass of exponentials. A form that does not fit into
memory is listed with its counted bytes.

Then memory as keys and labels per row grow, and small sizes, where plain jnp is hard to beat.

Writes a table to stdout, the figures and a plot to build/, and, with --write-docs, table and plot
to docs/. Exits with 1 if two forms do not compute the same, never for a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loss_plot import draw
from benchmarks.machine import BUSY, machine
from jaxmlcl.bench import (
    CLASS_SUMS,
    EAGER,
    HEADER,
    JAX_FORMS,
    OURS,
    TORCH_FORMS,
    TORCH_MISSING,
    WEIGHTS,
    FormFigures,
    LossFigures,
    LossProblem,
    bench_loss,
    has_torch,
    median,
    resident_peaks,
    rows,
    short,
    side,
    spread,
    summary,
)
from jaxmlcl.errors import UserError
from jaxmlcl.io import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "loss.md", ROOT / "docs" / "images" / "loss.svg"
BEGIN, END = "<!-- figures of benchmarks/loss.py -->", "<!-- end of figures -->"
SECTIONS = ("shapes", "memory", "small")
# (B, K, L), labels per row, and the forms that are run (None: all that fit).
SHAPES = (
    ((64, 8192, 80), 2.9, None),
    ((256, 8192, 80), 2.9, None),
    ((256, 65_536, 365), 10.0, None),
    ((4096, 65_536, 365), 10.0, None),
    ((4096, 1_048_576, 365), 10.0, (OURS,)),
)
CURVE_OF_KEYS = (256, 80, tuple(2**power for power in range(12, 21)))
CURVE_OF_LABELS = (256, 8192, 80, (1, 2, 5, 10, 20, 40, 80))
SMALL = (
    (16, 16),
    (16, 256),
    (64, 64),
    (64, 1024),
    (256, 256),
    (16, 4096),
    (256, 1024),
    (256, 4096),
)
# The same program, in seconds.
QUICK_SHAPES = (((16, 512, 20), 2.9, None), ((32, 1024, 20), 2.9, (OURS,)))
QUICK_CURVE_OF_KEYS = (16, 20, (256, 1024))
QUICK_CURVE_OF_LABELS = (16, 512, 20, (1, 20))
QUICK_SMALL = ((16, 16), (16, 64))
# The size that the aims are about, and the aims: ours at most so many times the floor, others at
# least so many times ours, and bytes; last the largest of all, over its inputs.
AIMED_AT = (256, 65_536, 365)
LARGEST, LARGEST_BYTES = (4096, 1_048_576, 365), 256 * 2**20
FLOOR_AIM, BYTES_AIM = 1.2, 16e6
AIMS = {EAGER: 28.0, WEIGHTS: 1.6, CLASS_SUMS: 1.3}
SMALL_AIM = 1.1
SMALL_SHAPES = ((64, 8192, 80), (256, 8192, 80))


def main() -> int:
    """Measure, or read earlier figures; write; 0 if all forms compute the same."""
    options = parse()
    report = json.loads(options.read.read_text()) if options.read else measure(options)
    if report.get("shapes"):
        measured = [figures_of(entry) for entry in report["shapes"]]
        report["aims"] = aims(measured, report.get("small", ()))
    if not options.read:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.json, json.dumps(report, indent=2) + "\n")
    print()
    print(markdown(report))
    places = [options.json.with_suffix(".svg")]
    if options.write_docs:
        places.append(PICTURE)
        write_atomic(PAGE, with_figures(PAGE.read_text(encoding="utf-8"), markdown(report)))
    for place in places:
        draw(report, place)
    print("written:", *([] if options.read else [options.json]), *places, end="")
    print(f" {PAGE}" if options.write_docs else "")
    for line in report["disagreements"]:
        print(f"FAIL {line}")
    return 1 if report["disagreements"] else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--json", type=Path, default=ROOT / "build" / "loss.json", help="(default build/loss.json)"
    )
    parser.add_argument(
        "--read", type=Path, metavar="JSON", help="measure nothing: earlier figures"
    )
    parser.add_argument("--write-docs", action="store_true", help="put them into docs/ as well")
    parser.add_argument("--repetitions", type=int, default=9, help="turns of each (default 9)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="most for all turns of a form (default 60)"
    )
    parser.add_argument("--chunk-size", type=int, help="of ours (default: the loss chooses)")
    parser.add_argument("--no-torch", action="store_true", help="without PyTorch's forms")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked for, as it goes into the file."""
    here, load = machine(), os.getloadavg()[0]
    print(f"{here['cpu']}, {here['cores']} cores, load {load:.1f}")
    if load > BUSY:
        print("the machine is busy: quote no figure of this run")
    torch = not options.no_torch and has_torch()
    if not torch and not options.no_torch:
        print(TORCH_MISSING)
    report: dict[str, Any] = {"machine": here, "load_before": load, "quick": options.quick}
    report["disagreements"] = []
    if "shapes" in options.only:
        report["shapes"] = list(bench_shapes(options, torch, report["disagreements"]))
    if "memory" in options.only:
        report["keys"] = curve_of_keys(options)
        report["labels"] = curve_of_labels(options, torch)
    if "small" in options.only:
        report["small"] = bench_small(options, report["disagreements"])
    report["load_after"] = os.getloadavg()[0]
    return report


def bench_shapes(
    options: argparse.Namespace, torch: bool, disagreements: list[str]
) -> Iterator[dict[str, Any]]:
    """The figures of each shape; one that does not fit is told and left out."""
    for (anchors, keys, labels), cardinality, run in QUICK_SHAPES if options.quick else SHAPES:
        problem = LossProblem(
            anchors, keys, labels, cardinality=cardinality, chunk_size=options.chunk_size
        )
        print(f"\n{problem.title}", flush=True)
        try:
            figures = bench_loss(
                problem,
                torch=torch,
                repetitions=2 if options.quick else options.repetitions,
                seconds=options.seconds,
                run=run,
                tell=tell,
            )
        except UserError as error:
            print(f"left out: {error}")
            continue
        disagreements += figures.disagreements
        yield dataclasses.asdict(figures)


def curve_of_keys(options: argparse.Namespace) -> dict[str, Any]:
    """What XLA plans for each form as the keys grow; nothing is run."""
    anchors, labels, counts = QUICK_CURVE_OF_KEYS if options.quick else CURVE_OF_KEYS
    temporaries: dict[str, list[int]] = {form: [] for form in JAX_FORMS}
    inputs = []
    with side("jaxmlcl.bench", "JaxSide") as call:
        for keys in counts:
            problem = LossProblem(anchors, keys, labels, chunk_size=options.chunk_size)
            tell(f"temporaries of {problem.title}")
            call("shape", problem)
            inputs.append(problem.input_bytes)
            for form in JAX_FORMS:
                temporaries[form].append(call("compile", form))
    return {
        "anchors": anchors,
        "labels": labels,
        "keys": counts,
        "inputs": inputs,
        "temporaries": temporaries,
    }


def curve_of_labels(options: argparse.Namespace, torch: bool) -> dict[str, Any]:
    """What was resident over the inputs at most as the labels per row grow."""
    sizes = QUICK_CURVE_OF_LABELS if options.quick else CURVE_OF_LABELS
    anchors, keys, labels, cardinalities = sizes
    problems = [
        LossProblem(anchors, keys, labels, cardinality=c, chunk_size=options.chunk_size)
        for c in cardinalities
    ]
    peaks = {}
    for form in (*JAX_FORMS, *(TORCH_FORMS if torch else ())):
        tell(f"memory of {form} as labels grow")
        try:
            peaks[form] = resident_peaks(form, problems)
        except UserError as error:
            print(f"{form}: {error}")
    return {
        "anchors": anchors,
        "keys": keys,
        "labels": labels,
        "cardinalities": cardinalities,
        "peaks": peaks,
    }


def bench_small(options: argparse.Namespace, disagreements: list[str]) -> list[dict[str, Any]]:
    """Ours beside the better of the plain forms where there is little to compute."""
    found = []
    for anchors, keys in QUICK_SMALL if options.quick else SMALL:
        problem = LossProblem(anchors, keys, chunk_size=options.chunk_size)
        figures = bench_loss(
            problem,
            repetitions=2 if options.quick else 5 * options.repetitions,
            seconds=options.seconds,
            resident=False,
            floor=False,
        )
        tell(f"small sizes: {problem.title}")
        disagreements += figures.disagreements
        forms = {form.name: form for form in figures.forms}
        best = min((WEIGHTS, CLASS_SUMS), key=lambda name: median(forms[name].seconds))
        found.append(
            {
                "anchors": anchors,
                "keys": keys,
                "labels": problem.labels,
                "best": best,
                "seconds": {name: form.seconds for name, form in forms.items()},
                "ratios": [1 / ratio for ratio in forms[best].ratios],
            }
        )
    return found


def aims(measured: list[LossFigures], small: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """What is aimed at, and what was reached in this run."""
    found = []

    def note(what: str, aim: str, reached: float | None, met: bool) -> None:
        found.append({"what": what, "aim": aim, "reached": reached, "met": met})

    for figures in measured:
        problem = figures.problem
        size = (problem.anchors, problem.keys, problem.labels)
        forms = {form.name: form for form in figures.forms}
        if size == AIMED_AT:
            reached = median(figures.floor_ratios())
            note(f"{OURS} / floor", f"at most {FLOOR_AIM}", reached, reached <= FLOOR_AIM)
            for name, aim in AIMS.items():
                if name in forms and forms[name].ratios:
                    reached = median(forms[name].ratios)
                    note(f"{name} / {OURS}", f"at least {aim:g}", reached, reached >= aim)
            used = forms[OURS].temporaries
            if used is not None:
                note(
                    "temporaries, MB", f"at most {BYTES_AIM / 1e6:g}", used / 1e6, used <= BYTES_AIM
                )
        if size == LARGEST and forms[OURS].peak is not None:
            used = forms[OURS].peak
            aim = f"at most {LARGEST_BYTES / 1e6:.0f}"
            note(f"peak at {size}, MB", aim, used / 1e6, used <= LARGEST_BYTES)
        plain = [median(forms[name].ratios) for name in JAX_FORMS[1:] if name in forms]
        if size in SMALL_SHAPES and plain:
            reached = 1 / min(plain)
            what = f"{OURS} / better plain form at {size}"
            note(what, f"at most {SMALL_AIM}", reached, reached <= SMALL_AIM)
    if small:
        worst = max(small, key=lambda entry: median(entry["ratios"]))
        reached = median(worst["ratios"])
        what = f"{OURS} / better plain form, worst of the small sizes"
        what += f" ({worst['anchors']} x {worst['keys']})"
        note(what, f"at most {SMALL_AIM}", reached, reached <= SMALL_AIM)
    return found


def markdown(report: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    here = report["machine"]
    parts = []
    if report.get("shapes"):
        measured = [figures_of(entry) for entry in report["shapes"]]
        versions = {name: about["version"] for f in measured for name, about in f.versions.items()}
        parts.append(
            f"{here['cores']} cores of {here['cpu']}, JAX {versions['jax']}"
            + (f", PyTorch {versions['torch']}" if "torch" in versions else "")
            + f", float32; load {report['load_before']:.1f} before. Median (least-most)."
        )
        for figures in measured:
            problem = figures.problem
            parts.append(f"**(B, K, L) = {problem.title}**; {summary(figures)[0]}")
            parts.append(table([HEADER, *rows(figures)]))
    if report.get("aims"):
        cells = [
            (aim["what"], aim["aim"], short(aim["reached"]), "yes" if aim["met"] else "no")
            for aim in report["aims"]
        ]
        parts.append(f"At {AIMED_AT}, 10 labels a row, where nothing else is said:")
        parts.append(table([("", "aim", "reached", "met"), *cells]))
    if "keys" in report:
        curve = report["keys"]
        parts.append(
            f"Temporaries that XLA plans, MB, B = {curve['anchors']}, L = {curve['labels']}:"
        )
        lines = [("K", *map(str, curve["keys"]))]
        for form, values in {**curve["temporaries"], "(inputs)": curve["inputs"]}.items():
            lines.append((form, *map(megabytes, values)))
        parts.append(table(lines))
    if "labels" in report:
        curve = report["labels"]
        size = (curve["anchors"], curve["keys"], curve["labels"])
        parts.append(f"Resident memory over the inputs at most, MB, (B, K, L) = {size}:")
        lines = [("labels per row", *map(str, curve["cardinalities"]))]
        lines += [(form, *map(megabytes, values)) for form, values in curve["peaks"].items()]
        parts.append(table(lines))
    if "small" in report:
        parts.append(f"Small sizes, L = {report['small'][0]['labels']}, 2.9 labels a row:")
        lines = [("B x K", f"{OURS}, ms", "better plain form", "its ms", f"{OURS} / it")]
        for entry in report["small"]:
            seconds = entry["seconds"]
            lines.append(
                (
                    f"{entry['anchors']} x {entry['keys']}",
                    spread([1e3 * x for x in seconds[OURS]]),
                    entry["best"],
                    spread([1e3 * x for x in seconds[entry["best"]]]),
                    spread(entry["ratios"]),
                )
            )
        parts.append(table(lines))
    return "\n\n".join(parts)


def table(lines: list[tuple[str, ...]]) -> str:
    """A Markdown table; the first line is its head."""
    text = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([text[0], "|" + " --- |" * len(lines[0]), *text[1:]])


def with_figures(page: str, figures: str) -> str:
    """The page with these figures between its two marks."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise SystemExit(f"{PAGE} must hold the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}"


def figures_of(entry: dict[str, Any]) -> LossFigures:
    """What was written to the file, as it was before."""
    values = dict(entry)
    values["problem"] = LossProblem(**entry["problem"])
    values["forms"] = [FormFigures(**form) for form in entry["forms"]]
    return LossFigures(**values)


def megabytes(count: int | None) -> str:
    return "-" if count is None else short(count / 1e6)


def tell(text: str) -> None:
    print(f"  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
