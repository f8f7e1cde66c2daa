"""The documentation is true: code runs, commands resolve, tables and links are right."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import jaxmlcl
from jaxmlcl import cli
from jaxmlcl.cli.processes import take
from jaxmlcl.config import load, override
from jaxmlcl.config._fields import BASES
from tests.conftest import ROOT

PACKAGE = Path(jaxmlcl.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FOLDERS = "jaxmlcl|configs|docs|tests|benchmarks|launch"
_FILES = r"[A-Z]+\.(?:md|cff)|LICENSE|Makefile|pyproject\.toml"


def pages() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    """A page without its comments, which readers do not see."""
    return re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def prose_of(page: Path) -> str:
    return _FENCE.sub("", text_of(page))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return _FENCE.findall(text_of(page))


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the page's shell blocks."""
    text = "".join(body for language, body in blocks(page) if language == "sh")
    lines = text.replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def write_configurations(page: Path, folder: Path) -> None:
    """The page's Python blocks that name their file, as files."""
    for language, body in blocks(page):
        name = re.match(r"# (\w+\.py)\n", body)
        if language == "python" and name:
            (folder / name[1]).write_text(body)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def fields() -> ModuleType:
    """The script that makes the tables."""
    spec = importlib.util.spec_from_file_location("fields", ROOT / "docs" / "fields.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_fields_are_up_to_date() -> None:
    script = fields()
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.render(page) == page, "run `python docs/fields.py`"


def test_every_class_of_a_configuration_has_its_table() -> None:
    script = fields()
    written = re.findall(r"<!-- fields: (\w+) -->", script.PAGE.read_text(encoding="utf-8"))
    families = {
        kind.__name__
        for base in BASES
        for kind in base.__subclasses__()
        if kind.__module__.startswith("jaxmlcl.")
    }
    assert len(written) == len(set(written))
    assert set(written) == set(script.specs())
    assert families <= set(written)


def test_every_field_says_what_it_means() -> None:
    script = fields()
    silent = [
        f"{name}.{field.name}"
        for name, spec in script.specs().items()
        for field in dataclasses.fields(spec)
        if not script.meanings(spec)[field.name]
    ]
    assert silent == []


@pages()
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pages()
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(rf"(?<![\w/.-])((?:{_FOLDERS})/[\w./-]+|{_FILES})", text_of(page))
    # Capitals in a path stand for names that the reader chooses.
    chosen = re.compile(r"/[A-Z]|_[A-Z]+\.py")
    paths = {name.rstrip("./") for name in named if not chosen.search(name)}
    # The package may be an installed one.
    places = {path: PACKAGE.parent if path.startswith("jaxmlcl/") else ROOT for path in paths}
    assert [path for path in sorted(paths) if not (places[path] / path).exists()] == []


@pages()
@pytest.mark.usefixtures("conle_compiled_quickly")
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for (language, body), following in itertools.pairwise([*blocks(page), ("", "")]):
        if language != "python":
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(body, str(page), "exec", dont_inherit=True), {"__name__": "example"})
        if output.getvalue():
            assert following == ("text", output.getvalue())


@pages()
def test_commands_resolve(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_configurations(page, tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for words in commands(page):
        # What is set for one command stands before it.
        program, *words = itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words)
        if program == "launch/local.sh":
            assert (ROOT / program).exists()
            assert int(words[0]) > 0
            program, words = "jaxmlcl", words[1:]
        if program == "jaxmlcl":
            command, target, *flags = words
            assert command in cli.COMMANDS
            if command in ("train", "config"):
                _, flags = take(flags)
                override(load(target), [flag for flag in flags if flag != "--json"])
        elif program == "pip":
            named = re.findall(r"\[([\w-]+)\]", words[-1])
            assert words[0] == "install"
            assert set(named) <= set(extras)
        else:
            assert program == "make"


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in [
            *re.findall(r"`make ([a-z-]+)`", prose_of(page)),
            *(words[1] for words in commands(page) if words[0] == "make"),
        ]
    }
    assert {"quickstart", "test"} <= named
    assert named <= targets


def test_exit_codes_are_those_of_the_command_line() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    codes = re.findall(r"^\| (\d+) \|", page.partition("## Exit codes")[2], re.MULTILINE)
    source = Path(cli.__file__).read_text(encoding="utf-8")
    assert codes == ["0", "1", "2", "75", "130"]
    assert all(re.search(rf"\b{code}\b", source.split('"""')[1]) for code in codes)


