"""The page: well formed, self-contained, escaped, repeatable, and with the run's own numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlcl.errors import UserError
from jaxmlcl.report import build_report, write_report
from jaxmlcl.report._format import DASH
from jaxmlcl.report._read import read_run

VOID = {"meta", "link", "img", "br", "hr", "input"}
LINKS = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}


class Page(HTMLParser):
    """Reads a page and keeps what the tests ask for; refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        assert len({name for name, _ in attrs}) == len(attrs), f"repeated attribute in {tag}"
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def text(self, *tags: str) -> list[str]:
        """What is written in the given tags."""
        return [words for tag, words in self.words if tag in tags]

    def all_text(self) -> str:
        """Everything a reader sees."""
        return " ".join(words for tag, words in self.words if tag not in ("style", "script"))


def check(text: str) -> Page:
    """Every page must pass this: it nests, ids are unique and resolve, nothing is fetched."""
    page = Page(text)
    repeated = [name for name, times in Counter(page.ids).items() if times > 1]
    assert not repeated
    for tag, name, value in page.attributes:
        if name.startswith("xmlns"):
            continue
        assert not name.startswith("on"), f"{tag} has a handler {name}"
        if name in LINKS:
            assert value.startswith(("#", "data:image/png;base64,")), f"{tag} {name}={value[:60]}"
        for target in re.findall(r"url\(#([^)]+)\)", value) + [
            value[1:] for _ in range(name == "href") if value.startswith("#")
        ]:
            assert target in page.ids, f"{tag} {name} refers to {target}, which is not there"
        if name == "style":
            assert not re.search(r"url\((?!#)", value)
    style = " ".join(words for tag, words in page.words if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    assert page.tags["script"] == page.tags["iframe"] == page.tags["link"] == 0
    return page


def test_the_checker_finds_what_it_looks_for() -> None:
    for broken in (
        "<p><b></p></b>",
        "<p>",
        '<i id="a"></i><i id="a"></i>',
        '<img src="https://example.org/a.png">',
        '<a href="#nowhere">x</a>',
        "<script>1</script>",
        '<p onclick="f()">x</p>',
    ):
        with pytest.raises(AssertionError):
            check(broken)


def test_page_of_a_finished_run(run_directory: Path, image_samples: dict[str, Any]) -> None:
    text = build_report(run_directory, samples=image_samples)
    page = check(text)
    words = page.all_text()
    assert page.text("h1") == ["Digits, MulSupCon against BCE"]
    headings = ["Stages", "Results", "Curves", "Labels", "Samples", "Configuration"]
    assert page.text("h2") == headings
    assert page.tags["caption"] == page.tags["table"] == 5
    # What was run: 1880 * 41.2 + 900 * 9.6 + 2300 * 37.4 GFLOP, and 6000 = 1880 * 64 / epochs.
    assert "Three stages were trained: pretrain (mulsupcon, 1,880 steps of 64)," in words
    assert "Together they cost 172,116 GFLOP." in words
    assert "6,000 rows" in page.text("small")
    assert "400 rows, 10 labels" in page.text("small")
    assert "3fa94c0d3fa94c0d" in page.text("code")
    assert "1 \N{MULTIPLICATION SIGN} cpu" in page.text("dd")
    assert "2 CPU cores, JAX 0.10.2" in page.text("small")
    assert "best at 750" in page.text("small")
    # Every figure of the evaluation, as written in the file.
    stages = json.loads((run_directory / "evaluation" / "test.json").read_text())["stages"]
    cells = page.text("td", "b")
    for result in stages.values():
        for value in result["threshold_free"].values():
            assert f"{value:.3f}" in cells
        for protocol in result["protocols"].values():
            for name in ("hamming_accuracy", "example_f1", "micro_f1", "macro_f1"):
                assert f"{protocol[name]:.3f}" in cells
        for row in result["per_label"]:
            assert f"{row['average_precision']:.3f}" in cells
    assert "paper protocol (threshold chosen on the test set)" in page.text("th")
    # The row of the probe counts the pretraining it starts from; the row of BCE does not.
    assert {"86,096", "86,020"} <= set(page.text("td"))
    assert page.tags["img"] == 24
    assert '"temperature": 0.1' in words
    assert re.search(r"<pre[^>]*>\{", text)


def test_tables_and_figures_can_be_read_aloud(
    run_directory: Path, image_samples: dict[str, Any]
) -> None:
    page = check(build_report(run_directory, samples=image_samples))
    scopes = Counter(
        value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")
    )
    assert sum(scopes.values()) == page.tags["th"]
    assert scopes["col"] > 20
    assert scopes["row"] > 20
    assert scopes["rowgroup"] == 2
    spoken = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(spoken) == page.tags["svg"] == 14
    assert spoken[0].startswith("Loss of stage pretrain over training steps: training ends at")
    assert sum(tag == "img" and name == "alt" for tag, name, _ in page.attributes) == 24
    assert {"correct:", "false:", "missed:"} <= set(page.text("span"))
    assert ("html", "lang", "en") in page.attributes


def test_the_best_of_a_column_is_marked_and_only_there(
    scored_run: Path, evaluate: Callable[..., None]
) -> None:
    labels = np.eye(4, dtype=np.uint8)[np.arange(40) % 4]
    good = 0.1 + 0.8 * labels
    evaluate(scored_run, {"probe": good, "bce": 1.0 - good}, labels, list("abcd"))
    # Perfect scores win all six columns, and the four of both other protocols.
    assert check(build_report(scored_run)).text("b").count("1.000") == 14
    evaluate(scored_run, {"probe": good}, labels, list("abcd"))
    assert "1.000" not in check(build_report(scored_run)).text("b")


def test_same_files_same_text(
    run_directory: Path, image_samples: dict[str, Any], tmp_path: Path
) -> None:
    first = build_report(run_directory, samples=image_samples)
    shutil.copytree(run_directory, tmp_path / "elsewhere")
    assert build_report(tmp_path / "elsewhere", samples=image_samples) == first


def test_written_whole(run_directory: Path) -> None:
    path = write_report(run_directory)
    assert path == run_directory / "report.html"
    assert path.read_text() == build_report(run_directory)
    assert not list(run_directory.glob(".report.html.*"))


def test_text_from_the_run_is_escaped(
    scored_run: Path, evaluate: Callable[..., None], image_samples: dict[str, Any]
) -> None:
    names = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        "$x_2$",
        "\x00\ud800",
        "&",
    ]
    rng = np.random.default_rng(0)
    labels = (rng.random((30, 5)) < 0.5).astype(np.uint8)
    evaluate(scored_run, {"probe": rng.random((30, 5))}, labels, [*names[:3], "\x01", "&"])
    path = scored_run / "evaluation" / "test.json"
    path.write_text(path.read_text().replace(r"\u0001", r"\u0000\ud800"))
    experiment = scored_run / "experiment.json"
    content = json.loads(experiment.read_text())
    content["name"] = "</title><script>alert(3)</script>"
    content["stages"]["pre'\"<b>"] = {"duration": "1 steps"}
    experiment.write_text(json.dumps(content))
    for samples in (image_samples, None):
        text = build_report(scored_run, samples=samples)
        page = check(text)
        text.encode("utf-8")
        assert page.text("h1") == ["</title><script>alert(3)</script>"]
        assert page.text("th").count(names[0]) == 1
        assert page.text("th").count(names[1]) == 1
        # Neither markup nor mathematics: the name as it is, in the chart too.
        assert "$x_2$" in page.text("text")
        assert "\N{REPLACEMENT CHARACTER}" * 2 in page.text("text")


