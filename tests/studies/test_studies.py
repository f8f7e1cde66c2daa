"""Studies: trials chosen by validation, every seed scored once, continued where they stopped."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest

from jaxmlcl.baselines import LabelFrequencies
from jaxmlcl.cli import main
from jaxmlcl.config import MLP, Classification, Data, Experiment, Optimizer, Stage, steps
from jaxmlcl.errors import ConfigError, NonFiniteError, UserError
from jaxmlcl.evaluation import bootstrap_replicates, multilabel_metrics
from jaxmlcl.studies import (
    DataSet,
    Fitted,
    Method,
    Networks,
    Reference,
    Study,
    Table,
    cells,
    find_study,
    load_study,
    run_study,
    write_tables,
)
from jaxmlcl.studies._paired import against_best_baseline
from jaxmlcl.studies._tables import figure


@dataclasses.dataclass(frozen=True)
class Leaning:
    """A linear baseline, right for a positive lean and wrong for a negative one."""

    lean: float
    seed: int = 0
    noise: float = 0.0

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> Linear:
        assert abs(inputs.mean()) < 0.5, "the inputs are prepared"
        if not np.isfinite(self.lean):
            raise NonFiniteError("it diverged")
        weights, *_ = np.linalg.lstsq(inputs, labels - 0.5, rcond=None)
        generator = np.random.default_rng(self.seed)
        weights = weights + self.noise * generator.normal(size=weights.shape)
        return Linear(self.lean * weights)


class Linear:
    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-inputs @ self.weights))


def noisy(data: DataSet, choice, seed: int) -> Fitted:
    return Fitted(Leaning(choice["lean"], seed, noise=0.1), data.data)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 3))
    for name, n in (("train", 64), ("validation", 40), ("test", 40)):
        x = generator.normal(3.0, 2.0, size=(n, 5)).astype(np.float32)
        y = ((x - 3) @ mixing + generator.normal(size=(n, 3)) > 0).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", features=x, labels=y)
    places = {n: str(tmp_path / f"{n}.npz") for n in ("train", "validation", "test")}
    return Data(**places)


def network(data: DataSet, choice, seed: int) -> Networks:
    stage = Stage(
        Classification(encoder=MLP(hidden=(8,))),
        duration=steps(choice.get("steps", 6)),
        batch_size=16,
        optimizer=Optimizer(learning_rate=choice["rate"]),
    )
    return Networks(Experiment("tiny", data.data, {"bce": stage}, seed=seed), "bce")


def study_of(data: Data, **changes) -> Study:
    methods = (
        Method("noisy", noisy, ({"lean": -1.0}, {"lean": 3.0})),
        Method(
            "leaning",
            lambda data, choice, _seed: Fitted(Leaning(choice["lean"]), data.data),
            ({"lean": -1.0}, {"lean": 2.0}),
            seeded=False,
            baseline=True,
        ),
        Method("absent", noisy, leaves_out={"tiny": "it would take a week"}),
    )
    settings = {
        "sets": (DataSet("tiny", data, "Made of three lines."),),
        "methods": methods,
        "seeds": (3, 5),
        "references": (Reference("elsewhere", "tiny", {"map": 0.25}, "a book"),),
        **changes,
    }
    return Study("Tiny", "What is asked.", (Table("one", "One table", "A sentence.", **settings),))


def stored(folder: Path, method: str) -> dict[str, dict]:
    found = sorted((folder / "one" / "tiny" / method).glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in found}


def test_validation_chooses_and_every_seed_is_scored(data, tmp_path):
    study, folder, lines = study_of(data), tmp_path / "study", []
    run_study(study, folder, report=lines.append)

    noisy = stored(folder, "noisy")
    assert set(noisy) == {"trial-0", "trial-1", "seed-3", "seed-5"}
    assert noisy["trial-1"]["map"] > noisy["trial-0"]["map"]
    assert noisy["seed-3"]["choice"] == noisy["seed-5"]["choice"] == {"lean": 3.0}
    assert noisy["seed-3"]["threshold_free"] != noisy["seed-5"]["threshold_free"]
    assert noisy["seed-5"]["data"]["test"]["rows"] == 40
    # What does not depend on the seed is run once.
    assert set(stored(folder, "leaning")) == {"trial-0", "trial-1", "seed-3"}
    assert stored(folder, "leaning")["seed-3"]["choice"] == {"lean": 2.0}
    assert len(lines) == 2 + 2 + 2 + 1

    # Again: everything is known, nothing runs, nothing is written.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    lines.clear()
    run_study(study, folder, report=lines.append)
    assert lines == []
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_networks_are_trained_as_any_run_is(data, tmp_path):
    choices = ({"rate": 1e38}, {"rate": 1e-6}, {"rate": 3e-2, "steps": 60})
    folder = tmp_path / "study"
    run_study(study_of(data, methods=(Method("BCE", network, choices),)), folder)
    found = stored(folder, "bce")
    assert "failed" in found["trial-0"]
    assert found["trial-2"]["map"] > found["trial-1"]["map"]
    assert found["seed-3"]["steps"] == {"bce": 60}
    # The runs themselves are not kept.
    assert not list(folder.rglob("checkpoints"))

    # The first seed scored the chosen trial's network: trained alone it is the same.
    shutil.rmtree(folder)
    alone = study_of(data, seeds=(3,), methods=(Method("BCE", network, choices[2:]),))
    run_study(alone, folder, keep=True)
    assert stored(folder, "bce")["seed-3"]["threshold_free"] == found["seed-3"]["threshold_free"]
    assert list(folder.rglob("checkpoints"))


def test_trials_never_open_the_test_rows(data, tmp_path):
    study, folder = study_of(data), tmp_path / "study"
    Path(data.test).unlink()
    lines: list[str] = []
    run_study(study, folder, report=lines.append)
    assert "trial-1" in stored(folder, "noisy")
    assert "seed-3" not in stored(folder, "noisy")
    assert "left out" in lines[-1]
    assert "test.npz" in lines[-1]


def test_a_changed_trial_is_run_again(data, tmp_path):
    study, folder = study_of(data), tmp_path / "study"
    run_study(study, folder, only=["one/tiny/noisy"])
    before = stored(folder, "noisy")
    methods = (Method("noisy", noisy, ({"lean": -2.0}, {"lean": 3.0})),)
    run_study(study_of(data, methods=methods), folder)
    after = stored(folder, "noisy")
    assert after["trial-0"] != before["trial-0"]
    assert after["trial-1"] == before["trial-1"]


def test_tables_hold_nothing_of_another_study(data, tmp_path):
    folder, document = tmp_path / "study", tmp_path / "results.md"
    run_study(study_of(data), folder)
    methods = (Method("noisy", noisy, ({"lean": -2.0}, {"lean": 4.0})),)
    write_tables(study_of(data, methods=methods), "tiny", folder, document)
    assert "Not run" in document.read_text()


def test_changed_data_are_run_again(data, tmp_path):
    study, folder = study_of(data), tmp_path / "study"
    run_study(study, folder, only=["one/tiny/noisy"])
    before = stored(folder, "noisy")
    with np.load(data.validation) as arrays:
        np.savez(data.validation, features=arrays["features"][1:], labels=arrays["labels"][1:])
    run_study(study, folder, only=["one/tiny/noisy"])
    after = stored(folder, "noisy")
    assert after["trial-1"]["map"] != before["trial-1"]["map"]
    assert after["seed-3"]["data"]["validation"]["rows"] == 39


def test_what_does_not_look_at_inputs_needs_none_in_memory(tmp_path):
    """Photographs are read one by one; the frequencies of their labels are known all the same."""
    generator = np.random.default_rng(0)
    labels = {"train": 12, "validation": 6, "test": 6}
    lines = ["file,split,cat,dog"]
    for split, n in labels.items():
        for i in range(n):
            cat, dog = generator.integers(0, 2, 2) if i > 1 else (i, 1 - i)
            lines.append(f"{split}-{i}.jpg,{split},{cat},{dog}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    uris = {split: f"folder:{tmp_path}?split={split}" for split in labels}
    methods = (
        Method(
            "frequencies",
            lambda data, *_: Fitted(LabelFrequencies(), data.data),
            seeded=False,
        ),
    )
    study = study_of(None, methods=methods, sets=(DataSet("tiny", Data(**uris)),))
    run_study(study, tmp_path / "study")
    found = stored(tmp_path / "study", "frequencies")
    scores = np.load(tmp_path / "study" / "one" / "tiny" / "frequencies" / "seed-3.npz")["scores"]
    rows = np.array([line.split(",")[2:] for line in lines[1:13]], float)
    np.testing.assert_allclose(scores, np.tile(rows.mean(axis=0), (6, 1)), rtol=1e-6)
    assert found["seed-3"]["threshold_free"]["map"] is not None


def test_a_baseline_tells_its_settings(data, tmp_path):
    class Nameless:
        pass

    methods = (Method("nameless", lambda data, *_: Fitted(Nameless(), data.data)),)
    with pytest.raises(ConfigError, match="Nameless does not tell its settings"):
        run_study(study_of(data, methods=methods), tmp_path / "study")


def test_a_trial_without_validation_positives_fails(data, tmp_path):
    with np.load(data.validation) as arrays:
        nothing = np.zeros_like(arrays["labels"])
        np.savez(data.validation, features=arrays["features"], labels=nothing)
    lines: list[str] = []
    run_study(study_of(data), tmp_path / "study", only=["*/*/noisy"], report=lines.append)
    assert "no label has a positive among the validation rows" in lines[0]
    assert "every trial failed" in lines[-1]


def test_a_failed_trial_is_not_chosen(data, tmp_path):
    methods = (Method("noisy", noisy, ({"lean": np.inf}, {"lean": 1.0})),)
    folder = tmp_path / "study"
    run_study(study_of(data, methods=methods, seeds=(0,)), folder)
    found = stored(folder, "noisy")
    assert found["trial-0"]["failed"] == "it diverged"
    assert found["seed-0"]["choice"] == {"lean": 1.0}


def test_a_failed_seed_keeps_its_place(data, tmp_path):
    def failing(data: DataSet, choice, seed: int) -> Fitted:
        lean = np.inf if seed == 5 else choice["lean"]
        return Fitted(Leaning(lean, seed, noise=0.1), data.data)

    *_, leaning = study_of(data).tables[0].methods[:2]
    study = study_of(
        data,
        methods=(Method("failing", failing, ({"lean": 3.0},)), leaning),
        seeds=(3, 5, 7),
    )
    folder, lines = tmp_path / "study", []
    run_study(study, folder, report=lines.append)
    assert any("seed 5 " in line and "it diverged" in line for line in lines)
    # Its mean would be over other seeds than it says, so it is compared with nothing.
    assert against_best_baseline(cells(study, folder)) is None
    _, values, *_ = write_tables(study, "tiny", folder, tmp_path / "results.md")
    with values.open() as file:
        found = {
            line["seed"]: float(line["value"])
            for line in csv.DictReader(file)
            if line["method"] == "failing" and line["measure"] == "map"
        }
    records = stored(folder, "failing")
    assert found == {
        seed: pytest.approx(records[f"seed-{seed}"]["threshold_free"]["map"], abs=1e-6)
        for seed in ("3", "7")
    }
    # It would fail again.
    lines.clear()
    run_study(study, folder, report=lines.append)
    assert lines == []


@pytest.mark.parametrize("build", [noisy, network])
def test_choosing_and_scoring_need_rows_of_their_own(data, tmp_path, build):
    choice = {"lean": 3.0, "rate": 1e-2}
    for name, split, other in (
        ("chosen", {"validation": data.train}, "train"),
        ("scored", {"test": data.validation}, "validation"),
    ):
        wrong = dataclasses.replace(data, **split)
        study = study_of(wrong, methods=(Method("one", build, (choice,)),), seeds=(0,))
        lines: list[str] = []
        run_study(study, tmp_path / name, report=lines.append)
        field = next(iter(split))
        assert f"left out: data.{field}: " in lines[-1]
        assert f"rows of data.{other}" in lines[-1]
        assert not list((tmp_path / name).rglob("seed-0.json"))


def test_tables_hold_mean_and_deviation(data, tmp_path):
    study, folder = study_of(data), tmp_path / "study"
    document = tmp_path / "docs" / "results.md"
    document.parent.mkdir()
    document.write_text("# Mine\n\nKept.\n\n<!-- begin other -->\nalso kept\n<!-- end other -->\n")
    write_tables(study, "tiny", folder, document)
    assert "Not run" in document.read_text()
    run_study(study, folder)
    files = write_tables(study, "tiny", folder, document)
    text = document.read_text()
    assert text.startswith("# Mine\n\nKept.")
    assert "also kept" in text
    assert text.count("<!-- begin tiny -->") == 1

    maps = [stored(folder, "noisy")[f"seed-{s}"]["threshold_free"]["map"] for s in (3, 5)]
    row = next(line for line in text.splitlines() if line.startswith("| noisy |"))
    assert row.split("|")[2].strip() == figure(maps)
    assert row.split("|")[-3:-1] == [" 2 ", " 2 "]
    leaning = next(line for line in text.splitlines() if line.startswith("| leaning |"))
    assert "±" not in leaning
    assert "not run: it would take a week" in text
    assert "| *elsewhere* | .250 |" in text
    assert "Made of three lines." in text
    assert "sha256" in text

    with files[1].open() as file:
        lines = list(csv.DictReader(file))
    found = [
        float(line["value"])
        for line in lines
        if line["method"] == "noisy" and line["measure"] == "map"
    ]
    assert found == pytest.approx(maps, abs=1e-6)
    sums = {
        split: found["fingerprint"]
        for split, found in stored(folder, "noisy")["seed-3"]["data"].items()
    }
    with files[3].open() as file:
        assert {line["split"]: line["sha256"] for line in csv.DictReader(file)} == sums
    assert {line["seed"] for line in lines} == {"3", "5"}
    latex = files[2].read_text()
    assert all(value in latex for value in sums.values())
    body = latex.partition("\\midrule")[2].partition("\\bottomrule")[0].strip().splitlines()
    assert {line.count("&") for line in body} == {2 + 4 + 4 + 1}
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 1
    assert "noisy & " in latex


def test_differences_are_paired_and_from_the_best_baseline_on_validation(data, tmp_path):
    methods = (
        Method("noisy", noisy, ({"lean": 3.0},)),
        *(
            Method(
                f"leaning {lean}",
                lambda data, choice, _seed: Fitted(Leaning(choice["lean"]), data.data),
                ({"lean": lean},),
                seeded=False,
                baseline=True,
            )
            for lean in (-1.0, 2.0)
        ),
    )
    study, folder = study_of(data, methods=methods), tmp_path / "study"
    assert against_best_baseline(cells(study, folder)) is None
    run_study(study, folder)
    found = against_best_baseline(cells(study, folder))
    assert found is not None
    name, (difference,) = found
    assert name == "leaning 2.0"
    noisy_maps = [stored(folder, "noisy")[f"seed-{s}"]["threshold_free"]["map"] for s in (3, 5)]
    best = stored(folder, "leaning-2-0")["seed-3"]["threshold_free"]["map"]
    assert difference.value == pytest.approx(np.mean(noisy_maps) - best)
    assert difference.low < difference.value < difference.high

    # By hand: the same rows are drawn for both.
    maps = []
    for path in ("noisy/seed-3", "noisy/seed-5", "leaning-2-0/seed-3"):
        with np.load(folder / "one" / "tiny" / f"{path}.npz") as arrays:
            maps.append(
                bootstrap_replicates(arrays["scores"], arrays["labels"], replicates=500, seed=0)[
                    "map"
                ]
            )
    drawn = (maps[0] + maps[1]) / 2 - maps[2]
    shift = difference.value - drawn.mean()
    expected = np.quantile(drawn, [0.025, 0.975]) + shift
    assert (difference.low, difference.high) == pytest.approx(tuple(expected))


def test_test_rows_that_occur_in_training_are_left_out_in_a_table_of_their_own(data, tmp_path):
    with np.load(data.train) as train, np.load(data.test) as test:
        inputs = np.concatenate([test["features"], train["features"][:10]])
        labels = np.concatenate([test["labels"], 1 - train["labels"][:10]])
        new = dict(test)
    np.savez(data.test, features=inputs, labels=labels)
    study, folder = study_of(data), tmp_path / "study"
    run_study(study, folder)
    assert "unseen" not in stored(folder, "leaning")["seed-3"]
    document = tmp_path / "results.md"
    write_tables(study, "tiny", folder, document)
    assert "do not occur in training" not in document.read_text()

    # Results that are there get what they lack; the networks are not run again.
    study = study_of(data, sets=(DataSet("tiny", data, unseen=True),))
    lines: list[str] = []
    run_study(study, folder, report=lines.append)
    assert lines == []
    for seed in ("seed-3", "seed-5"):
        record = stored(folder, "noisy")[seed]
        with np.load(folder / "one" / "tiny" / "noisy" / f"{seed}.npz") as scored:
            scores = scored["scores"][:40]
        assert record["unseen"]["rows"] == 40
        free = multilabel_metrics(scores, new["labels"])
        for name in ("map", "precision_at_1"):
            assert record["unseen"]["threshold_free"][name] == pytest.approx(free[name])
            assert record["threshold_free"][name] < free[name]
        chosen = record["protocols"]["best_on_val"]["thresholds"]
        for name in ("micro_f1", "example_f1", "hamming_accuracy"):
            at = multilabel_metrics(scores, new["labels"], threshold=chosen[name])[name]
            assert record["unseen"]["protocols"]["best_on_val"][name] == pytest.approx(at)
        best = max(
            multilabel_metrics(scores, new["labels"], threshold=t / 10)["micro_f1"]
            for t in range(1, 10)
        )
        assert record["unseen"]["protocols"]["paper"]["micro_f1"] == pytest.approx(best)

    fresh = tmp_path / "fresh"
    run_study(study, fresh)
    unseen = stored(fresh, "noisy")["seed-5"]["unseen"]
    assert unseen == stored(folder, "noisy")["seed-5"]["unseen"]
    values = write_tables(study, "tiny", fresh, document)[1]
    assert "The same scores on the 40 test rows whose inputs do not" in document.read_text()
    with values.open() as file:
        found = [row for row in csv.DictReader(file) if row["set"] == "tiny, unseen"]
    of_map = [row for row in found if row["measure"] == "map" and row["method"] == "noisy"]
    assert [row["seed"] for row in of_map] == ["3", "5"]
    assert of_map[1]["value"] == f"{unseen['threshold_free']['map']:.6f}"


def test_tables_of_a_part_hold_that_part(data, tmp_path):
    study, folder = study_of(data), tmp_path / "study"
    document = tmp_path / "part.md"
    write_tables(study, "tiny", folder, document, ["*/*/leaning"])
    assert "leaning" not in document.read_text()
    run_study(study, folder)
    write_tables(study, "tiny", folder, document, ["*/*/leaning"])
    assert "| leaning |" in document.read_text()
    assert "noisy" not in document.read_text()


def test_patterns_choose_cells(data, tmp_path):
    study = study_of(data)
    names = [cell.name for cell in cells(study, tmp_path, ["*/*/noisy"])]
    assert names == ["one/tiny/noisy"]
    assert len(cells(study, tmp_path, ["one"])) == 3
    with pytest.raises(UserError, match="nothing is called one/huge"):
        run_study(study, tmp_path, only=["one/huge"])


@pytest.mark.parametrize(
    ("name", "said"), [("NOISY!", "too much alike"), ("a/b", "cannot be"), ("+", "cannot be")]
)
def test_names_are_folders(data, name, said):
    methods = (Method("noisy", noisy), Method(name, noisy))
    with pytest.raises(ConfigError, match=said):
        study_of(data, methods=methods)


@pytest.mark.parametrize("twice", ["sets", "methods"])
def test_names_are_unique(data, twice):
    table = study_of(data).tables[0]
    with pytest.raises(ConfigError, match="twice"):
        study_of(data, **{twice: getattr(table, twice)[:1] * 2})


_FILE = """
    '''A tiny study.'''
    import dataclasses
    from jaxmlcl.config import *
    from jaxmlcl.studies import *

    @dataclasses.dataclass(frozen=True)
    class Half:
        def fit(self, inputs, labels):
            return self
        def scores(self, inputs):
            return inputs[:, :3] > 0

    def half(data, choice, seed):
        return Fitted(Half(), data.data)

    places = {"train": "train.npz", "validation": "validation.npz", "test": "test.npz"}
    table = Table("one", "One", "A sentence.", (DataSet("tiny", Data(**places)),),
                  (Method("a", half), Method("b", half)), (0,))
    study = Study("Tiny", "What is asked.", (table,))
