"""Studies of label enhancement whose result is a picture: sweeps of a weight, and convergence."""

from __future__ import annotations

import abc
import csv
import dataclasses
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.enhancement import ConLE
from jaxmlcl.errors import ConfigError, DataError, UserError
from jaxmlcl.evaluation import distribution_measures
from jaxmlcl.io import write_atomic
from jaxmlcl.report import Panel, curves_plot
from jaxmlcl.studies._enhancement import (
    EVERY,
    MEASURES,
    DistributionSet,
    Report,
    checksum_of,
    opened_set,
    why_empty,
)
from jaxmlcl.studies._files import study_name
from jaxmlcl.studies._sections import figure, replace_section

# What fits of one program can differ in, beside rows and seeds.
OVERRIDES = ("lambda_1", "lambda_2", "temperature", "margin", "learning_rate")


@dataclasses.dataclass(frozen=True)
class _OneSet(abc.ABC):
    """What both kinds have in common: one set, one record, one picture."""

    title: str
    text: str
    data: DistributionSet
    enhancer: ConLE
    seeds: tuple[int, ...]

    def plan(self, only: Sequence[str]) -> dict[str, str]:
        """One cell, the set."""
        self._check(only)
        return {self.data.name: f"{len(self.seeds)} seeds, one program"}

    def finished(self, folder: Path, only: Sequence[str]) -> bool:
        """Whether there are figures."""
        self._check(only)
        return self._read(folder) is not None

    def run(self, folder: Path, only: Sequence[str], report: Report) -> None:
        """Run it, unless it is finished or the set is not at hand."""
        self._check(only)
        try:
            checksum = checksum_of(self.data)
            if (self._read(folder) or {}).get("data") == checksum:
                return
            rows = opened_set(self.data)
        except DataError as error:
            report(f"{self.data.name}: left out: {error}")
            return
        started = time.perf_counter()
        record = {"what": self._describe(), "data": checksum, **self._measure(*rows)}
        record["seconds"] = time.perf_counter() - started
        write_atomic(folder / f"{self.data.name}.json", json.dumps(record) + "\n")
        report(f"{self.data.name}: {record['seconds']:.1f} s")

    def write(self, name: str, folder: Path, document: Path, only: Sequence[str]) -> list[Path]:
        """The study's part of the document, and CSV and picture beside it."""
        self._check(only)
        asked, name = name, study_name(name)
        record = self._read(folder)
        place = document.parent / document.stem
        table, picture = place / f"{name}.csv", place / f"{name}.png"
        head = f"## {self.title}\n\n{self.text.strip()}\n\nMade by `jaxmlcl reproduce {asked}`"
        if record is None:
            replace_section(document, name, f"{head}: {self.data.name}, {why_empty(self.data)}.\n")
            return [document]
        write_atomic(table, self._csv(record))
        write_atomic(picture, curves_plot(self._panels(record)))
        link = f"[{table.name}]({table.relative_to(document.parent)})"
        seeds = ", ".join(map(str, self.seeds))
        text = (
            f"{head}, {record['seconds']:.0f} s; every seed ({seeds}): {link}. Lines are means "
            f"over the seeds, shades their range.\n\n"
            f"![{self.title}]({picture.relative_to(document.parent)})\n\n{self._table(record)}\n"
        )
        replace_section(document, name, text)
        return [document, table, picture]

    def _check(self, only: Sequence[str]) -> None:
        for pattern in only:
            if pattern not in ("*", self.data.name):
                raise UserError(
                    f"reproduce: nothing is called {pattern} in this study; it is of one set, "
                    f"{self.data.name}"
                )

    def _describe(self) -> str:
        parameters = ", ".join(f"{k}={v!r}" for k, v in sorted(self.enhancer.get_params().items()))
        return f"{type(self).__name__} ConLE({parameters}) {self.seeds} {self._extra()}"

    def _read(self, folder: Path) -> dict[str, Any] | None:
        try:
            path = folder / f"{self.data.name}.json"
            stored = json.loads(path.read_text(encoding="utf-8"))
            return stored if stored["what"] == self._describe() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @abc.abstractmethod
    def _extra(self) -> str:
        """What else decides the figures."""

    @abc.abstractmethod
    def _measure(
        self, features: np.ndarray, labels: np.ndarray, true: np.ndarray
    ) -> dict[str, Any]:
        """The record: lists of numbers."""

    @abc.abstractmethod
    def _csv(self, record: dict[str, Any]) -> str:
        """The record as a table of all seeds."""

    @abc.abstractmethod
    def _panels(self, record: dict[str, Any]) -> list[Panel]:
        """The picture."""

    @abc.abstractmethod
    def _table(self, record: dict[str, Any]) -> str:
        """The Markdown table."""


