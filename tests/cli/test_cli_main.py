"""Exit codes, help, one-line errors: everything that is not one command's own."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxmlcl
from jaxmlcl.cli import COMMANDS, config
from jaxmlcl.errors import DataError, Preempted

Run = Callable[..., Any]


def process(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxmlcl", *map(str, words)]
    return subprocess.run(command, text=True, timeout=60, **options)


# ------------------------------------------------------------------------------- in a process


def test_version_and_an_unknown_command_in_a_process() -> None:
    done = process("--version", capture_output=True)
    assert (done.returncode, done.stdout) == (0, f"jaxmlcl {jaxmlcl.__version__}\n")
    done = process("trian", capture_output=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == 'jaxmlcl: unknown command "trian"; did you mean train?; see jaxmlcl --help\n'
    )


def test_a_closed_pipe_is_silent(tiny: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process("config", tiny, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys; from jaxmlcl.cli import main\n"
        "helped = [[name, '--help'] for name in ('evaluate', 'report', 'data')]\n"
        "for words in (['--help'], ['train'], *helped):\n"
        "    main(words)\n"
        "heavy = {'jax', 'flax', 'optax', 'grain', 'tyro', 'cattrs', 'matplotlib', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, timeout=60, capture_output=True, check=True
    )
    assert done.stdout.endswith("[]\n")


# ---------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_tells_commands_exit_codes_and_environment(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^  {command} (inspect |loss )?[A-Z_[]+.*\w", out, re.MULTILINE)
    for phrase in ("JAXMLCL_DATA", "--debug", "--version", "75 stopped on a signal", "2 you can"):
        assert phrase in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: jaxmlcl {command}")
    assert "--debug" in out
    # Only what opens data needs to know where they are.
    assert ("--data.root" in out) == (command not in ("compare", "bench", "export", "labels"))


def test_train_help_has_units(run: Run) -> None:
    out = " ".join(run("train", "--help").out.split())
    for phrase in (
        'A DURATION is text such as "500 steps", "10 epochs", "1e6 examples"',
        "--stages.STAGE.batch-size INT Samples per optimiser step, over all devices (samples).",
        '--stages.STAGE.duration DURATION How long (steps, epochs, examples, or "flops of STAGE").',
        "--stages.STAGE.objective.queue-capacity INT Keys held, Q (samples)",
        "--stages.STAGE.optimizer.learning-rate FLOAT Peak learning rate (per step).",
        "--checkpoint.every DURATION How often the state is saved (steps, epochs or examples).",
        "--mesh.data INT Devices along which only the batch is split (devices)",
        "`jaxmlcl train CONFIG --help` lists its fields and values",
    ):
        assert phrase in out


def test_train_config_help_has_the_configs_fields_and_values(run: Run, tiny: Path) -> None:
    code, out, err = run("train", tiny, "--help")
    assert (code, err) == (0, "")
    out = " ".join(out.split())
    assert "--stages.bce.objective.encoder.channels INT" in out
    assert (
        "--stages.pretrain.objective.head.width INT Embedding width D (units). (default: 4)" in out
    )
    assert "STAGE." not in out


# -------------------------------------------------------------------------------- exit codes


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(words: list[str]) -> None:
        raise error

    monkeypatch.setattr(config, "run", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("x.arff, line 3:\n no such label"), 2, "x.arff, line 3: no such label"),
        (Preempted("stopped after saving step 7"), 75, "stopped after saving step 7"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/r/x"), 2, "/r/x: No space left on dev"),
        (PermissionError(errno.EACCES, "Permission denied", "/r/x"), 2, "/r/x: Permission denied"),
        (
            ZeroDivisionError("a\nb"),
            1,
            "internal error (ZeroDivisionError: a b); this is a bug: run",
        ),
        (OSError(errno.EIO, "Input/output error"), 1, "internal error (OSError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_exit_codes_and_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    raising(monkeypatch, error)
    result = run("config", "x")
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"jaxmlcl: {said}")
    assert result.err.count("\n") == 1

    result = run("config", "--debug", "x")
    assert result.code == code
    assert result.err.startswith("Traceback (most recent call last):")
    assert result.err.splitlines()[-1].startswith(f"jaxmlcl: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluat"], 'unknown command "evaluat"; did you mean evaluate?'),
        (["--verson"], "did you mean --version?"),
        (["zzz"], 'unknown command "zzz"; see jaxmlcl --help'),
        (["train"], "CONFIG comes first: jaxmlcl train CONFIG [--FIELD VALUE ...]"),
        (["config", "--seed", "3", "x.py"], "CONFIG comes first: jaxmlcl config CONFIG"),
        (["train", "/nowhere/x.py"], "/nowhere/x.py: no such configuration"),
        (["evaluate"], "the following arguments are required: WORKDIR; see jaxmlcl evaluate"),
        (["evaluate", "x", "--spilt", "test"], 'unknown argument "--spilt"; did you mean --split?'),
        (["evaluate", "x", "--spl", "test"], 'unknown argument "--spl"; did you mean --split?'),
        (["evaluate", "x", "--jsn=1"], 'unknown argument "--jsn"; did you mean --json?'),
        (["evaluate", "x", "--split", "dev"], "invalid choice: 'dev' (choose from"),
        (["evaluate", "x"], "x is not a run: it has no experiment.json"),
        (["report", "a", "b"], 'unknown argument "b"'),
        (["report", "x", "--data.rot", "y"], "did you mean --data.root?"),
        (["report", "x"], "x is not a run directory"),
    ],
)
def test_wrong_command_lines_get_one_line(run: Run, words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert err.startswith("jaxmlcl: ")
