"""Studies of label enhancement: what is run and kept, and what the tables say, by hand."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy.io import savemat

from jaxmlcl.cli import main
from jaxmlcl.data import logical_labels
from jaxmlcl.enhancement import KM, LP, ConLE, Enhancer, normalized, r1, uniform
from jaxmlcl.enhancement.conle import Trajectory
from jaxmlcl.errors import ConfigError, UserError
from jaxmlcl.evaluation import (
    LARGER_IS_BETTER,
    distribution_measures,
    friedman_test,
    nemenyi_critical_difference,
)
from jaxmlcl.studies import (
    ConvergenceStudy,
    DistributionSet,
    EnhancementStudy,
    Recovery,
    SensitivityStudy,
    finished,
    load_study,
    plan,
    run,
    write,
)
from jaxmlcl.studies._enhancement import EVERY, MEASURES
from jaxmlcl.studies._sections import figure

PNG = b"\x89PNG\r\n\x1a\n"
ROOT = Path(__file__).parents[2]


class Leaning(Enhancer):
    """Labels towards their mean over the fitted rows; more so with every seed."""

    title = "Leaning"
    out_of_sample = True
    seeded = True
    calls: ClassVar[list[float]] = []

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def fit_many(
        self, features: np.ndarray, labels: np.ndarray, rows: Any, seeds: Sequence[int]
    ) -> np.ndarray:
        self.calls.append(self.share)
        return np.stack(
            [
                leaning(labels, part, self.share, seed)
                for part, seed in zip(rows, seeds, strict=True)
            ]
        )


def leaning(labels: np.ndarray, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    own = normalized(labels)
    share = share / (1 + 0.1 * seed)
    return share * own + (1 - share) * own[rows].mean(0)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data, and nothing called so far."""
    monkeypatch.setenv("JAXMLCL_DATA", str(tmp_path))
    Leaning.calls.clear()
    Quick.calls.clear()
    return tmp_path