@dataclasses.dataclass(frozen=True)
class SensitivityStudy(_OneSet):
    """Each of several weights takes every value while the others stay, all in one program."""

    weights: tuple[str, ...] = ("lambda_1", "lambda_2")
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.weights or not self.values or not self.seeds:
            raise ConfigError("study: needs weights, values and seeds")
        for weight in self.weights:
            if weight not in OVERRIDES:
                raise ConfigError(
                    f'study: weight "{weight}" is none of {", ".join(OVERRIDES)}, which fits of '
                    "one program can differ in"
                )

    def _extra(self) -> str:
        return f"{self.weights} {self.values}"

    def _measure(
        self, features: np.ndarray, labels: np.ndarray, true: np.ndarray
    ) -> dict[str, Any]:
        cases = [(w, v, s) for w in self.weights for v in self.values for s in self.seeds]
        overrides = {
            weight: [v if w == weight else getattr(self.enhancer, weight) for w, v, _ in cases]
            for weight in self.weights
        }
        rows = [np.arange(len(features))] * len(cases)
        found = self.enhancer.fit_many(features, labels, rows, [s for *_, s in cases], overrides)
        shape = (len(self.weights), len(self.values), len(self.seeds))
        measures = [distribution_measures(one, true) for one in found]
        return {
            name: np.reshape([float(one[name]) for one in measures], shape).tolist()
            for name in EVERY
        }

    def _csv(self, record: dict[str, Any]) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["weight", "value", "seed", *EVERY])
        for i, weight in enumerate(self.weights):
            for j, value in enumerate(self.values):
                for k, seed in enumerate(self.seeds):
                    figures = [f"{record[name][i][j][k]:.8g}" for name in EVERY]
                    writer.writerow([weight, value, seed, *figures])
        return buffer.getvalue()

    def _panels(self, record: dict[str, Any]) -> list[Panel]:
        return [
            Panel(
                heading,
                "value of the weight",
                np.array(self.values),
                {w: np.array(record[name][i]).T for i, w in enumerate(self.weights)},
                logarithmic=True,
            )
            for name, heading in MEASURES.items()
        ]

    def _table(self, record: dict[str, Any]) -> str:
        lines = [
            "| weight | value | " + " | ".join(MEASURES.values()) + " |",
            "| --- | --- |" + " --- |" * len(MEASURES),
        ]
        for i, weight in enumerate(self.weights):
            for j, value in enumerate(self.values):
                cells = " | ".join(figure(record[name][i][j]) for name in MEASURES)
                lines.append(f"| {weight} | {value:g} | {cells} |")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class ConvergenceStudy(_OneSet):
    """Objective, labels' mass and measures after every epoch, far beyond where training stops.

    Curves are of distributions as they are trained; what is recovered is flattened besides, and
    stands in a row of its own.
    """

    every: int = 1

    def __post_init__(self) -> None:
        if not self.seeds or not 1 <= self.every <= self.enhancer.epochs:
            raise ConfigError(
                f"study: needs seeds, and every ({self.every}) from 1 to the epochs "
                f"({self.enhancer.epochs})"
            )

    def _extra(self) -> str:
        return f"{self.every}, recovered"

    def _measure(
        self, features: np.ndarray, labels: np.ndarray, true: np.ndarray
    ) -> dict[str, Any]:
        rows = [np.arange(len(features))] * len(self.seeds)
        stopped = self.enhancer.fit_steps(features, labels, rows, self.seeds)
        found = self.enhancer.fit_many(features, labels, rows, self.seeds)
        recovered = [distribution_measures(one, true) for one in found]
        record: dict[str, Any] = {
            "stopped": stopped.tolist(),
            "recovered": {
                "mass": [float((one * labels).sum(1).mean()) for one in found],
                **{name: [float(one[name]) for one in recovered] for name in EVERY},
            },
            "objective": [],
            "mass": [],
            **{name: [] for name in EVERY},
        }
        for seed in self.seeds:  # one after the other: all distributions of a fit are held
            followed = self.enhancer.trajectory(features, labels, [seed], every=self.every)
            record["steps"] = followed.steps.tolist()
            record["objective"].append(followed.objective[0].tolist())
            record["mass"].append(followed.mass[0].tolist())
            measures = [
                distribution_measures(one / one.sum(-1, keepdims=True), true)
                for one in followed.distributions[0].astype(np.float64)
            ]
            for name in EVERY:
                record[name].append([float(one[name]) for one in measures])
        return record

    def _csv(self, record: dict[str, Any]) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        names = ["objective", "mass", *EVERY]
        writer.writerow(["seed", "step", *names])
        for k, seed in enumerate(self.seeds):
            for j, step in enumerate(record["steps"]):
                writer.writerow([seed, step, *(f"{record[name][k][j]:.8g}" for name in names)])
            found = [f"{record['recovered'][name][k]:.8g}" for name in names[1:]]
            writer.writerow([seed, "recovered", "", *found])
        return buffer.getvalue()

    def _panels(self, record: dict[str, Any]) -> list[Panel]:
        mark = float(np.mean(record["stopped"]))
        steps = np.array(record["steps"], float)
        shown = {"objective": "objective", "canberra": "Canberra", "mass": "mass of the labels"}
        return [
            Panel(heading, "step", steps, {heading: np.array(record[name])}, mark=mark)
            for name, heading in shown.items()
        ]

    def _table(self, record: dict[str, Any]) -> str:
        steps = np.array(record["steps"])
        stop = int(np.argmin(np.abs(steps - np.mean(record["stopped"]))))
        oracle = int(np.argmin(np.mean(record["canberra"], 0)))
        rows = {
            "where the rule stops": stop,
            "oracle: least Canberra, chosen by the truth": oracle,
            "last": len(steps) - 1,
        }
        lines = [
            "| | step | objective | mass | " + " | ".join(MEASURES.values()) + " |",
            "| --- | --- | --- | --- |" + " --- |" * len(MEASURES),
        ]
        for title, place in rows.items():
            cells = [figure([run[place] for run in record["objective"]])]
            cells += [figure([run[place] for run in record["mass"]])]
            cells += [figure([run[place] for run in record[name]]) for name in MEASURES]
            lines.append(f"| {title} | {steps[place]} | " + " | ".join(cells) + " |")
        if self.enhancer.calibrate:
            told = [figure(record["recovered"][name]) for name in ("mass", *MEASURES)]
            lines.insert(
                3, "| there, flattened: what is recovered | | | " + " | ".join(told) + " |"
            )
        stops = ", ".join(map(str, record["stopped"]))
        note = f"\n\nThe rule stopped the {len(self.seeds)} seeds after {stops} steps."
        return "\n".join(lines) + note