"""


@pytest.fixture
def workplace(data, tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "studies"
    folder.mkdir(parents=True)
    (folder / "my_tiny.py").write_text(textwrap.dedent(_FILE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    # `--data.root` sets it, for the processes of `--jobs`.
    monkeypatch.setenv("JAXMLCL_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_command(workplace, capsys, jobs):
    assert main(["reproduce", "my-tiny", "--data.root", str(workplace), "--jobs", jobs]) == 0
    text = (workplace / "docs" / "results.md").read_text()
    assert text.count("| 1 | 1 |") == 2
    assert "docs/results.md" in capsys.readouterr().out

    # A part goes elsewhere, not over the whole.
    assert main(["reproduce", "my-tiny", "--only", "one/tiny/a"]) == 0
    assert (workplace / "docs" / "results.md").read_text() == text
    part = (workplace / "runs" / "reproduce" / "my-tiny" / "results.md").read_text()
    assert part.count("| 1 | 1 |") == 1


def test_tables_are_not_replaced_by_nothing(workplace, capsys):
    published = workplace / "docs" / "results.md"
    published.parent.mkdir()
    published.write_text("figures")
    assert main(["reproduce", "my-tiny", "--tables"]) == 2
    assert "nothing is finished" in capsys.readouterr().err
    assert published.read_text() == "figures"


def test_command_lists_and_plans(workplace, capsys):
    assert main(["reproduce", "--list"]) == 0
    assert "my-tiny" in (text := capsys.readouterr().out)
    assert "A tiny study." in text
    assert main(["reproduce", "my-tiny", "--plan"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "one/tiny/a: 1 trials, 1 seeds"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reproduce"], "NAME comes first"),
        (["reproduce", "my-tin"], "did you mean my-tiny?"),
        (["reproduce", "my-tiny", "--only", "two"], "nothing is called two"),
        (["reproduce", "my-tiny", "--only", "one", "--only", "one/tyny"], "mean one/tiny?"),
        (["reproduce", "my-tiny", "--only", "two", "--jobs", "2"], "nothing is called two"),
        (["reproduce", "my-tiny", "--only", "two", "--plan"], "nothing is called two"),
        (["reproduce", "my-tiny", "-o", "configs"], "is a folder"),
        (["reproduce", "my-tiny", "--jobs", "0"], "at least 1"),
        (["reproduce", "absent.py"], "no such configuration"),
    ],
)
def test_mistakes_are_one_line(workplace, capsys, words, said):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_studies_of_the_project_load():
    folder = Path(__file__).parents[2] / "configs" / "studies"
    for path in folder.glob("*.py"):
        study = load_study(path)
        for table in study.tables if isinstance(study, Study) else ():
            for data in table.sets:
                for method in table.methods:
                    for choice in method.trials:
                        assert method.build(data, choice, table.seeds[0])
    assert find_study("mulsupcon-vectors").name == "mulsupcon_vectors.py"