def write_set(path: Path, rows: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features and degrees, as the file holds them: degrees are all above 0."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 4))
    degrees = 0.9 * random.dirichlet([1.0, 1.0, 1.0], rows) + 0.1 / 3
    if path.suffix == ".mat":
        savemat(path, {"features": features, "labelDistribution": degrees})
    else:
        np.savez(path, features=features, distributions=degrees)
    return features, degrees


def study_of(*sources: str, **changes: Any) -> EnhancementStudy:
    settings: dict[str, Any] = {
        "sets": tuple(
            DistributionSet(Path(source).stem, source, f"group {i % 2}")
            for i, source in enumerate(sources)
        ),
        "columns": (
            Recovery("Leaning", Leaning),
            Recovery("KM", KM),
            Recovery("LP, half", functools.partial(LP, 0.5)),
            Recovery("uniform", lambda _, labels: uniform(labels), "reference"),
            Recovery("normalized", lambda _, labels: normalized(labels), "reference"),
        ),
        "seeds": (0, 3),
        "ours": "Leaning",
        **changes,
    }
    return EnhancementStudy("Tiny", "What is asked.", **settings)


def ran(study: Any, folder: Path, only: Sequence[str] = ()) -> list[str]:
    lines: list[str] = []
    run(study, folder, only=only, report=lines.append)
    return lines


def section(text: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, cell by cell."""
    _, found, rest = text.partition(f"#### {heading}")
    assert found
    lines = rest.split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def measured(found: np.ndarray, true: np.ndarray, name: str) -> float:
    return float(distribution_measures(found, true)[name])


# What is run.


def test_what_is_finished_is_not_run_again(place: Path) -> None:
    write_set(place / "a.npz")
    write_set(place / "b.mat", seed=1)
    study, folder = study_of("a.npz", "b.mat"), place / "kept"
    lines = ran(study, folder)
    assert [line.partition(":")[0] for line in lines] == [
        f"{data}/{column.name}" for data in "ab" for column in study.columns
    ]
    assert all("KL " in line and " s" in line for line in lines)
    assert Leaning.calls == [0.5, 0.5]
    assert sorted(path.name for path in (folder / "a").iterdir()) == [
        "km.json",
        "leaning.json",
        "lp--half.json",
        "normalized.json",
        "uniform.json",
    ]
    assert ran(study, folder) == []
    # Another hyper-parameter is another column; the others stay.
    other = dataclasses.replace(
        study,
        columns=(Recovery("Leaning", functools.partial(Leaning, 0.7)), *study.columns[1:]),
    )
    assert [line.partition(":")[0] for line in ran(other, folder)] == ["a/Leaning", "b/Leaning"]
    assert Leaning.calls == [0.5, 0.5, 0.7, 0.7]
    # Other seeds are only of those whose result depends on them.
    more = dataclasses.replace(other, seeds=(0, 3, 4))
    assert len(ran(more, folder)) == 2
    # Other data are run again.
    before = (folder / "a" / "km.json").read_text()
    write_set(place / "a.npz", seed=2)
    assert [line[:2] for line in ran(more, folder)] == ["a/"] * 5
    assert (folder / "a" / "km.json").read_text() != before


def test_a_damaged_record_is_run_again(place: Path) -> None:
    write_set(place / "a.npz")
    study, folder = study_of("a.npz"), place / "kept"
    ran(study, folder)
    record = json.loads((folder / "a" / "leaning.json").read_text())
    for text in ("{", "[]", json.dumps({"what": record["what"], "data": record["data"]})):
        (folder / "a" / "leaning.json").write_text(text)
        assert len(ran(study, folder)) == 1
    # As is one of an earlier version that had fewer measures.
    del record["values"]["clark"]
    (folder / "a" / "leaning.json").write_text(json.dumps(record))
    assert len(ran(study, folder)) == 1


def test_only_what_is_asked_is_run(place: Path) -> None:
    write_set(place / "a.npz")
    write_set(place / "b.npz", seed=1)
    study, folder = study_of("a.npz", "b.npz"), place / "kept"
    names = [line.partition(":")[0] for line in ran(study, folder, ["a/KM", "*/uniform"])]
    assert names == ["a/KM", "a/uniform", "b/uniform"]
    assert Leaning.calls == []
    assert finished(study, folder, ["b"])
    assert not finished(study, folder, ["*/Leaning"])
    document = place / "part.md"
    write(study, "tiny", folder, document, ["a/KM", "b/uniform"])
    _, _, a, b = section(document.read_text(), "Chebyshev")
    assert [a[0], b[0], a[2], b[1]] == ["a", "b", "-", "-"]
    with pytest.raises(UserError, match="nothing is called a/KL in this study"):
        ran(study, folder, ["a/KL"])
    with pytest.raises(UserError, match="nothing is called c in this study"):
        plan(study, folder, ["a", "c"])


def test_a_plan_names_every_cell(place: Path) -> None:
    cells = plan(study_of("a.npz", "b.npz"), place)
    assert len(cells) == 10
    assert cells["b/Leaning"] == "2 seeds, transductive"
    assert cells["b/KM"] == cells["a/uniform"] == "1 seeds, transductive"


def test_what_takes_long_gets_fewer_seeds(place: Path) -> None:
    for seed, name in enumerate("abc"):
        write_set(place / f"{name}.npz", seed=seed)
    columns = (
        Recovery("Leaning", Leaning),
        Recovery("Long", Leaning, seeds=2, fewer={"a": 1, "c": 0}),
        Recovery("KM", KM, seeds=2),
    )
    study = study_of("a.npz", "b.npz", "c.npz", columns=columns, seeds=(0, 3, 4))
    folder, document = place / "kept", place / "r.md"
    assert [told[0] for told in plan(study, folder).values()] == list("31132131")
    ran(study, folder)
    _, table, _ = write(study, "tiny", folder, document)
    text = document.read_text()
    _, _, a, b, c = section(text, "KL")
    assert "±" not in a[2]
    assert "±" in b[2]
    assert c[2] == "-"
    with table.open() as file:
        seeds = {
            (line["set"], line["seed"]) for line in csv.DictReader(file) if line["column"] == "Long"
        }
    assert seeds == {("a", "0"), ("b", "0"), ("b", "3")}
    # A set that a method was not run on is ranked by nobody.
    assert "| all 2 sets | KL |" in text
    with pytest.raises(UserError, match="nothing is called c/Long"):
        ran(study, folder, ["c/Long"])


# What is written.


@pytest.fixture
def written(place: Path) -> tuple[EnhancementStudy, dict[str, Any], str, list[Path]]:
    """A study of three sets, one of them absent: its sets, the text and the files."""
    rows = {name: write_set(place / f"{name}.npz", seed=seed) for seed, name in enumerate("ab")}
    study = study_of(
        "a.npz",
        "absent.npz",
        "b.npz",
        published={
            "chebyshev": {"a": {"Leaning": 0.123, "KM": 0.5}, "absent": {"KM": 0.25}},
            "clark": {"absent": {"uniform": 1.5}},
        },
        misprints=(
            ("chebyshev", "a", "KM", "it is another set's"),
            ("clark", "absent", "uniform", "so it is"),
            ("clark", "absent", "of no column", "nobody asks"),
        ),
    )
    folder, document = place / "kept", place / "docs" / "results.md"
    document.parent.mkdir()
    document.write_text("# Mine\n\nKept.\n")
    lines = ran(study, folder)
    assert [line for line in lines if "left out" in line] == [lines[5]]
    assert lines[5].startswith("absent: left out: absent.npz: no such file")
    assert len(lines) == 11
    files = write(study, "tiny", folder, document)
    return study, rows, document.read_text(), files


def test_figures_of_a_table(written: tuple[Any, ...]) -> None:
    _, rows, text, _ = written
    features, degrees = rows["a"]
    labels = logical_labels(degrees).astype(float)
    for name, heading in MEASURES.items():
        head, _, a, absent, b = section(text, heading)
        assert head == ["set", "Leaning", "KM", "LP, half", "uniform", "normalized"]
        assert [row[0] for row in (a, absent, b)] == ["a", "absent, data not at hand", "b"]
        values = [
            measured(leaning(labels, np.arange(40), 0.5, seed), degrees, name) for seed in (0, 3)
        ]
        mean, spread = np.mean(values), abs(values[0] - values[1]) / np.sqrt(2)
        told = f"{mean:.3f} ± {spread:.3f}".replace("0.", ".")
        printed = " (.123)" if name == "chebyshev" else ""
        assert a[1] == told + printed
        by_hand = measured(KM().fit_transform(features, labels), degrees, name)
        assert a[2].partition(" ")[0] == f"{by_hand:.3f}".removeprefix("0")
        assert "±" not in a[2] + a[3] + a[4]
    assert section(text, "Chebyshev")[2][4] == (
        f"{np.abs(degrees - 1 / 3).max(1).mean():.3f}".removeprefix("0")
    )
    assert section(text, "Chebyshev")[2][2].endswith(" (.500*)")
    assert section(text, "Chebyshev")[3] == [
        "absent, data not at hand",
        *("-", "- (.250)", "-", "-", "-"),
    ]
    assert section(text, "Clark")[3][4] == "- (1.500*)"
    assert (
        "Printed figures that cannot be right (*): Chebyshev, a, KM: it is another set's; "
        "Clark, absent, uniform: so it is.\n" in text
    )


def test_the_document_keeps_what_is_not_its_own(written: tuple[Any, ...], place: Path) -> None:
    study, _, text, files = written
    assert text.startswith("# Mine\n\nKept.\n\n<!-- begin tiny -->\n## Tiny\n\nWhat is asked.\n")
    assert text.endswith("<!-- end tiny -->\n")
    assert "`jaxmlcl reproduce tiny`" in text
    assert "seeds 0, 3 where" in text
    docs = place / "docs"
    assert files == [
        docs / "results.md",
        docs / "results/tiny.csv",
        docs / "results/tiny-ranks.png",
    ]
    for file in files[1:]:
        assert f"(results/{file.name})" in text
    assert files[2].read_bytes().startswith(PNG)
    write(study, "tiny", place / "kept", docs / "results.md")
    assert (docs / "results.md").read_text() == text


def test_a_table_of_all_values(written: tuple[Any, ...], place: Path) -> None:
    _, rows, _, files = written
    with files[1].open() as file:
        lines = list(csv.DictReader(file))
    # Two sets; Leaning has two seeds, the four others none.
    assert len(lines) == 2 * (2 + 4) * len(EVERY)
    assert {line["column"] for line in lines if line["seed"] == "3"} == {"Leaning"}
    assert {(line["set"], line["group"]) for line in lines} == {("a", "group 0"), ("b", "group 0")}
    for name in "ab":
        sums = {line["sha256"] for line in lines if line["set"] == name}
        assert sums == {hashlib.sha256((place / f"{name}.npz").read_bytes()).hexdigest()}
    degrees = rows["b"][1]
    labels = logical_labels(degrees).astype(float)
    found = leaning(labels, np.arange(40), 0.5, 3)
    for line in lines:
        if (line["set"], line["column"], line["seed"]) == ("b", "Leaning", "3"):
            assert float(line["value"]) == pytest.approx(
                measured(found, degrees, line["measure"]), rel=1e-7
            )


def test_ranks_by_hand(place: Path) -> None:
    for seed, name in enumerate("abc"):
        write_set(place / f"{name}.npz", seed=seed)
    columns = tuple(
        Recovery(name, functools.partial(Leaning, share), kind)  # type: ignore[arg-type]
        for name, share, kind in (
            ("Less", 0.3, "method"),
            ("Leaning", 0.45, "method"),
            ("More", 0.6, "method"),
            ("Again", 0.45, "beside"),
            ("Same", 0.45, "method"),
        )
    )
    references = (
        Recovery("uniform", lambda _, labels: uniform(labels), "reference"),
        Recovery("R1", lambda _, labels: r1(labels), "reference"),
    )
    study = study_of("a.npz", "b.npz", "c.npz", columns=(*columns, *references))
    ran(study, place / "kept")
    _, table, picture = write(study, "tiny", place / "kept", place / "r.md")
    text = (place / "r.md").read_text()
    with table.open() as file:
        lines = list(csv.DictReader(file))
    means: dict[tuple[str, str, str], float] = {}
    for line in lines:
        key = line["set"], line["column"], line["measure"]
        values = [
            float(one["value"])
            for one in lines
            if (one["set"], one["column"], one["measure"]) == key
        ]
        means[key] = sum(values) / len(values)

    def rank(data: str, column: str, measure: str, among: list[str]) -> float:
        sign = -1 if measure in LARGER_IS_BETTER else 1
        own = sign * means[data, column, measure]
        others = [sign * means[data, one, measure] for one in among if one != column]
        return 1 + sum(o < own for o in others) + 0.5 * sum(o == own for o in others)

    def mean_rank(data: str, column: str, among: list[str]) -> float:
        return sum(rank(data, column, measure, among) for measure in MEASURES) / 6

    methods, trivial = ["Less", "Leaning", "More", "Same"], ["uniform", "R1"]
    for heading, among in (
        ("the methods", methods),
        ("methods and references", methods + trivial),
    ):
        _, _, rest = text.partition(f"Among {heading}:\n\n")
        rows = [line.strip("| ").split(" | ") for line in rest.split("\n\n")[0].splitlines()]
        assert rows[0][2:] == among
        for title, sets in (("all 3 sets", "abc"), ("group 0 (2)", "ac"), ("group 1 (1)", "b")):
            found = {row[1]: row[2:] for row in rows if row[0] == title}
            for measure, name in MEASURES.items():
                expected = [sum(rank(d, c, measure, among) for d in sets) for c in among]
                assert found[name] == [f"{value / len(sets):.2f}" for value in expected]
            whole = [sum(mean_rank(d, c, among) for d in sets) / len(sets) for c in among]
            assert found["mean of the six"] == [f"**{value:.2f}**" for value in whole]
    # Two of the methods are the same and share their ranks; one orders sets in another way.
    of_sets = [[mean_rank(d, c, methods) for c in methods] for d in "abc"]
    assert len(set(map(tuple, of_sets))) > 1
    test = friedman_test(of_sets)
    assert f"over 3 sets: chi-squared {test.statistic:.2f}, p {test.p:.2g} (" in text
    assert f"critical difference at .05 is {nemenyi_critical_difference(4, 3):.2f}:" in text
    assert "Leaning against each of the others" in text
    assert picture.read_bytes().startswith(PNG)

    # The best reference of each set, and whether it is beaten.
    told = []
    for data in "abc":
        best = min(trivial, key=lambda name, data=data: mean_rank(data, name, trivial))
        pair = ["Leaning", best]
        ours, other = (mean_rank(data, name, pair) for name in pair)
        told.append((f"{data} ({best})", ours < other))
    won, lost = (
        ", ".join(name for name, better in told if better is wanted) or "none"
        for wanted in (True, False)
    )
    assert f"Leaning is better on {sum(better for _, better in told)} of 3 sets" in text
    assert f"better on {won}; not better on {lost}." in text


def test_a_divergence_that_is_infinite_everywhere_is_last(place: Path) -> None:
    write_set(place / "a.npz", rows=12)
    degrees = np.tile([[0.6, 0.4, 0.0]], (12, 1))
    np.savez(place / "zeros.npz", features=np.arange(24.0).reshape(12, 2), distributions=degrees)
    study, folder = study_of("zeros.npz", "a.npz"), place / "kept"
    ran(study, folder)
    write(study, "tiny", folder, place / "r.md")
    text = (place / "r.md").read_text()
    zeros = section(text, "KL (")[2]
    assert zeros[0] == "zeros"
    # L / |L| gives nothing to the label that has degree 0; equal degrees do.
    assert zeros[4:] == ["-", figure([np.log(1 / 0.6)])]
    _, _, rest = text.partition("Among methods and references:\n\n")
    kl = next(line for line in rest.splitlines() if "| group 0 (1) | KL |" in line)
    assert kl.strip("| ").split(" | ")[2:] == ["2.50", "2.50", "2.50", "5.00", "2.50"]


def test_sets_that_were_not_run_are_not_called_absent(place: Path) -> None:
    write_set(place / "a.npz")
    write_set(place / "b.npz", seed=1)
    study, folder = study_of("a.npz", "b.npz", "c.npz"), place / "kept"
    ran(study, folder, ["a"])
    write(study, "tiny", folder, place / "r.md")
    rows = section((place / "r.md").read_text(), "Cosine (larger is better)")[2:]
    assert [row[0] for row in rows] == ["a", "b, not run", "c, data not at hand"]
    # Figures stay when their data go.
    (place / "a.npz").unlink()
    assert [line.partition(":")[0] for line in ran(study, folder, ["a", "c"])] == ["a", "c"]
    write(study, "tiny", folder, place / "r.md")
    assert section((place / "r.md").read_text(), "Cosine")[2][0] == "a"


# The other protocols.


def test_ten_times_ten_folds(place: Path) -> None:
    write_set(place / "b.npz", seed=5)
    _, degrees = write_set(place / "a.npz", rows=43)
    columns = (
        Recovery("Leaning", Leaning),
        Recovery("More", functools.partial(Leaning, 0.9)),
        Recovery("KM", KM),
        Recovery("uniform", lambda _, labels: uniform(labels), "reference"),
    )
    study = study_of("a.npz", "b.npz", columns=columns, protocol="cv10x10")
    folder = place / "kept"
    lines = ran(study, folder)
    assert "KM has no out-of-sample form" in lines[2]
    # A hundred fits are one call.
    assert Leaning.calls == [0.5, 0.9, 0.5, 0.9]
    assert plan(study, folder)["a/Leaning"] == "10 seeds, cv10x10"
    files = write(study, "tiny", folder, place / "r.md")
    text = (place / "r.md").read_text()
    a = section(text, "Clark")[2]
    assert a[3] == "n/a"
    assert "n/a, where an enhancer recovers only rows that it is fitted to" in text

    labels = logical_labels(degrees).astype(float)
    by_order = []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(43)
        scores = []
        for fold in range(10):
            # The first three of ten folds have a row more.
            start = 4 * fold + min(fold, 3)
            held = order[start : start + 4 + (fold < 3)]
            kept = np.array([row for row in range(43) if row not in held])
            found = leaning(labels, kept, 0.5, seed)
            scores.append(measured(found[held], degrees[held], "clark"))
        by_order.append(np.mean(scores))
    assert a[1] == figure(by_order)
    assert a[4] == figure([measured(uniform(labels), degrees, "clark")])
    with files[1].open() as file:
        found_values = [
            float(line["value"])
            for line in csv.DictReader(file)
            if (line["set"], line["column"], line["measure"]) == ("a", "Leaning", "clark")
        ]
    assert found_values == pytest.approx(by_order, rel=1e-7)
    # What has no figures by this protocol keeps nobody from being ranked.
    assert "Among the methods:\n\n| sets | measure | Leaning | More |" in text
    assert ran(study, folder) == []


class Mean:
    """A learner that predicts the mean of what it was given, and remembers it."""

    given: ClassVar[list[tuple[np.ndarray, np.ndarray]]] = []

    def get_params(self) -> dict[str, Any]:
        return {}

    def fit(self, features: np.ndarray, distributions: np.ndarray) -> Mean:
        self.given.append((features, distributions))
        self.mean = distributions.mean(0)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        return np.tile(self.mean, (len(features), 1))


def test_a_learner_of_what_was_recovered(place: Path) -> None:
    _, degrees = write_set(place / "a.npz")
    columns = (
        Recovery("KM", KM),
        Recovery("normalized", lambda _, labels: normalized(labels), "reference"),
    )
    study = study_of("a.npz", columns=columns, protocol="learner", learner=Mean, ours="KM")
    folder = place / "kept"
    Mean.given.clear()
    ran(study, folder)
    # Two columns, two seeds, five folds; features are standardised by the four that are seen.
    assert len(Mean.given) == 20
    for features, distributions in Mean.given:
        assert features.shape == (32, 4)
        np.testing.assert_allclose(features.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(distributions.sum(1), 1)
    write(study, "tiny", folder, place / "r.md")
    own = normalized(logical_labels(degrees).astype(float))
    by_seed = []
    for seed in (0, 3):
        order = np.random.default_rng(seed).permutation(40)
        scores = [
            measured(
                np.tile(np.delete(own, held, 0).mean(0), (8, 1)), degrees[held], "intersection"
            )
            for held in np.split(order, 5)
        ]
        by_seed.append(np.mean(scores))
    assert section((place / "r.md").read_text(), "Intersection")[2][2] == figure(by_seed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "oracle"}, 'protocol "oracle" is not transductive, cv10x10 or learner'),
        ({"protocol": "learner"}, "a learner belongs to the protocol learner"),
        ({"columns": (Recovery("A b", KM), Recovery("a-B", LP))}, "too alike: A b, a-B"),
        ({"sets": (DistributionSet("a", "a.npz"),) * 2}, "too alike: a, a"),
        ({"seeds": ()}, "needs seeds"),
        ({"seeds": (1, 1)}, "each of them once"),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study_of("a.npz", **changes)


# Curves. Training is the business of tests/enhancement; here its results are cheap.


class Quick(ConLE):
    """What looks like ConLE: labels that lean to equal degrees, by the first weight."""

    calls: ClassVar[list[Any]] = []

    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: Any,
        seeds: Sequence[int],
        overrides: Any = None,
    ) -> np.ndarray:
        self.calls.append((list(seeds), overrides))
        if overrides is None:
            return np.stack([towards(labels, 0.3 + seed) for seed in seeds])
        shares = [
            (1 + seed) * one / (1 + two)
            for seed, one, two in zip(
                seeds, overrides["lambda_1"], overrides["lambda_2"], strict=True
            )
        ]
        return np.stack([towards(labels, share) for share in shares])

    def fit_steps(self, features: Any, labels: Any, rows: Any, seeds: Any) -> np.ndarray:
        self.calls.append(list(seeds))
        return np.array([4, 6][: len(seeds)])

    def trajectory(self, features: Any, labels: Any, seeds: Any, *, every: int = 1) -> Trajectory:
        self.calls.append((list(seeds), every))
        looks = self.epochs // every
        steps = 2 * every * (1 + np.arange(looks))
        (seed,) = seeds
        degrees = np.stack([towards(labels, 0.1 * step + seed) for step in steps])
        mass = (degrees * labels).sum(-1).mean(-1)
        objective = 5.0 + seed - 0.1 * steps
        return Trajectory(steps, objective[None], mass[None], degrees[None].astype(np.float32))


def towards(labels: np.ndarray, share: float) -> np.ndarray:
    weight = 1 / (1 + share)
    return weight * normalized(labels) + (1 - weight) / labels.shape[1]


def sensitivity(**changes: Any) -> SensitivityStudy:
    settings: dict[str, Any] = {
        "data": DistributionSet("a", "a.npz"),
        "enhancer": Quick(),
        "seeds": (0, 1),
        "values": (0.1, 1.0, 10.0),
        **changes,
    }
    return SensitivityStudy("Weights", "Which weight?", **settings)


def convergence(**changes: Any) -> ConvergenceStudy:
    settings: dict[str, Any] = {
        "data": DistributionSet("a", "a.npz"),
        "enhancer": Quick(epochs=8),
        "seeds": (0, 1),
        "every": 2,
        **changes,
    }
    return ConvergenceStudy("Epochs", "When?", **settings)


def table_of(text: str) -> list[list[str]]:
    """The only table of a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_weight_takes_every_value(place: Path) -> None:
    _, degrees = write_set(place / "a.npz")
    labels = logical_labels(degrees).astype(float)
    study, folder = sensitivity(), place / "kept"
    assert plan(study, folder) == {"a": "2 seeds, one program"}
    assert not finished(study, folder)
    assert ran(study, folder)[0].startswith("a: ")
    # One call: each weight at each value with each seed, the other weight as it is.
    ((seeds, overrides),) = Quick.calls
    assert seeds == [0, 1] * 6
    assert overrides["lambda_1"] == [0.1, 0.1, 1.0, 1.0, 10.0, 10.0, *[0.5] * 6]
    assert overrides["lambda_2"] == [*[1.0] * 6, 0.1, 0.1, 1.0, 1.0, 10.0, 10.0]
    files = write(study, "my-weights", folder, place / "r.md")
    assert [file.name for file in files] == ["r.md", "my-weights.csv", "my-weights.png"]
    assert files[2].read_bytes().startswith(PNG)
    text = files[0].read_text()
    assert "![Weights](r/my-weights.png)" in text
    rows = table_of(text)
    assert [row[:2] for row in rows[2:]] == [
        [weight, value] for weight in ("lambda_1", "lambda_2") for value in ("0.1", "1", "10")
    ]
    for row, first, second in ((rows[2], 0.1, 1.0), (rows[7], 0.5, 10.0)):
        found = [towards(labels, (1 + seed) * first / (1 + second)) for seed in (0, 1)]
        for cell, name in zip(row[2:], MEASURES, strict=True):
            assert cell == figure([measured(one, degrees, name) for one in found])
    with files[1].open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["weight"], line["value"], line["seed"]) for line in lines[-2:]] == [
        ("lambda_2", "10.0", "0"),
        ("lambda_2", "10.0", "1"),
    ]
    expected = measured(towards(labels, 2 * 0.5 / 11), degrees, "kl_true_recovered")
    assert float(lines[-1]["kl_true_recovered"]) == pytest.approx(expected, rel=1e-6)