def test_only_an_experiment(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    (run / "experiment.json").write_text(json.dumps({"name": "x", "stages": {"a": {}, "b": {}}}))
    page = check(build_report(run))
    assert "Two stages were planned: a and b." in page.all_text()
    commands = [command for command in page.text("code") if command.startswith("jaxmlcl ")]
    assert commands[:5] == [
        "jaxmlcl train CONFIG",
        f"jaxmlcl evaluate '{run}'",
        "jaxmlcl train CONFIG",
        f"jaxmlcl evaluate '{run}'",
        f"jaxmlcl evaluate '{run}'",
    ]
    assert page.tags["table"] == page.tags["svg"] == page.tags["img"] == 0


def test_a_run_that_is_not_evaluated_yet(run_directory: Path) -> None:
    shutil.rmtree(run_directory / "evaluation")
    page = check(build_report(run_directory))
    assert page.tags["svg"] == 13
    assert page.tags["table"] == 1
    assert f"jaxmlcl evaluate {run_directory}" in page.text("code")


def test_evaluation_without_validation_and_without_predictions(scored_run: Path) -> None:
    for file in (scored_run / "evaluation").glob("*.npz"):
        file.unlink()
    path = scored_run / "evaluation" / "test.json"
    content = json.loads(path.read_text())
    for result in (content, *content["stages"].values()):
        del result["protocols"]["best_on_val"]
    path.write_text(json.dumps(content))
    page = check(build_report(scored_run))
    assert "there was no validation split to choose thresholds on" in page.all_text()
    assert "No predictions yet. To add them:" in page.all_text()
    assert page.text("th").count("Micro F1") == 1


def test_one_stage_one_label(run_directory: Path, evaluate: Callable[..., None]) -> None:
    experiment = {"name": "one", "stages": {"bce": {"duration": "5 steps"}}}
    (run_directory / "experiment.json").write_text(json.dumps(experiment))
    (run_directory / "stages.json").write_text('{"bce": {"objective": "bce", "steps": 5}}')
    row = {"kind": "train", "stage": "bce", "step": 5, "loss": 0.25, "learning_rate": None}
    (run_directory / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    shutil.rmtree(run_directory / "evaluation")
    evaluate(run_directory, {"bce": np.array([[0.9], [0.1]])}, np.array([[1], [0]]), ["only"])
    page = check(build_report(run_directory))
    assert f"One stage was trained: bce (bce, 5 steps of {DASH})." in page.all_text()
    assert page.text("strong") == ["Loss", "Average precision"]
    assert page.text("h3") == ["bce"]


def test_no_positive_sample_and_numbers_that_are_none(
    scored_run: Path, evaluate: Callable[..., None]
) -> None:
    labels = np.zeros((6, 2), np.uint8)
    evaluate(scored_run, {"probe": np.full((6, 2), 0.2)}, labels, ["a", "b"])
    path = scored_run / "evaluation" / "test.json"
    assert "NaN" in path.read_text()
    page = check(build_report(scored_run))
    assert "2 of the labels have no AP (no positive sample)." in page.all_text()
    assert "nan" not in page.all_text().lower()
    assert page.text("td").count(DASH) > 2


def test_many_labels_show_both_ends(scored_run: Path, evaluate: Callable[..., None]) -> None:
    rng = np.random.default_rng(2)
    labels = np.zeros((40, 983), np.uint8)
    labels[rng.integers(0, 40, 983), np.arange(983)] = 1
    labels[:, 500] = 0
    names = [f"label {index}" for index in range(983)]
    evaluate(scored_run, {"probe": rng.random((40, 983))}, labels, names)
    path = scored_run / "evaluation" / "test.json"
    content = json.loads(path.read_text())
    for index, row in enumerate(content["stages"]["probe"]["per_label"]):
        row["average_precision"] = None if index == 500 else (983 - index) / 983
    path.write_text(json.dumps(content))
    page = check(build_report(scored_run))
    shown = [name for name in page.text("th") if name.startswith("label ")]
    assert shown == names[:30] + names[-30:]
    assert page.text("summary")[:2] == [
        "The 30 labels with the highest AP",
        "The 30 labels with the lowest AP",
    ]
    assert "1 of the labels has no AP" in page.all_text()
    bars = [name for name in page.text("text") if name.startswith("label ")]
    assert bars == shown


def test_samples_are_matched_by_id(scored_run: Path, evaluate: Callable[..., None]) -> None:
    labels = np.array([[1, 0, 0], [0, 1, 1]])
    scores = np.array([[0.9, 0.6, 0.1], [0.7, 0.2, 0.8]])
    evaluate(scored_run, {"probe": scores}, labels, ["cat", "dog", "eel"])
    images = np.zeros((2, 8, 6, 3), np.uint8)
    page = check(build_report(scored_run, samples={"inputs": images, "ids": [1001, 5]}))
    assert page.tags["img"] == 1
    assert "1 of the samples given has no prediction." in page.all_text()
    words = page.all_text()
    chips = words[words.index("true dog, eel") :]
    # At the threshold chosen on validation (0.4): eel is right, cat is wrong, dog is missed.
    assert re.search(r"✓ correct: eel 0\.80 \S false: cat 0\.70 ○ missed: dog 0\.20", chips)
    assert ("img", "alt", "Sample 1001, true labels: dog, eel") in page.attributes
    sizes = {(name, v) for tag, name, v in page.attributes if tag == "img"}
    assert {("width", "6"), ("height", "8")} <= sizes


def test_unknown_labels_are_neither_right_nor_wrong(
    scored_run: Path, evaluate: Callable[..., None]
) -> None:
    labels, scores = np.array([[0, 0, 1, 0]]), np.array([[0.9, 0.8, 0.7, 0.1]])
    evaluate(scored_run, {"probe": scores}, labels, list("abcd"))
    path = scored_run / "evaluation" / "probe-test.npz"
    with np.load(path) as file:
        arrays = dict(file)
    assert "true or not is unknown" not in check(build_report(scored_run)).all_text()
    np.savez(path, **arrays, label_mask=np.array([[False, True, True, False]]))
    words = check(build_report(scored_run)).all_text()
    assert re.search(r"\? unknown: a 0\.90 \S false: b 0\.80 ✓ correct: c 0\.70", words)
    assert "? true or not is unknown" in words
    np.savez(path, **arrays, label_mask=np.ones((1, 3), bool))
    with pytest.raises(UserError, match="do not fit together"):
        build_report(scored_run)


def test_vectors_get_a_table(scored_run: Path, evaluate: Callable[..., None]) -> None:
    labels, scores = np.array([[0, 0, 0, 1]]), np.array([[0.3, 0.2, 0.1, 0.9]])
    evaluate(scored_run, {"probe": scores}, labels, list("abcd"))
    for samples in (None, {"inputs": None, "ids": np.array([1000])}):
        page = check(build_report(scored_run, samples=samples))
        assert "Samples by id, with true labels and the labels of highest score" in page.all_text()
        assert re.search(r"✓ correct: d 0\.90 rejected: a 0\.30 rejected: b 0\.20", page.all_text())
        assert "rejected: c" not in page.all_text()


def test_no_samples(scored_run: Path) -> None:
    for samples in ({"inputs": np.zeros((0, 4, 4, 1), np.uint8), "ids": []}, {"ids": [7]}):
        page = check(build_report(scored_run, samples=samples))
        assert "There are no samples with predictions to show." in page.all_text()


def test_samples_of_a_wrong_shape_are_refused(scored_run: Path) -> None:
    with pytest.raises(ValueError, match=r"inputs float64 \(2, 4, 4, 1\) should be uint8"):
        build_report(scored_run, samples={"inputs": np.zeros((2, 4, 4, 1)), "ids": [1, 2]})
    images = np.zeros((3, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="3 inputs, but 2 ids"):
        build_report(scored_run, samples={"inputs": images, "ids": [1, 2]})


def test_large_images_become_small(scored_run: Path) -> None:
    images = np.full((1, 600, 90, 3), 17, np.uint8)
    page = check(build_report(scored_run, samples={"inputs": images, "ids": [1000]}))
    sizes = {(name, value) for tag, name, value in page.attributes if tag == "img"}
    assert {("width", "22"), ("height", "150")} <= sizes


def test_half_a_last_line_is_left_out(run_directory: Path) -> None:
    path = run_directory / "metrics.jsonl"
    complete, whole = path.read_bytes(), read_run(run_directory).records
    assert len(whole) == 940 + 90 + 6 + 230 + 15
    for unfinished in (b'{"kind": "train", "stage": "bce", "step": 99', b'{"kind": "tr\xc3', b"\n"):
        path.write_bytes(complete + unfinished)
        assert read_run(run_directory).records == whole
    path.write_bytes(complete.removesuffix(b"\n"))
    assert read_run(run_directory).records == whole
    path.write_bytes(complete + b'{"kind": "train", "sta')
    check(build_report(run_directory))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("experiment.json", b'{\n"name": "x",\n"seed": }', "experiment.json, line 3: damaged JSON"),
        ("experiment.json", b"[1]", "experiment.json, line 1: damaged JSON (expected an object"),
        (
            "experiment.json",
            b'{\n"name": "\xff"}',
            "experiment.json, line 2: damaged JSON (not UTF-8",
        ),
        ("experiment.json", b"[" * 100_000, "experiment.json, line 1: damaged JSON"),
        ("stages.json", b'{"a": 3}', "stages.json: field a should be an object, found int"),
        ("stages.json", b"{", "stages.json, line 1"),
        ("metrics.jsonl", b'{"step": 1}\n\n{"step" 2}\n{"step": 3}\n', "metrics.jsonl, line 3"),
        ("metrics.jsonl", b'{"step": 1}\nnull\n', "metrics.jsonl, line 2"),
        ("metrics.jsonl", b'{"step": 1}\n\xff\n{"step": 3}\n', "metrics.jsonl, line 2"),
        ("metrics.jsonl", b'{"step": 1}\n{"step": 2}\n{"step": "\xff"}\n', "metrics.jsonl, line 3"),
        ("metrics.jsonl", b'{"step": 1}\n{"ste\n', "metrics.jsonl, line 2"),
        ("evaluation/test.json", b'{"stages": []}', "field stages should be an object, found list"),
        ("evaluation/test.json", b'{"data": 1}', "field data should be an object"),
        (
            "evaluation/test.json",
            b'{"stages": {"a": {"protocols": {"paper": 1}}}}',
            "field stages.a.protocols.paper should be an object",
        ),
        (
            "evaluation/test.json",
            b'{"stages": {"a": {"per_label": [3]}}}',
            "field stages.a.per_label[0] should be an object",
        ),
        ("evaluation/bce-test.npz", b"PK\x03\x04 not really", "bce-test.npz: damaged predictions"),
        ("evaluation/bce-test.npz", b"", "bce-test.npz: damaged predictions"),
    ],
)
def test_damaged_files(run_directory: Path, file: str, content: bytes, message: str) -> None:
    (run_directory / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        build_report(run_directory)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_predictions_that_do_not_fit_or_hold_objects(scored_run: Path) -> None:
    path = scored_run / "evaluation" / "bce-test.npz"
    fields = {"ids": np.arange(3), "scores": np.zeros((3, 2)), "labels": np.zeros((3, 2), np.uint8)}
    np.savez(path, **fields, label_names=np.array(["a"]))
    with pytest.raises(UserError, match=r"scores \(3, 2\), .* 1 label names do not fit together"):
        build_report(scored_run)
    np.savez(path, **fields, label_names=np.array(["a", "b"], dtype=object))
    with pytest.raises(UserError, match="damaged predictions"):
        build_report(scored_run)


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory: it has no experiment\.json"):
        build_report(tmp_path)


def test_any_part_may_be_of_an_unexpected_kind(run_directory: Path) -> None:
    """Values that are not numbers are dashes; only broken structure is an error."""
    entry: dict[str, Any] = {"objective": None, "steps": "many", "bytes": [], "machine": 3}
    (run_directory / "stages.json").write_text(json.dumps({"bce": entry | {"epochs": math.inf}}))
    (run_directory / "experiment.json").write_text('{"stages": [], "data": 3, "seed": {}}')
    rows = [
        {"kind": "train", "stage": "bce", "step": 10**400, "loss": 1},
        {"kind": "train", "stage": "bce", "step": 2, "loss": "high", "gradient_norm": math.inf},
        {"kind": 3},
    ]
    (run_directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = check(build_report(run_directory))
    assert "Nothing has been logged yet." in page.all_text()
