"""`jaxmlcl sweep CONFIG --grid FIELD=A,B`: train variants, and rank them on validation."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmlcl.cli import Parser
from jaxmlcl.cli.train import resolve, use_precision, with_absolute_root
from jaxmlcl.errors import ConfigError, UserError
from jaxmlcl.io import lock_folder, write_atomic

if TYPE_CHECKING:
    from jaxmlcl.config import Axis, Data, Experiment
    from jaxmlcl.data.source import Source
    from jaxmlcl.training.population import Trial

_MEASURES = (
    "map",
    "micro_f1",
    "macro_f1",
    "example_f1",
    "hamming_accuracy",
    "precision_at_1",
    "loss",
)
_SHOWN = 30  # rows of the table

_ABOUT = """\
Train variants of CONFIG's experiment and rank them by a measure on the validation split; the test
split is not opened. Variants whose programs have the same shapes are trained in one program, and
stages that variants have in common once. FIELD is a dotted path as in `jaxmlcl config CONFIG`;
stages.*.objective.temperature means the field of every stage that has it, A+B means both fields.
Any --FIELD VALUE of `jaxmlcl train CONFIG --help`, such as --data.root FOLDER, may be given too.
Finished runs are kept in
FOLDER/trials.jsonl: the same command goes on where it was stopped.
"""


class _Run(NamedTuple):
    """One trial with one seed."""

    choice: tuple[str, ...]
    seed: int
    experiment: Experiment
    key: str
    """What its result depends on, as text."""


def run(words: list[str]) -> None:
    """Sweep, then print a table and the command that trains the best."""
    parser = _parser()
    if {"-h", "--help"} & set(words):
        parser.print_help()
        return
    own, rest = _parted(parser, words)
    options = parser.read(own)
    resolved = resolve("sweep", rest, _ABOUT)
    if resolved is None:
        return
    from jaxmlcl.config import draw_trials, parse_axis

    base = with_absolute_root(resolved.experiment)
    axes = [parse_axis(base, text) for text in options.grid]
    _check_axes(axes, resolved.flags)
    if not axes and options.seeds is None:
        raise UserError("give --grid FIELD=A,B or --seeds 0,1: there is nothing to vary")
    stage = _stage(base, options.stage)
    if options.at_once is not None and options.at_once < 1:
        raise UserError(f"--at-once must be at least 1, not {options.at_once}")
    needed = _needed(base, stage)
    for axis in axes:
        if not any(_concerns(leaf.path, needed) for leaf in axis.fields):
            raise ConfigError(f"--grid {axis.name}: stage {stage} does not depend on it")
    seeds = [base.seed] if options.seeds is None else options.seeds
    choices = draw_trials(axes, options.trials, options.sweep_seed) if axes else [()]
    use_precision(base)
    runs = [_run(base, axes, choice, seed, stage, needed) for choice in choices for seed in seeds]
    _check_rows(runs, stage)
    folder = options.output or Path("runs") / f"{base.name}-sweep"
    with _hold(folder):
        known = _read(folder / "trials.jsonl")
        waiting = [one for one in runs if one.key not in known]
        print(
            f"sweep: {_count(len(choices), 'trial')} x {_count(len(seeds), 'seed')}, by validation "
            f"{options.measure} of {stage}; {len(runs) - len(waiting)} of {len(runs)} runs known",
            flush=True,
        )
        if waiting:
            _train(waiting, options.at_once, folder / "trials.jsonl", known, options.measure, stage)
        ranked = _rank(choices, runs, known, stage, options.measure)
        document = {
            "config": resolved.path,
            "flags": resolved.flags,
            "stage": stage,
            "measure": options.measure,
            "seeds": seeds,
            "sweep_seed": options.sweep_seed,
            "grid": [
                {"field": axis.name, "fields": [leaf.path for leaf in axis.fields]}
                | ({"range": axis.range} if axis.range else {"values": axis.values})
                for axis in axes
            ],
            "data": {name: _fingerprint(base.data_of(name)) for name in needed},
            "trials": [_described(axes, one) for one in ranked],
        }
        best = ranked[0]
        if best["error"] is None:
            flags = [word for axis, text in _pairs(axes, best) for word in axis.flags(text)]
            command = ["jaxmlcl", "train", resolved.path, *resolved.flags, *flags]
            document["best"] = shlex.join(command)
        path = folder / "sweep.json"
        write_atomic(path, json.dumps(document, indent=1) + "\n")
    for line in _table(axes, ranked, options.measure, len(seeds)):
        print(line)
    print(f"written: {path}")
    if "best" in document:
        print(f"best: {document['best']}")
    else:
        raise UserError(f"every trial failed; the first: {best['error']}")


def _parser() -> Parser:
    parser = Parser("jaxmlcl sweep CONFIG", _ABOUT)
    parser.add_argument(
        "--grid",
        metavar="FIELD=A,B",
        action="append",
        default=[],
        help="values of a field, or FIELD=uniform(LOW,HIGH), FIELD=log(LOW,HIGH); may be repeated",
    )
    parser.add_argument(
        "--trials",
        metavar="N",
        type=int,
        help="so many distinct random combinations (default: all of them)",
    )
    parser.add_argument(
        "--seeds",
        metavar="S,S",
        type=_seeds,
        help="seeds with which each trial is trained (default: the experiment's)",
    )
    parser.add_argument(
        "--measure", choices=_MEASURES, default="map", help="what ranks (default: map)"
    )
    parser.add_argument(
        "--stage",
        metavar="NAME",
        help="stage that is measured; only what it needs is trained (default: the main one)",
    )
    parser.add_argument(
        "--at-once",
        metavar="N",
        type=int,
        help="most variants in one program (default: 4 on a CPU, more on an accelerator)",
    )
    parser.add_argument(
        "--sweep-seed", metavar="S", type=int, default=0, help="seed of the draws (default: 0)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        help="where sweep.json and trials.jsonl go (default: runs/NAME-sweep)",
    )
    return parser


def _parted(parser: Parser, words: list[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and those of the experiment."""
    takes = {
        name: action.nargs != 0 for action in parser._actions for name in action.option_strings
    }
    own: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(words):
        name, equals, _ = words[position].partition("=")
        count = 1
        if name in takes:
            count += takes[name] and not equals
            own += words[position : position + count]
        else:
            rest.append(words[position])
        position += count
    return own, rest


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a list such as 0,1,2') from None
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f'"{text}" names a seed twice')
    return seeds


