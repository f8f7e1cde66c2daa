"""A command line that runs in this process, and small configurations for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from jaxmlcl.cli import main

DIGITS = """
from jaxmlcl.config import *

encoder = ResNet(depths=(1,), channels=2, stem="small")
experiment = Experiment(
    "tiny",
    Data("digits:train?size=32", "digits:validation?size=40", "digits:test?size=24", inputs="unit"),
    {
        "pretrain": Stage(
            MulSupCon(encoder=encoder, head=Projection(width=4), queue_capacity=16),
            steps(2),
            batch_size=8,
        ),
        "probe": Stage(
            linear_probe(encoder),
            steps(2),
            batch_size=8,
            starts_from="pretrain",
            frozen=("^encoder/",),
        ),
        "bce": Stage(Classification(encoder=encoder), steps(2), batch_size=8),
    },
    seed=5,
)
"""


class Result(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*words: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "tiny.py"
    path.write_text(DIGITS)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.py").write_text(DIGITS)
    workdir = folder / "run"
    assert main(["train", str(folder / "tiny.py"), "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture(autouse=True)
def _same_precision_afterwards() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)
