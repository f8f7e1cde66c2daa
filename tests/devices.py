"""Eight devices for tests that need them: a process of its own where there are fewer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

MARK = "JAXMLCL_IN_EIGHT_DEVICES"
needs_eight = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs 8 devices; test_in_eight_devices starts them"
)
starts_eight = pytest.mark.skipif(
    len(jax.devices()) >= 8 or MARK in os.environ, reason="there are 8 devices already"
)


def run_in_eight_devices(file: str) -> None:
    """Run a file's tests in a process with eight devices; they must pass."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", MARK: "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", file]
    result = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


def check_devices() -> None:
    """The process has the devices it asked for."""
    assert MARK not in os.environ or len(jax.devices()) == 8