def test_citation_and_licence() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert f"\nversion: {jaxmlcl.__version__}\n" in citation
    assert "\nlicense: Apache-2.0\n" in citation
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.slow
def test_the_readme_trains_on_your_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "FOLDER"
    folder.mkdir()
    # The arrays and HDF5 files are those that docs/data.md makes; the ARFF files hold the same.
    monkeypatch.chdir(folder)
    body = next(b for kind, b in blocks(ROOT / "docs" / "data.md") if "h5py.File" in b)
    made: dict[str, object] = {"__name__": "example"}
    exec(compile(body, "data.md", "exec"), made)
    x, y, names = made["features"], made["labels"], made["names"]
    columns = [f"f{i} numeric" for i in range(20)] + [f"{name} {{0,1}}" for name in names]
    header = "@relation birds\n" + "".join(f"@attribute {c}\n" for c in columns) + "@data\n"
    order = made["order"]
    cuts = {"train": order[:200], "validation": order[700:750], "test": order[800:]}
    for split, rows in cuts.items():
        lines = [",".join(map(str, [*x[row], *y[row]])) for row in rows]
        Path(f"birds-{split}.arff").write_text(header + "\n".join(lines) + "\n")
    labels = "".join(f'<label name="{name}"/>' for name in names)
    Path("birds.xml").write_text(f"<labels>{labels}</labels>")

    monkeypatch.chdir(tmp_path)
    new = [",".join(column.split()[0] for column in columns[:20]), ",".join(map(str, x[0]))]
    Path("new.csv").write_text("\n".join(new))
    page = ROOT / "README.md"
    write_configurations(page, tmp_path)
    short = []
    for stage in ("pretrain", "probe", "bce"):
        short += [f"--stages.{stage}.duration", "3 steps"]
    run = [
        words[1:]
        for words in commands(page)
        if words[0] == "jaxmlcl"
        and any(word == "birds.py" or word.startswith("runs/birds") for word in words)
    ]
    assert [words[0] for words in run] == [
        *("config", "train", "evaluate", "report"),
        *("train", "evaluate", "predict"),
        *("embed", "compare", "sweep"),
    ]
    for words in run:
        assert cli.main([*words, *(short if words[0] in ("train", "sweep") else [])]) == 0, words
    assert '"best_on_val"' in capsys.readouterr().out
    assert (tmp_path / "runs" / "birds" / "report.html").exists()
    many = [words for words in commands(page) if "launch/local.sh" in words]
    assert [words[3] for words in many] == ["train", "evaluate"]
    program = {"JAXMLCL": f"{sys.executable} -m jaxmlcl", "JAX_PLATFORMS": "cpu", "DEVICES": "2"}
    for words in many:
        command = [str(ROOT / words[1]), *words[2:], *(short if words[3] == "train" else [])]
        place = {"PYTHONPATH": str(PACKAGE.parent), "PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, env={**os.environ, **program, **place}, timeout=300)
        assert done.returncode == 0
    assert (tmp_path / "runs" / "birds-2" / "evaluation" / "test.json").exists()
    header, row = Path("scores.csv").read_text().splitlines()
    assert header == ",".join(["id", *map(str, names)])
    assert row.startswith("0,0.")


@pytest.mark.slow
def test_the_readme_trains_on_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")
    from benchmarks.input import parts_of_photographs

    folder = tmp_path / "FOLDER"
    folder.mkdir()
    animals = parts_of_photographs(folder / "animals", count=96)
    header, *lines = (animals / "labels.csv").read_text().splitlines()
    cuts = ["train"] * 64 + ["validation"] * 16 + ["test"] * 16
    named = [line.replace(",", f",{cut},") for line, cut in zip(lines, cuts, strict=True)]
    (animals / "labels.csv").write_text("\n".join([header.replace(",", ",split,"), *named]))
    monkeypatch.chdir(tmp_path)
    page = ROOT / "README.md"
    write_configurations(page, tmp_path)
    short = ["--data.images.size", "32", "--stages.pretrain.objective.queue-capacity", "64"]
    short += ["--stages.pretrain.batch-size", "16", "--stages.probe.batch-size", "16"]
    steps = []
    for stage in ("pretrain", "probe"):
        steps += [f"--stages.{stage}.duration", "3 steps"]
    run = [
        words[1:]
        for words in commands(page)
        if words[0] == "jaxmlcl" and any("animals" in word for word in words)
    ]
    assert [words[:2] for words in run] == [
        ["data", "inspect"],
        ["bench", "input"],
        ["train", "animals.py"],
        ["evaluate", "runs/animals"],
        ["predict", "runs/animals"],
        ["data", "pack"],
    ]
    for words in run:
        more = {"train": [*short, *steps], "bench": [*short, "--seconds", "0.2"]}
        assert cli.main([*words, *more.get(words[0], [])]) == 0, words
    out = capsys.readouterr().out
    assert "a run is bound by " in out
    assert "0 of" not in out
    assert len((tmp_path / "animals.csv").read_text().splitlines()) == 97
    assert cli.main(["data", "inspect", "shards:packed/train"]) == 0


@pytest.mark.slow
def test_the_readme_enhances_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "README.md"
    [(place, data)] = [(i, b) for i, (_, b) in enumerate(blocks(page)) if "photos.npz" in b][:1]
    exec(compile(data, "README.md", "exec"), {"__name__": "example"})
    (language, command), (_, shown) = blocks(page)[place + 1 : place + 3]
    assert language == "sh"
    program, *words = shlex.split(command)
    assert program == "jaxmlcl"
    assert cli.main(words) == 0
    assert Path("enhanced.npz").exists()

    def table(text: str) -> tuple[str, list[list[str]]]:
        told, *lines = text.splitlines()
        return re.sub(r"[\d.]+ s,", "", told), [re.split(r"  +", line) for line in lines]

    told, rows = table(capsys.readouterr().out)
    shown_told, shown_rows = table(shown)
    assert told == shown_told
    # What a network gives depends on the processor in the last digits; the rest does not.
    assert rows[:1] + rows[2:] == shown_rows[:1] + shown_rows[2:]
    assert rows[1][0] == shown_rows[1][0] == "ConLE"
    figures = [[float(value) for value in row[1][1:]] for row in (rows, shown_rows)]
    assert figures[0] == pytest.approx(figures[1], rel=0.05)
