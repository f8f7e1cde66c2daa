"""Studies of label enhancement: what enhancers recover, beside the truth and published figures."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmlcl.data.binarise import logical_labels
from jaxmlcl.data.distributions import open_distributions
from jaxmlcl.data.source import find_file, search_places
from jaxmlcl.enhancement import Enhancer, standardize
from jaxmlcl.errors import ConfigError, DataError, UserError
from jaxmlcl.evaluation import (
    LARGER_IS_BETTER,
    average_ranks,
    distribution_measures,
    friedman_test,
    nemenyi_critical_difference,
    wilcoxon_signed_rank,
)
from jaxmlcl.io import write_atomic
from jaxmlcl.report import critical_difference_plot
from jaxmlcl.studies._files import study_name
from jaxmlcl.studies._sections import figure, replace_section

MEASURES = {
    "kl_recovered_true": "KL",
    "chebyshev": "Chebyshev",
    "clark": "Clark",
    "canberra": "Canberra",
    "cosine": "Cosine",
    "intersection": "Intersection",
}
EVERY = {"kl_true_recovered": "KL, true first", **MEASURES}
Report = Callable[[str], None]
Reference = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class DistributionSet:
    """A data set with true distributions; its 0/1 labels follow from them."""

    name: str
    source: str
    """The file; where it is absent the set keeps its rows, without figures of ours."""
    group: str = ""
    """Sets of one group are averaged together, beside all sets."""


@dataclasses.dataclass(frozen=True)
class Recovery:
    """A column: an enhancer, or a function of features and labels."""

    name: str
    build: Callable[[], Enhancer] | Reference
    kind: Literal["method", "beside", "reference"] = "method"
    """Methods are ranked; `beside` stands next to them (another form of one); references are what
    costs nothing."""
    seeds: int | None = None
    """The most seeds that it gets, where one fit takes long; None: as many as the study has."""
    fewer: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The same for single sets; 0: it is not run on them."""