def test_curves_of_training(place: Path) -> None:
    _, degrees = write_set(place / "a.npz")
    labels = logical_labels(degrees).astype(float)
    study, folder = convergence(), place / "kept"
    ran(study, folder)
    # All fits stop in one program; then each is followed.
    assert Quick.calls == [[0, 1], ([0, 1], None), ([0], 2), ([1], 2)]
    files = write(study, "epochs", folder, place / "r.md")
    assert files[2].read_bytes().startswith(PNG)
    text = files[0].read_text()
    assert "The rule stopped the 2 seeds after 4, 6 steps." in text
    rows = table_of(text)
    # Looks are after 4, 8, 12 and 16 steps; the mean of 4 and 6 is nearest to the first.
    canberra = [
        np.mean([measured(towards(labels, 0.1 * t + s), degrees, "canberra") for s in (0, 1)])
        for t in (4, 8, 12, 16)
    ]
    assert [row[1] for row in rows[2:]] == ["4", "", f"{4 * (1 + np.argmin(canberra))}", "16"]
    assert rows[2][2] == figure([5 - 0.4, 6 - 0.4])
    degrees_there = [towards(labels, 0.4 + seed) for seed in (0, 1)]
    assert rows[2][3] == figure([(one * labels).sum(1).mean() for one in degrees_there])
    assert rows[2][7] == figure([measured(one, degrees, "canberra") for one in degrees_there])
    # What is recovered is flattened besides.
    assert rows[3][0] == "there, flattened: what is recovered"
    recovered = [towards(labels, 0.3 + seed) for seed in (0, 1)]
    assert rows[3][3] == figure([(one * labels).sum(1).mean() for one in recovered])
    assert rows[3][4] == figure([measured(one, degrees, "kl_recovered_true") for one in recovered])
    with files[1].open() as file:
        lines = list(csv.DictReader(file))
    assert [line["step"] for line in lines] == ["4", "8", "12", "16", "recovered"] * 2
    assert float(lines[-2]["objective"]) == pytest.approx(6 - 1.6)
    clark = measured(recovered[1], degrees, "clark")
    assert float(lines[-1]["clark"]) == pytest.approx(clark, rel=1e-6)
    # Without flattening there is no such row.
    plain = convergence(enhancer=Quick(epochs=8, calibrate=False))
    ran(plain, folder)
    write(plain, "epochs", folder, place / "plain.md")
    assert len(table_of((place / "plain.md").read_text())) == 5


