"""What every test may use: real data if it is at hand, golden vectors, 64-bit arithmetic."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Eight devices on any machine, so that sharding is tested everywhere; tests that want one take
# the first. This must come before anything touches a device.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Test vectors: inputs, values and gradient entries, computed in float64."""
    return json.loads((ROOT / "tests" / "reference" / "golden.json").read_text())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    for place in (os.environ.get("JAXMLCL_DATA"), ROOT.parent / "shared" / "data"):
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("real data not at hand: set JAXMLCL_DATA to the folder that holds vectors/")


# `jax.jit` that does not optimise: for programs that take longer to compile than to run.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False},
)


@pytest.fixture(scope="module")
def conle_compiled_quickly() -> Iterator[None]:
    """ConLE's programs, compiled without optimisation: in tests compiling takes the time."""
    from jaxmlcl.enhancement import conle

    with pytest.MonkeyPatch.context() as patch:
        for name, static in (
            ("_train", ("static",)),
            ("_follow", ("static", "looks", "every")),
            ("_recovered", ("static",)),
        ):
            plain = getattr(conle, name).__wrapped__
            patch.setattr(conle, name, quick_jit(plain, static_argnames=static))
        yield