def _check_axes(axes: Sequence[Axis], flags: Sequence[str]) -> None:
    given = {word.partition("=")[0].replace("_", "-") for word in flags if word.startswith("--")}
    seen: set[str] = set()
    for axis in axes:
        for leaf in axis.fields:
            name = f"--{leaf.path.replace('_', '-')}"
            if leaf.path == "seed":
                raise ConfigError("--grid seed: write --seeds 0,1")
            if leaf.path in seen or name in given:
                raise ConfigError(f"--grid {axis.name}: {name} is set more than once")
            seen.add(leaf.path)


def _stage(experiment: Experiment, wanted: str | None) -> str:
    """The stage that is measured."""
    from jaxmlcl.training.population import main_stage
    from jaxmlcl.training.splits import data_field

    name = main_stage(experiment) if wanted is None else wanted
    able = [name for name, stage in experiment.stages.items() if stage.objective.gives_scores]
    if name not in able:
        raise ConfigError(
            f'--stage: stage "{name}" gives no label scores; those that do: '
            f"{', '.join(able) or 'none'}"
        )
    if experiment.data_of(name).validation is None:
        where = data_field(experiment, name)
        raise ConfigError(
            f"{where}.validation: the experiment names no validation split; "
            f"give --{where.replace('_', '-')}.validation"
        )
    return name


def _needed(experiment: Experiment, name: str) -> list[str]:
    """The stages that a stage depends on, itself included, in order."""
    found, waiting = set(), [name]
    while waiting:
        stage = experiment.stages[waiting[-1]]
        found.add(waiting.pop())
        waiting += [*stage.duration.flops_of, *filter(None, [stage.starts_from])]
    return [stage for stage in experiment.stages if stage in found]


def _concerns(path: str, stages: Sequence[str]) -> bool:
    parts = path.split(".")
    return parts[0] != "stages" or parts[1] in stages


@functools.cache
def _opened(data: Data) -> tuple[Source, Source | None]:
    from jaxmlcl.training.splits import open_split

    train = open_split(data, "train")
    return train, open_split(data, "validation") if data.validation else None


@functools.cache
def _fingerprint(data: Data) -> dict[str, str]:
    """Of the splits of some data that are used."""
    train, validation = _opened(data)
    found = {"train": train.metadata.fingerprint}
    return found | ({"validation": validation.metadata.fingerprint} if validation else {})


def _run(
    base: Experiment,
    axes: Sequence[Axis],
    choice: tuple[str, ...],
    seed: int,
    stage: str,
    needed: Sequence[str],
) -> _Run:
    from jaxmlcl.config import override, to_json
    from jaxmlcl.training.experiment import VOLATILE

    flags = [word for axis, text in zip(axes, choice, strict=True) for word in axis.flags(text)]
    experiment = override(base, flags) if flags else base
    stages = {name: experiment.stages[name] for name in needed}
    # One that is not trained here, or only written, cannot make a difference.
    experiment = dataclasses.replace(
        experiment, stages=stages, main=stage, seed=seed, profile=None, workdir=None
    )
    described = json.loads(to_json(experiment))
    for path in VOLATILE:
        _drop(described, path.split("."))
    found = {name: _fingerprint(experiment.data_of(name)) for name in needed}
    key = json.dumps({"experiment": described, "data": found}, sort_keys=True)
    return _Run(choice, seed, experiment, key)


def _drop(tree: dict[str, Any], path: Sequence[str]) -> None:
    """Take a field away, where it is there; * stands for any name."""
    head, *rest = path
    for name in list(tree) if head == "*" else [head]:
        if not rest:
            tree.pop(name, None)
        elif isinstance(tree.get(name), dict):
            _drop(tree[name], rest)