@pytest.mark.parametrize("make", [sensitivity, convergence])
def test_curves_are_kept(make: Callable[..., Any], place: Path) -> None:
    study, folder = make(), place / "kept"
    assert ran(study, folder)[0].startswith("a: left out: a.npz: no such file")
    write(study, "tiny", folder, place / "r.md")
    assert "a, data not at hand" in (place / "r.md").read_text()
    write_set(place / "a.npz")
    write(study, "tiny", folder, place / "r.md")
    assert "a, not run" in (place / "r.md").read_text()
    assert len(ran(study, folder)) == 1
    assert finished(study, folder, ["a"])
    assert ran(study, folder, ["*"]) == []
    other = make(enhancer=Quick(epochs=8, hidden=7))
    assert not finished(other, folder)
    assert len(ran(other, folder)) == 1
    write_set(place / "a.npz", seed=1)
    assert len(ran(other, folder)) == 1
    with pytest.raises(UserError, match="nothing is called b in this study; it is of one set, a"):
        ran(study, folder, ["b"])


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [
        (sensitivity, {"weights": ("epochs",)}, 'weight "epochs" is none of lambda_1'),
        (sensitivity, {"values": ()}, "needs weights, values and seeds"),
        (convergence, {"every": 9}, "from 1 to the epochs"),
        (convergence, {"seeds": ()}, "needs seeds"),
    ],
)
def test_curves_that_cannot_be_are_refused(
    make: Callable[..., Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**changes)


@pytest.mark.slow
@pytest.mark.usefixtures("conle_compiled_quickly")
def test_curves_of_conle(place: Path) -> None:
    write_set(place / "a.npz")
    tiny = ConLE(hidden=8, width=4, epochs=3, batch_size=16, learning_rate=0.01)
    folder, document = place / "kept", place / "r.md"
    study: Any = sensitivity(enhancer=tiny, seeds=(0,), values=(0.1, 10.0))
    ran(study, folder / "weights")
    files = write(study, "weights", folder / "weights", document)
    with files[1].open() as file:
        assert len({line["clark"] for line in csv.DictReader(file)}) == 4
    study = convergence(enhancer=tiny, every=1)
    ran(study, folder / "epochs")
    write(study, "epochs", folder / "epochs", document)
    # Forty rows are two batches of 16: six steps in all.
    rows = table_of(document.read_text().partition("begin epochs")[2])
    assert rows[-1][:2] == ["last", "6"]
    assert "after 6, 6 steps" in document.read_text()


# The command.

_FILE = """
    '''A tiny study of enhancers.'''
    from jaxmlcl.enhancement import KM, LP, uniform
    from jaxmlcl.studies import DistributionSet, EnhancementStudy, Recovery

    study = EnhancementStudy(
        title="Tiny",
        text="What is asked.",
        sets=(DistributionSet("a", "a.npz"), DistributionSet("absent", "absent.mat")),
        columns=(
            Recovery("KM", KM),
            Recovery("LP", LP),
            Recovery("uniform", lambda _, labels: uniform(labels), "reference"),
        ),
        seeds=(0, 1),
    )
"""


@pytest.fixture
def workplace(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = place / "configs" / "studies"
    folder.mkdir(parents=True)
    (folder / "my_tiny.py").write_text(textwrap.dedent(_FILE))
    (place / "data").mkdir()
    monkeypatch.chdir(place)
    return place


def test_the_command(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(workplace / "data" / "a.npz")
    assert main(["reproduce", "my-tiny", "--plan"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{data}/{column}: 1 seeds, transductive"
        for data in ("a", "absent")
        for column in ("KM", "LP", "uniform")
    ]
    command = ["reproduce", "my-tiny", "--data.root", "data"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == [
        "written: docs/results.md",
        "written: docs/results/my-tiny.csv",
    ]
    assert "absent: left out: absent.mat: no such file" in err
    whole = (workplace / "docs" / "results.md").read_text()
    assert "| absent, data not at hand | - | - | - |" in whole

    # A part goes elsewhere.
    assert main([*command, "--only", "a/KM"]) == 0
    assert (workplace / "docs" / "results.md").read_text() == whole
    part = (workplace / "runs" / "reproduce" / "my-tiny" / "results.md").read_text()
    assert "| set | KM |" in part
    assert "LP" not in part


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing is finished in runs/reproduce/my-tiny, so docs/results.md is left as it is"),
        (["--tables"], "nothing is finished"),
        (["--only", "b/KM"], "nothing is called b/KM in this study"),
        (["--only", "a/FCM", "--plan"], "nothing is called a/FCM in this study"),
    ],
)
def test_nothing_at_hand_is_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (workplace / "docs").mkdir()
    (workplace / "docs" / "results.md").write_text("figures")
    assert main(["reproduce", "my-tiny", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    told = [line for line in err.splitlines() if ": left out: " not in line]
    assert len(told) == 1
    assert said in told[0]
    assert (workplace / "docs" / "results.md").read_text() == "figures"


def test_the_studies_of_the_project() -> None:
    paths = sorted((ROOT / "configs" / "studies").glob("conle_*.py"))
    assert len(paths) > 3
    for path in paths:
        study = load_study(path)
        assert plan(study, Path("nowhere"))
        if isinstance(study, EnhancementStudy):
            sets = {one.name for one in study.sets}
            columns = {column.name for column in study.columns}
            assert "SJAFFE" in sets
            assert study.ours in columns
            # Printed figures are of sets and columns, or the paper's tables would lack them.
            whole = path.stem in ("conle_table3", "conle_table4")
            assert whole <= bool(study.published)
            for measure, by_set in study.published.items():
                assert measure in MEASURES
                if whole:
                    assert set(by_set) == sets
                    assert {name for row in by_set.values() for name in row} <= columns
            for measure, data, column, _ in study.misprints:
                assert column in study.published[measure][data]