@dataclasses.dataclass(frozen=True)
class EnhancementStudy:
    """Enhancers on data sets: each measure as a table, and ranks over all of them."""

    title: str
    text: str
    sets: tuple[DistributionSet, ...]
    columns: tuple[Recovery, ...]
    seeds: tuple[int, ...]
    protocol: Literal["transductive", "cv10x10", "learner"] = "transductive"
    """`transductive`: all rows are fitted and scored, once a seed. `cv10x10`: ten folds, in ten
    orders: rows of a fold are recovered by what was fitted to the other nine. `learner`: five
    folds, in the order of each seed: what is recovered of four is what `learner` learns from, and
    its predictions for the fifth, from features alone, are scored."""
    learner: Callable[[], Any] | None = None
    """For `learner`: makes what has `fit(features, distributions)` and `predict(features)`."""
    published: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    """Measure, data set and column to the printed figure."""
    misprints: tuple[tuple[str, str, str, str], ...] = ()
    """Measure, set, column and why the printed figure cannot be right."""
    ours: str = "ConLE"
    """The column that ranks are about."""

    def __post_init__(self) -> None:
        if self.protocol not in ("transductive", "cv10x10", "learner"):
            raise ConfigError(
                f'study: protocol "{self.protocol}" is not transductive, cv10x10 or learner'
            )
        if (self.protocol == "learner") != (self.learner is not None):
            raise ConfigError("study: a learner belongs to the protocol learner, which needs one")
        for kind, names in (
            ("data set", [one.name for one in self.sets]),
            ("column", [one.name for one in self.columns]),
        ):
            # They are folders and files.
            if len({_file_name(name) for name in names}) < len(names):
                raise ConfigError(f"study: two names of a {kind} are too alike: {', '.join(names)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("study: needs seeds, each of them once")

    def plan(self, only: Sequence[str]) -> dict[str, str]:
        """SET/COLUMN of every cell, with what it will do."""
        return {
            f"{data.name}/{column.name}": f"{len(self._seeds(column, data))} seeds, {self.protocol}"
            for data, column in self._cells(only)
        }

    def finished(self, folder: Path, only: Sequence[str]) -> bool:
        """Whether any cell has figures."""
        return any(
            "values" in (self._read(folder, data, column) or {})
            for data, column in self._cells(only)
        )

    def run(self, folder: Path, only: Sequence[str], report: Report) -> None:
        """Run the cells that are not finished; sets whose files are absent are passed over."""
        chosen = self._cells(only)
        for data in dict.fromkeys(data for data, _ in chosen):
            columns = [column for one, column in chosen if one is data]
            try:
                checksum = checksum_of(data)
                waiting = [
                    column
                    for column in columns
                    if (self._read(folder, data, column) or {}).get("data") != checksum
                ]
                if not waiting:
                    continue
                rows = opened_set(data)
            except DataError as error:
                report(f"{data.name}: left out: {error}")
                continue
            for column in waiting:
                record = {**self._score(data, column, *rows), "data": checksum}
                path = self._path(folder, data, column)
                write_atomic(path, json.dumps(record, indent=1) + "\n")
                told = record.get("not defined") or "  ".join(
                    f"{heading} {np.mean(record['values'][name]):.4f}"
                    for name, heading in MEASURES.items()
                )
                report(f"{data.name}/{column.name}: {told}  {record['seconds']:.1f} s")

    def write(self, name: str, folder: Path, document: Path, only: Sequence[str]) -> list[Path]:
        """The study's part of the document, and CSV and pictures beside it."""
        asked, name = name, study_name(name)
        place = document.parent / document.stem
        files: dict[Path, str | bytes] = {place / f"{name}.csv": self._csv(folder, only)}
        text = self._markdown(asked, name, folder, only, document, files)
        for path, content in files.items():
            write_atomic(path, content)
        replace_section(document, name, text)
        return [document, *files]

    def _cells(self, only: Sequence[str]) -> list[tuple[DistributionSet, Recovery]]:
        cells = [
            (data, column)
            for data in self.sets
            for column in self.columns
            if column.fewer.get(data.name, 1) > 0
        ]
        for pattern in only:
            if not any(_matches(data, column, pattern) for data, column in cells):
                raise UserError(
                    f"reproduce: nothing is called {pattern} in this study; --plan lists the names"
                )
        return [
            cell for cell in cells if not only or any(_matches(*cell, pattern) for pattern in only)
        ]

    def _seeds(self, column: Recovery, data: DistributionSet) -> tuple[int, ...]:
        if self.protocol == "learner":
            return self.seeds
        if column.kind == "reference":
            return self.seeds[:1]
        if self.protocol == "cv10x10":
            return tuple(range(10))
        most = min(column.seeds or len(self.seeds), column.fewer.get(data.name, len(self.seeds)))
        return self.seeds[:most] if _built(column).seeded else self.seeds[:1]

    def _path(self, folder: Path, data: DistributionSet, column: Recovery) -> Path:
        return folder / data.name / f"{_file_name(column.name)}.json"

    def _describe(self, column: Recovery, data: DistributionSet) -> str:
        protocol = f"{self.protocol} {list(self._seeds(column, data))}"
        if self.learner is not None:
            protocol += f" {_parameters(self.learner())}"
        if column.kind == "reference":
            return f"{column.name} {protocol}"
        return f"{_parameters(_built(column))} {protocol}"

    def _read(self, folder: Path, data: DistributionSet, column: Recovery) -> dict[str, Any] | None:
        try:
            stored = json.loads(self._path(folder, data, column).read_text(encoding="utf-8"))
            whole = "not defined" in stored or set(EVERY) <= set(stored["values"])
            return stored if whole and stored["what"] == self._describe(column, data) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _score(
        self,
        data: DistributionSet,
        column: Recovery,
        features: np.ndarray,
        labels: np.ndarray,
        true: np.ndarray,
    ) -> dict[str, Any]:
        started = time.perf_counter()
        record: dict[str, Any] = {"what": self._describe(column, data)}
        try:
            runs = self._recovered(column, self._seeds(column, data), features, labels)
        except UserError as error:
            return {**record, "not defined": str(error), "seconds": 0.0}
        record["seconds"] = time.perf_counter() - started
        values = [
            [distribution_measures(found, true[rows]) for rows, found in parts] for parts in runs
        ]
        record["values"] = {
            name: [float(np.mean([one[name] for one in parts])) for parts in values]
            for name in EVERY
        }
        return record

    def _recovered(
        self, column: Recovery, seeds: Sequence[int], features: np.ndarray, labels: np.ndarray
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """For every seed the parts that are scored: rows, and what was recovered of them."""
        everything = np.arange(len(features))
        if self.protocol == "learner":
            return [
                [
                    (part, self._learnt(column, features, labels, part, seed))
                    for part in np.array_split(_order(seed, len(features)), 5)
                ]
                for seed in seeds
            ]
        if column.kind == "reference":
            return [[(everything, column.build(features, labels))]]  # type: ignore[call-arg]
        enhancer = _built(column)
        if self.protocol == "transductive":
            found = enhancer.fit_many(features, labels, [everything] * len(seeds), seeds)
            return [[(everything, one)] for one in found]
        orders = [_order(seed, len(features)) for seed in seeds]
        held = [part for order in orders for part in np.array_split(order, 10)]
        rows = [np.sort(np.setdiff1d(everything, part)) for part in held]
        fit_seeds = [seed for seed in seeds for _ in range(10)]
        found = enhancer.fit_many(features, labels, rows, fit_seeds)
        parts = [(part, one[part]) for part, one in zip(held, found, strict=True)]
        return [parts[10 * i : 10 * (i + 1)] for i in range(len(seeds))]

    def _learnt(
        self,
        column: Recovery,
        features: np.ndarray,
        labels: np.ndarray,
        held: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """What a learner says of the rows `held`, from what was recovered of all others."""
        rows = np.setdiff1d(np.arange(len(features)), held)
        x, y = features[rows], labels[rows]
        if column.kind == "reference":
            recovered = column.build(x, y)  # type: ignore[call-arg]
        else:
            recovered = _built(column).fit_many(x, y, [np.arange(len(x))], [seed])[0]
        assert self.learner is not None
        scaled = standardize(features, rows)
        return self.learner().fit(scaled[rows], recovered).predict(scaled[held])

    # What is written.

    def _values(self, folder: Path, only: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
        found = {}
        for data, column in self._cells(only):
            record = self._read(folder, data, column)
            if record is not None:
                found[data.name, column.name] = record
        return found

    def _csv(self, folder: Path, only: Sequence[str]) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["set", "group", "column", "seed", "measure", "value", "seconds", "sha256"])
        for (name, column), record in self._values(folder, only).items():
            data = next(one for one in self.sets if one.name == name)
            made = next(one for one in self.columns if one.name == column)
            spent, checksum = f"{record['seconds']:.3f}", record["data"]
            for measure, values in record.get("values", {}).items():
                for seed, value in zip(self._seeds(made, data), values, strict=True):
                    writer.writerow(
                        [name, data.group, column, seed, measure, f"{value:.8g}", spent, checksum]
                    )
        return buffer.getvalue()

    def _markdown(
        self,
        asked: str,
        name: str,
        folder: Path,
        only: Sequence[str],
        document: Path,
        files: dict[Path, str | bytes],
    ) -> str:
        known = self._values(folder, only)
        cells = self._cells(only)
        sets = [one for one in self.sets if any(one is data for data, _ in cells)]
        columns = [one for one in self.columns if any(one is column for _, column in cells)]
        table = next(iter(files))
        seeds = ", ".join(map(str, self.seeds))
        spread = {
            "transductive": "Fitted to all rows and scored on them; seeds "
            f"{seeds} where anything depends on them",
            "cv10x10": "Ten times ten-fold cross-validation: ± is over the ten orders; n/a, where "
            "an enhancer recovers only rows that it is fitted to",
            "learner": f"Five-fold cross-validation in the order of seeds {seeds}: the learner "
            "sees what was recovered of four folds and predicts the fifth from its features",
        }[self.protocol]
        parts = [
            f"## {self.title}\n",
            self.text.strip() + "\n",
            f"Made by `jaxmlcl reproduce {asked}`; every seed, both orders of KL and the data's "
            f"checksums: [{table.name}]({table.relative_to(document.parent)}).\n",
            f"{spread}. Mean ± standard deviation; in parentheses the printed figure, * where it "
            "cannot be right. KL has the recovered distribution first; rows in which it is "
            "infinite are left out.\n",
        ]
        for measure, heading in MEASURES.items():
            arrow = "larger is better" if measure in LARGER_IS_BETTER else "smaller is better"
            parts.append(f"#### {heading} ({arrow})\n")
            parts.append(self._table(measure, sets, columns, known))
        wrong = [
            f"{EVERY[measure]}, {data}, {column}: {why}"
            for measure, data, column, why in self.misprints
            if any(data == one.name for one in sets) and any(column == one.name for one in columns)
        ]
        if wrong:
            parts.append("Printed figures that cannot be right (*): " + "; ".join(wrong) + ".\n")
        # A column that has figures on no set, by this protocol, is not waited for.
        able = [
            column
            for column in columns
            if any("values" in known.get((one.name, column.name), {}) for one in sets)
        ]
        complete = [
            one for one in sets if all("values" in known.get((one.name, c.name), {}) for c in able)
        ]
        if complete and sum(column.kind == "method" for column in able) > 1:
            parts += self._ranks(name, complete, able, known, document, files)
        seconds = {
            column.name: sum(
                known[one.name, column.name]["seconds"]
                for one in sets
                if (one.name, column.name) in known
            )
            for column in columns
        }
        parts.append(
            "Seconds for all sets and seeds: "
            + ", ".join(f"{column} {value:.0f}" for column, value in seconds.items())
            + ".\n"
        )
        return "\n".join(parts) + "\n"

    def _table(
        self,
        measure: str,
        sets: Sequence[DistributionSet],
        columns: Sequence[Recovery],
        known: Mapping[tuple[str, str], dict[str, Any]],
    ) -> str:
        lines = [
            "| set | " + " | ".join(column.name for column in columns) + " |",
            "| --- |" + " --- |" * len(columns),
        ]
        wrong = {entry[:3] for entry in self.misprints}
        for data in sets:
            shown = []
            for column in columns:
                record = known.get((data.name, column.name), {})
                if "values" in record:
                    text = figure(record["values"][measure])
                else:
                    text = "n/a" if "not defined" in record else "-"
                printed = self.published.get(measure, {}).get(data.name, {}).get(column.name)
                if printed is not None:
                    star = "*" if (measure, data.name, column.name) in wrong else ""
                    text += f" ({figure([printed])}{star})"
                shown.append(text)
            title = data.name
            if not any((data.name, column.name) in known for column in columns):
                title += f", {why_empty(data)}"
            lines.append(f"| {title} | " + " | ".join(shown) + " |")
        return "\n".join(lines) + "\n"

    def _ranks(
        self,
        name: str,
        sets: Sequence[DistributionSet],
        columns: Sequence[Recovery],
        known: Mapping[tuple[str, str], dict[str, Any]],
        document: Path,
        files: dict[Path, str | bytes],
    ) -> list[str]:
        methods = [column.name for column in columns if column.kind == "method"]
        references = [column.name for column in columns if column.kind == "reference"]
        groups = {group: [s for s in sets if s.group == group] for group in {s.group for s in sets}}
        chosen = {f"all {len(sets)} sets": list(sets)}
        if len(groups) > 1:
            chosen |= {
                f"{group} ({len(members)})": members for group, members in sorted(groups.items())
            }
        parts = ["#### Average ranks\n"]
        for among, names in (("the methods", methods), ("methods and references", None)):
            names = names or methods + references
            if among != "the methods" and not references:
                continue
            lines = [
                "| sets | measure | " + " | ".join(names) + " |",
                "| --- | --- |" + " --- |" * len(names),
            ]
            for title, members in chosen.items():
                by_measure = [
                    _rank_rows(members, names, known, measure).mean(0) for measure in MEASURES
                ]
                for heading, ranks in zip(MEASURES.values(), by_measure, strict=True):
                    cells = " | ".join(f"{rank:.2f}" for rank in ranks)
                    lines.append(f"| {title} | {heading} | {cells} |")
                means = " | ".join(f"**{rank:.2f}**" for rank in np.mean(by_measure, 0))
                lines.append(f"| {title} | mean of the six | {means} |")
            parts += [f"Among {among}:\n", "\n".join(lines) + "\n"]
        mean_ranks = _mean_ranks(sets, methods, known)
        if len(sets) > 1 and len(methods) > 2:
            parts += self._tests(name, sets, methods, mean_ranks, document, files)
        if references and self.ours in methods:
            parts.append(self._against_references(sets, references, known))
        return parts

    def _tests(
        self,
        name: str,
        sets: Sequence[DistributionSet],
        methods: Sequence[str],
        mean_ranks: np.ndarray,
        document: Path,
        files: dict[Path, str | bytes],
    ) -> list[str]:
        test = friedman_test(mean_ranks)
        cd = nemenyi_critical_difference(len(methods), len(sets))
        ranks = average_ranks(mean_ranks, higher_is_better=False)
        picture = document.parent / document.stem / f"{name}-ranks.png"
        files[picture] = critical_difference_plot(methods, ranks, cd, form="png")
        told = ""
        if self.ours in methods:
            pairs = wilcoxon_signed_rank(mean_ranks, against=methods.index(self.ours))
            told = (
                f" {self.ours} against each of the others (Wilcoxon's signed ranks over the sets, "
                "p after Holm's correction): "
                + ", ".join(f"{methods[pair.second]} {pair.p_holm:.3f}" for pair in pairs)
                + "."
            )
        alt = "average ranks with the critical difference"
        return [
            "A set's value of a method is its mean rank over the six measures. Friedman's test "
            f"over {len(sets)} sets: chi-squared {test.statistic:.2f}, p {test.p:.2g} (Iman and "
            f"Davenport: p {test.f_p:.2g}). Nemenyi's critical difference at .05 is {cd:.2f}: a "
            f"bar joins methods that differ by less.{told}\n",
            f"![{alt}]({picture.relative_to(document.parent)})\n",
        ]

    def _against_references(
        self,
        sets: Sequence[DistributionSet],
        references: Sequence[str],
        known: Mapping[tuple[str, str], dict[str, Any]],
    ) -> str:
        best = [references[i] for i in _mean_ranks(sets, references, known).argmin(1)]
        won: list[str] = []
        lost: list[str] = []
        for data, name in zip(sets, best, strict=True):
            ours, other = _mean_ranks([data], [self.ours, name], known)[0]
            (won if ours < other else lost).append(f"{data.name} ({name})")
        return (
            "Against the best reference of each set (the one with the best mean rank among the "
            f"references there), {self.ours} is better on {len(won)} of {len(sets)} sets, in the "
            f"mean rank over the six measures: better on {', '.join(won) or 'none'}; not better on "
            f"{', '.join(lost) or 'none'}.\n"
        )


def _mean_ranks(
    sets: Sequence[DistributionSet],
    names: Sequence[str],
    known: Mapping[tuple[str, str], dict[str, Any]],
) -> np.ndarray:
    """[sets, names]: mean rank over the six measures."""
    return np.mean([_rank_rows(sets, names, known, measure) for measure in MEASURES], axis=0)


def _rank_rows(
    sets: Sequence[DistributionSet],
    names: Sequence[str],
    known: Mapping[tuple[str, str], dict[str, Any]],
    measure: str,
) -> np.ndarray:
    """[sets, names]: ranks by the mean over seeds. A KL that is infinite in every row is last."""
    larger = measure in LARGER_IS_BETTER
    values = np.array(
        [[np.mean(known[data.name, name]["values"][measure]) for name in names] for data in sets]
    )
    most = np.finfo(np.float64).max
    values = np.nan_to_num(values, nan=-most if larger else most)
    return np.stack([average_ranks(row[None], higher_is_better=larger) for row in values])


def _parameters(made: Any) -> str:
    parameters = ", ".join(f"{k}={v!r}" for k, v in sorted(made.get_params().items()))
    return f"{type(made).__name__}({parameters})"


def _order(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(rows)


def _built(column: Recovery) -> Enhancer:
    return column.build()  # type: ignore[call-arg, return-value]


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def why_empty(data: DistributionSet) -> str:
    """What is said of a set without figures."""
    try:
        find_file(data.source, search_places(None))
    except DataError:
        return "data not at hand"
    return "not run"


def checksum_of(data: DistributionSet) -> str:
    """The SHA-256 of the set's file.

    Raises:
      DataError: it is not there.
    """
    path = find_file(data.source, search_places(None))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opened_set(data: DistributionSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels by the cumulative rule, and true distributions.

    Raises:
      DataError: the file is not there, is damaged, or has no distributions.
    """
    path = find_file(data.source, search_places(None))
    opened = open_distributions(path)
    if opened.distributions is None:
        raise DataError(f"{path}: has no label distributions to compare with")
    labels = logical_labels(opened.distributions).astype(np.float64)
    return np.asarray(opened.features), labels, np.asarray(opened.distributions)


def _matches(data: DistributionSet, column: Recovery, pattern: str) -> bool:
    first, _, second = pattern.partition("/")
    return first in ("*", data.name) and second in ("", "*", column.name)
