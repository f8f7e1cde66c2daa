"""From a run directory to the page: what is shown, in which order, and how numbers are written."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

import jaxmlcl
from jaxmlcl.io import write_atomic
from jaxmlcl.report._format import DASH, amount_of_bytes, count, decimal, duration
from jaxmlcl.report._plots import Line, bar_chart, line_chart
from jaxmlcl.report._read import Run, clean, configured_stages, number, read_run
from jaxmlcl.report._representations import show_maps, show_similarities
from jaxmlcl.report._samples import show_samples

PROTOCOL_METRICS = {
    "hamming_accuracy": "Hamming acc.",
    "example_f1": "Example F1",
    "micro_f1": "Micro F1",
    "macro_f1": "Macro F1",
}
FREE_METRICS = {"map": "mAP", "precision_at_1": "P@1"}
OTHER_PROTOCOLS = {
    "per_label": "a threshold per label, chosen on validation",
    "cardinality": "one threshold, predicting as many labels as are true on validation",
    "top_k": "the k highest scores of each row, k chosen on validation",
    "fixed_0.5": "fixed threshold 0.5",
    "paper": "paper protocol (threshold chosen on the test set)",
}
LABEL_COLUMNS = {
    "positives": "Positives",
    "average_precision": "AP",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "threshold": "Threshold",
}
ALL_LABELS = 60  # with more labels than this, only the ends of the ranking are shown
ENDS = 30  # how many at each end


def build_report(workdir: Path, *, samples: Mapping[str, Any] | None = None) -> str:
    """The report of a run as one HTML page that needs nothing else.

    The page has no scripts and asks the network for nothing. Parts of a run that do not exist
    yet are left out with a sentence that names the command that makes them. The same files give
    the same text.

    Args:
      workdir: the run directory.
      samples: what to show of the evaluated split: "ids" [m] and "inputs", uint8 [m, H, W, C] with
        C = 1 or 3 for images and None for vectors. They are matched to the predictions by id.
        None: a table of the first samples that have predictions.

    Returns:
      The page as text.

    Raises:
      UserError: the directory is not a run, or a file in it is damaged.
      ValueError: `samples` has inputs that are not images, or not one for every id.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / "experiment.json").write_text('{"name": "first try"}') > 0
      True
      >>> "<h1>first try</h1>" in build_report(folder)
      True
    """
    workdir = Path(workdir)
    run = read_run(workdir)
    shown = show_samples(run, samples)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("jaxmlcl.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=str(run.experiment.get("name") or workdir.resolve().name or "run"),
        command=shlex.quote(str(workdir)),
        split=run.split,
        overview=_overview(run),
        results=_results(run),
        curves=_curves(run),
        groups_of_labels=_labels(run),
        similarities=show_similarities(run),
        maps=show_maps(run),
        samples=shown,
        version=jaxmlcl.__version__,
        configuration=json.dumps(run.experiment, indent=2, ensure_ascii=False),
    )
    return clean(page)


def write_report(workdir: Path, *, samples: Mapping[str, Any] | None = None) -> Path:
    """Build the report and write it, whole or not at all.

    Args:
      workdir: the run directory.
      samples: see `build_report`.

    Returns:
      Path of the page, WORKDIR/report.html.

    Raises:
      UserError: the directory is not a run, or a file in it is damaged.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / "experiment.json").write_text("{}") > 0
      True
      >>> write_report(folder).name
      'report.html'
    """
    path = Path(workdir) / "report.html"
    write_atomic(path, build_report(workdir, samples=samples))
    return path


def _overview(run: Run) -> dict[str, Any]:
    """The first paragraph and the table of stages."""
    configured = configured_stages(run.experiment)
    stages = []
    for name, entry in run.stages.items():
        parts = {k: v for k, v in _object(entry.get("bytes")).items() if k != "total"}
        stages.append(
            {
                "name": name,
                "objective": str(entry.get("objective", DASH)),
                "detail": ", ".join(_brief(entry)),
                "starts_from": run.parent(name) or DASH,
                "planned": _text(configured.get(name, {}).get("duration")) or DASH,
                "steps": count(entry.get("steps")),
                "best": count(entry.get("best_step")),
                "epochs": count(entry.get("epochs")),
                "batch_size": count(entry.get("batch_size")),
                "gflop_per_step": count(entry.get("gflop_per_step")),
                "gflop_total": count(entry.get("gflop_total")),
                "parameters": count(entry.get("parameters")),
                "state": amount_of_bytes(sum(map(number, parts.values())) if parts else None),
                "state_parts": ", ".join(f"{k} {amount_of_bytes(v)}" for k, v in parts.items()),
                "time": duration(entry.get("train_seconds")),
                "compile": duration(entry.get("compile_seconds")),
            }
        )
    numerals = ("No", "One", "Two", "Three", "Four", "Five", "Six")
    numeral = dict(enumerate(numerals)).get(len(stages), str(len(stages)))
    total = count(sum(number(entry.get("gflop_total")) for entry in run.stages.values()))
    return {
        "stages": stages,
        "how_many": f"{numeral} {'stage was' if len(stages) == 1 else 'stages were'}",
        "trained": any("steps" in entry for entry in run.stages.values()),
        "gflop": total if total not in (DASH, "0") else "",
        "facts": [fact for fact in _facts(run) if fact["text"]],
    }


def _facts(run: Run) -> Iterator[dict[str, Any]]:
    """Data, seed, software and device, as far as the run has recorded them."""

    def fact(name: str, text: Any, code: bool = False, small: str = "") -> dict[str, Any]:
        return {"name": name, "text": _text(text), "code": code, "small": small}

    first = next(iter(run.stages.values()), {})
    samples = number(first.get("steps")) * number(first.get("batch_size"))
    epochs = number(first.get("epochs"))
    # The trainer counts an epoch as one pass over the rows.
    trained = samples / epochs if epochs else math.nan
    rows = {"train": f"{trained:,.0f} rows"} if math.isfinite(trained) else {}
    evaluated = run.evaluation.get("data", {})
    if evaluated:
        counts = [count(evaluated.get(field)) for field in ("num_rows", "num_labels")]
        rows[run.split] = "{} rows, {} labels".format(*counts)
    sources = _object(run.experiment.get("data"))
    names = {"train": "Training", "validation": "Validation", "test": "Test"}
    for split, name in names.items():
        uri = sources.get(split) or (evaluated.get("source") if split == run.split else None)
        yield fact(f"{name} data", uri, code=True, small=rows.get(split, ""))
    fingerprint = _text(evaluated.get("fingerprint"))[:16]
    yield fact(f"Fingerprint of the {run.split} data", fingerprint, code=True)
    yield fact("Seed", run.experiment.get("seed"))
    machines = [_object(entry["machine"]) for entry in run.stages.values() if "machine" in entry]
    if machine := machines[-1] if machines else {}:
        devices = count(math.prod(map(number, _object(machine.get("mesh")).values())))
        cores = f"{_text(machine.get('cpu_cores'))} CPU cores, JAX {_text(machine.get('jax'))}"
        yield fact(
            "Device",
            f"{devices} \N{MULTIPLICATION SIGN} {_text(machine.get('device'))}",
            small=cores,
        )


def _brief(entry: dict[str, Any]) -> Iterator[str]:
    """Objective and length of a stage in a few words."""
    if "objective" in entry:
        yield str(entry["objective"])
    if "steps" in entry:
        yield f"{count(entry['steps'])} steps of {count(entry.get('batch_size'))}"


def _results(run: Run) -> dict[str, Any] | None:
    """The tables of scores: one row for every scoring stage."""
    if not run.results:
        return None
    stages = list(run.results)
    gflop = {
        stage: sum(number(run.stages[name].get("gflop_total")) for name in run.lineage(stage))
        if all(name in run.stages for name in run.lineage(stage))
        else math.nan
        for stage in stages
    }

    groups = run.stages_by_data()
    group_of = {stage: index for index, group in enumerate(groups) for stage in group}
    peers = [group_of[stage] for stage in stages]

    def protocol_cells(protocol: str) -> list[list[dict[str, Any]]]:
        values = {stage: run.results[stage].get("protocols", {}).get(protocol) for stage in stages}
        return [
            _column(
                [(values[stage] or {}).get(metric) for stage in stages],
                peers,
                [((values[stage] or {}).get("thresholds") or {}).get(metric) for stage in stages],
            )
            for metric in PROTOCOL_METRICS
        ]

    validated = any("best_on_val" in result.get("protocols", {}) for result in run.results.values())
    free = [
        _column(
            [run.results[stage].get("threshold_free", {}).get(metric) for stage in stages], peers
        )
        for metric in FREE_METRICS
    ]

    def rows(columns: list[Any]) -> list[dict[str, Any]]:
        return [
            {
                "stage": stage,
                "detail": _detail(run, stage) + _own_data(run, stage),
                "cells": [column[index] for column in columns],
                "gflop": count(gflop[stage]),
            }
            for index, stage in enumerate(stages)
        ]

    return {
        "validated": validated,
        "columns": [*FREE_METRICS.values(), *(PROTOCOL_METRICS.values() if validated else [])],
        "protocol_columns": list(PROTOCOL_METRICS.values()),
        "rows": rows([*free, *(protocol_cells("best_on_val") if validated else [])]),
        "others": [
            {"name": name, "rows": rows(protocol_cells(protocol))}
            for protocol, name in OTHER_PROTOCOLS.items()
            if any(protocol in run.results[stage].get("protocols", {}) for stage in stages)
        ],
        "mixed": len(groups) > 1,
        "several": any(len(group) > 1 for group in groups),
    }


def _detail(run: Run, stage: str) -> str:
    """What the stage minimised, after what."""
    objectives = [
        str(run.stages.get(name, {}).get("objective", name)) for name in run.lineage(stage)
    ]
    return " → ".join(objectives)


def _own_data(run: Run, stage: str) -> str:
    """Where a stage was scored, if not on the data of the main stage."""
    main = run.evaluation.get("data", {})
    data = run.results[stage].get("data", main)
    if data == main:
        return ""
    counts = [count(data.get(field)) for field in ("num_rows", "num_labels")]
    return ", on {}: {} rows, {} labels".format(_text(data.get("source")), *counts)


def _column(
    values: Sequence[Any], peers: Sequence[int], thresholds: Sequence[Any] | None = None
) -> list[dict[str, Any]]:
    """Cells of one column; the best of each group of peers is marked if there is a choice."""
    texts = [decimal(value) for value in values]
    best = {}
    for group in set(peers):
        numbers = [t for t, peer in zip(texts, peers, strict=True) if peer == group and t != DASH]
        best[group] = max(numbers, key=float) if len(numbers) > 1 else None
    return [
        {
            "text": text,
            "best": text == best[peer],
            "threshold": f"{number(threshold):.2g}" if math.isfinite(number(threshold)) else "",
        }
        for text, peer, threshold in zip(
            texts, peers, thresholds or [None] * len(texts), strict=True
        )
    ]


def _curves(run: Run) -> list[dict[str, Any]]:
    """Charts of every stage that has logged something."""
    maps = [
        values for stage in run.stages for values in [run.series("validation", stage, "map")[1]]
    ]
    seen = np.concatenate([values[np.isfinite(values)] for values in maps]) if maps else np.empty(0)
    # One scale for all stages, so that their mAP can be compared at a glance.
    span = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    pad = max(0.08 * (span[1] - span[0]), 0.01)
    groups = []
    for position, stage in enumerate(run.stages, start=1):
        charts = [
            chart
            for number_, (title, kind, lines, options) in enumerate(_panels(run, stage), start=1)
            if (
                chart := _chart(
                    title,
                    lines,
                    stage,
                    f"curve{position}-{number_}",
                    {"limits": (span[0] - pad, span[1] + pad)} if kind == "map" else options,
                )
            )
        ]
        if charts:
            objective = str(run.stages[stage].get("objective", ""))
            groups.append({"stage": stage, "objective": objective, "charts": charts})
    return groups


def _panels(run: Run, stage: str) -> Iterator[tuple[str, str, list[Line], dict[str, Any]]]:
    """Title, kind, curves and options of every chart a stage may have."""

    def line(kind: str, field: str, name: str, colour: int, dashed: bool = False) -> Line:
        return Line(name, *run.series(kind, stage, field), colour, dashed)

    loss = [line("train", "loss", "training", 1)]
    if np.isfinite((validation := line("validation", "loss", "validation", 2, True)).values).any():
        loss.append(validation)
    yield "Loss", "loss", loss, {}
    yield "Validation mAP", "map", [line("validation", "map", "mAP", 2)], {}
    yield "Learning rate", "rate", [line("train", "learning_rate", "rate", 3)], {}
    norms = line("train", "gradient_norm", "norm", 4)
    positive = norms.values[np.isfinite(norms.values)]
    wide = bool(len(positive) and positive.min() > 0 and positive.max() > 30 * positive.min())
    yield "Gradient norm", "norm", [norms], {"logarithmic": wide}
    fill = [line("train", "queue_fill", "fill", 5)]
    yield "Queue fill", "fill", fill, {"limits": (-0.03, 1.03)}
    yield "Positives per anchor", "pairs", [line("train", "positives_per_anchor", "pairs", 1)], {}
    alike = [
        line("train", "positive_similarity", "positives", 1),
        line("train", "negative_similarity", "other keys", 2, True),
    ]
    yield "Similarity of anchors and keys", "similarity", alike, {}
    best = [line("train", "in_batch_top1", "share", 3)]
    yield "Own key is the batch's best", "top1", best, {"limits": (-0.03, 1.03)}


def _chart(
    title: str, lines: list[Line], stage: str, identity: str, options: dict[str, Any]
) -> dict[str, Any] | None:
    """A figure with its caption, or None if there is nothing to draw."""
    last = [line.values[np.isfinite(line.values)][-1:] for line in lines]
    if not any(len(value) for value in last):
        return None
    spoken = "; ".join(
        f"{line.name} ends at {value[0]:.4g}, step {line.steps[-1]:.0f}"
        for line, value in zip(lines, last, strict=True)
        if len(value)
    )
    description = f"{title} of stage {stage} over training steps: {spoken}"
    svg = line_chart(lines, identity=identity, description=description, **options)
    return {
        "title": title,
        "legend": [
            {
                "name": line.name,
                "colour": line.colour,
                "dashed": line.dashed,
                "last": f"{value[0]:.3g}" if len(value) else DASH,
            }
            for line, value in zip(lines, last, strict=True)
        ],
        "svg": Markup(svg),
    }


def _labels(run: Run) -> list[dict[str, Any]]:
    """Bars and tables of the labels, of one data set after the other."""
    groups = (
        _labels_of(run, group, "labels" if index == 0 else f"labels{index + 1}-")
        for index, group in enumerate(run.stages_by_data())
    )
    return [group for group in groups if group]


def _labels_of(run: Run, stages: list[str], identity: str) -> dict[str, Any] | None:
    """Those of stages on the same data: all labels, or both ends of the ranking."""
    tables = {stage: run.results[stage].get("per_label") or [] for stage in stages}
    tables = {stage: rows for stage, rows in tables.items() if rows}
    if not tables:
        return None
    main = list(tables)[-1]
    names = [str(row.get("label", index)) for index, row in enumerate(tables[main])]
    precision = [number(row.get("average_precision")) for row in tables[main]]
    aligned = {}
    for stage, rows in tables.items():
        # Stages normally score the same labels in the same order; what one lacks becomes dashes.
        by_name = {str(row.get("label", index)): row for index, row in enumerate(rows)}
        same = len(rows) == len(names)
        aligned[stage] = rows if same else [by_name.get(name, {}) for name in names]
    if len(names) <= ALL_LABELS:
        selections = [("", list(range(len(names))))]
    else:
        ranked = sorted(
            (i for i, value in enumerate(precision) if math.isfinite(value)),
            key=lambda i: (-precision[i], i),
        )
        selections = [
            (f"The {len(ranked[:ENDS])} labels with the highest AP", ranked[:ENDS]),
            (f"The {len(ranked[-ENDS:])} labels with the lowest AP", ranked[-ENDS:]),
        ]
    return {
        "main": main,
        "where": _own_data(run, main).removeprefix(", on "),
        "total": len(names),
        "unranked": sum(math.isnan(value) for value in precision),
        "stages": list(tables),
        "columns": list(LABEL_COLUMNS.values()),
        "parts": [
            _label_part(aligned, names, chosen, heading, f"{identity}{index}")
            for index, (heading, chosen) in enumerate(selections, start=1)
            if chosen
        ],
    }


def _label_part(
    tables: dict[str, list[dict[str, Any]]],
    names: list[str],
    chosen: list[int],
    heading: str,
    identity: str,
) -> dict[str, Any]:
    """The chart and the tables of some of the labels."""
    groups = [
        [number(rows[index].get("average_precision")) for index in chosen]
        for rows in tables.values()
    ]
    description = f"Average precision of {len(chosen)} labels for {', '.join(tables)}"
    shown = [names[index] for index in chosen]
    return {
        "heading": heading,
        "short": len(chosen) <= 16,  # the chart fits on a screen and may stay beside the tables
        "svg": Markup(bar_chart(shown, groups, identity=identity, description=description)),
        "tables": [
            {
                "stage": stage,
                "rows": [
                    {
                        "label": names[index],
                        "cells": [
                            count(rows[index].get(field))
                            if field == "positives"
                            else decimal(rows[index].get(field), 2 if field == "threshold" else 3)
                            for field in LABEL_COLUMNS
                        ],
                    }
                    for index in chosen
                ],
            }
            for stage, rows in tables.items()
        ],
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else ""