def _check_rows(runs: Sequence[_Run], stage: str) -> None:
    """Refuse to rank on rows that are trained on."""
    from jaxmlcl.training.splits import check_selection

    seen = []
    for experiment in (one.experiment for one in runs):
        data = {name: experiment.data_of(name) for name in experiment.stages}
        if data not in seen:
            seen.append(data)
            opened = {name: _opened(found) for name, found in data.items()}
            check_selection(experiment, opened, stage)


@contextlib.contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """The sweep's folder, for this process alone."""
    try:
        lock = lock_folder(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder with -o"
        ) from None
    if lock is None:
        raise UserError(
            f"{folder}: another sweep is running there; wait for it, or choose another with -o"
        )
    with lock:
        yield


def _read(path: Path) -> dict[str, Any]:
    """The finished runs by key; a line that was cut off by a kill is taken away."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    rows, lines = {}, text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: not a finished run; remove the line, or choose "
                    "another folder with -o"
                ) from None
            write_atomic(path, "".join(lines[:-1]))
            return rows
    if lines and not lines[-1].endswith("\n"):
        # Cut off before its end of line: the next run would be written behind it.
        write_atomic(path, text + "\n")
    return rows


def _train(
    runs: Sequence[_Run],
    at_once: int | None,
    path: Path,
    known: dict[str, Any],
    measure: str,
    stage: str,
) -> None:
    """Train what is missing; each run is on the disk as soon as it is finished."""
    from jaxmlcl.cli.console import make_console
    from jaxmlcl.training.population import train_population

    console = make_console()
    finished = len(known)

    def done(position: int, trial: Trial) -> None:
        one = runs[position]
        row = {
            "key": one.key,
            "seed": one.seed,
            "error": trial.error,
            "stages": {
                name: {
                    "steps": outcome.steps,
                    "best_step": outcome.best_step,
                    "loss": _number(outcome.loss),
                    "validation": {
                        name: _number(value) for name, value in outcome.validation.items()
                    },
                }
                for name, outcome in trial.stages.items()
            },
        }
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        known[one.key] = row
        values = ", ".join(one.choice) or "as it is"
        told = trial.error
        if told is None:
            told = f"validation {measure} {trial.stages[stage].validation[measure]:.4f}"
        console.line(f"[{len(known) - finished}/{len(runs)}] {values}, seed {one.seed}: {told}")

    train_population([one.experiment for one in runs], at_once=at_once, console=console, done=done)


def _rank(
    choices: Sequence[tuple[str, ...]],
    runs: Sequence[_Run],
    known: Mapping[str, Any],
    stage: str,
    measure: str,
) -> list[dict[str, Any]]:
    """The trials, best mean first; those with a failed seed last."""
    ranked = []
    for choice in choices:
        rows = {one.seed: known[one.key] for one in runs if one.choice == choice}
        errors = [row["error"] for row in rows.values() if row["error"] is not None]
        trial: dict[str, Any] = {"choice": choice, "error": errors[0] if errors else None}
        if not errors:
            reached = {seed: row["stages"][stage] for seed, row in rows.items()}
            values = {seed: found["validation"][measure] for seed, found in reached.items()}
            if None in values.values():
                trial["error"] = f"{stage}: its validation {measure} is not a number"
            else:
                trial |= {
                    "mean": statistics.fmean(values.values()),
                    "std": statistics.stdev(values.values()) if len(values) > 1 else None,
                    "by_seed": {str(seed): value for seed, value in values.items()},
                    "best_step": {str(seed): one["best_step"] for seed, one in reached.items()},
                }
        ranked.append(trial)
    sign = 1 if measure == "loss" else -1
    return sorted(
        ranked,
        key=lambda trial: math.inf if trial["error"] is not None else sign * trial["mean"],
    )


def _pairs(axes: Sequence[Axis], trial: Mapping[str, Any]) -> list[tuple[Axis, str]]:
    return list(zip(axes, trial["choice"], strict=True))


def _described(axes: Sequence[Axis], trial: dict[str, Any]) -> dict[str, Any]:
    return {**trial, "choice": {axis.name: text for axis, text in _pairs(axes, trial)}}


def _table(
    axes: Sequence[Axis], ranked: Sequence[dict[str, Any]], measure: str, seeds: int
) -> list[str]:
    """Aligned lines, best first."""
    short = [axis.name.split(".")[-1] for axis in axes]
    titles = [
        name if short.count(name) == 1 else axis.name
        for axis, name in zip(axes, short, strict=True)
    ]
    rows = [["", *titles, measure + (f" (mean ± std of {seeds})" if seeds > 1 else "")]]
    for rank, trial in enumerate(ranked[:_SHOWN], 1):
        if trial["error"] is not None:
            figures = f"failed: {trial['error']}"
        else:
            figures = f"{trial['mean']:.4f}"
            if trial["std"] is not None:
                figures += f" ± {trial['std']:.4f}"
        rows.append([str(rank), *trial["choice"], figures])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column == 0 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if len(ranked) > _SHOWN:
        lines.append(f"and {len(ranked) - _SHOWN} more")
    return lines


def _number(value: float) -> float | None:
    """A number as JSON knows it."""
    return value if math.isfinite(value) else None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
