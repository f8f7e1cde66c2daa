"""How this project uses Orbax: which options, what is copied first, and quietly."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def handler() -> ocp.PyTreeCheckpointHandler:
    """What writes and reads a flat dictionary of arrays."""
    # Weights hardly compress, and zstd takes three times as long as the writing. Splitting
    # replicated arrays among their replicas would compile a slice for every shape.
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)


def detached(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The arrays, copied where the transfer to the host would be a view of the caller's buffer.

    On such a view JAX cannot use a donated buffer in place, so the next step would silently
    take memory and time for a second state.
    """
    return {
        path: jax.device_put(array, array.sharding, may_alias=False) if _on_host(array) else array
        for path, array in arrays.items()
    }


def _on_host(array: jax.Array) -> bool:
    devices: set[Any] = set(array.sharding.device_set)
    on_cpu = any(device.platform == "cpu" for device in devices)
    return on_cpu or array.sharding.memory_kind not in (None, "device")


class _OrbaxNoise(logging.Filter):
    """Drops what is logged of Orbax's doings, unless absl was asked for more than warnings."""

    def filter(self, record: logging.LogRecord) -> bool:
        asked = logging.getLogger("absl").isEnabledFor(logging.INFO)
        if record.name == "asyncio":
            # Named by its code, or by the temporary folder in which the file could not be written.
            return asked or "orbax" not in record.getMessage()
        return asked or f"{os.sep}orbax{os.sep}" not in record.pathname


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Orbax off the terminal: its errors reach the user as exceptions, told once.

    When one array cannot be written, Orbax closes its event loop under the others: asyncio logs
    each of them, and TensorStore's threads print that the loop is closed.
    """
    noise, before = _OrbaxNoise(), sys.unraisablehook
    loggers = [logging.getLogger("absl"), logging.getLogger("asyncio")]

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    for logger in loggers:
        logger.addFilter(noise)
    sys.unraisablehook = hook
    yield
    # Not after a failure: the other arrays may still have to fail.
    for logger in loggers:
        logger.removeFilter(noise)
    if sys.unraisablehook is hook:
        sys.unraisablehook = before
