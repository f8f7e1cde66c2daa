"""How this project uses Orbax: which options, what is copied first, and quietly."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmlcl.errors import UserError
from jaxmlcl.training._storage import is_remote

# Beyond that TensorStore's error is told: its own 32 attempts take a quarter of an hour.
_RETRIES = {"max_retries": 7, "initial_delay": "1s", "max_delay": "16s"}


def writer(folder: Path) -> ocp.AsyncCheckpointer:
    """What writes a flat dictionary of arrays below `folder`, in the background.

    Raises:
      UserError: this Orbax cannot be made to write to such a bucket.
    """
    return ocp.AsyncCheckpointer(
        _handler(),
        # In the foreground a folder that cannot be made fails at once; in the background
        # Orbax's other threads would wait for it until their time is up.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        **_in_a_bucket(folder),
    )


def reader(folder: Path) -> ocp.Checkpointer:
    """What reads a flat dictionary of arrays from below `folder`.

    Raises:
      UserError: this Orbax cannot be made to read from such a bucket.
    """
    return ocp.Checkpointer(_handler(), **_in_a_bucket(folder))


def _in_a_bucket(folder: Path) -> dict[str, Any]:
    """Options for a bucket, where a rename copies every object; the manifest does without."""
    if not is_remote(folder):
        return {}
    _teach_buckets(str(folder))
    from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath

    return {"temporary_path_class": CommitFileTemporaryPath}


# The functions that make the addresses which TensorStore opens: of the arrays, and of a small file
# beside them. Both, or Orbax writes the second into a local folder called "s3:".
_ADDRESSES = ("_build_ocdbt_kvstore_tspec", "_build_non_ocdbt_kvstore_tspec")


def _teach_buckets(place: str) -> None:
    """Make Orbax reach s3, and end its attempts in time, in both stores.

    Orbax (as of 0.12.8) gives gs:// to TensorStore's driver of that store, takes s3:// for a
    relative path, and lets neither the endpoint nor the retries be chosen.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils

    originals = [getattr(tensorstore_utils, name, None) for name in _ADDRESSES]
    if None in originals:
        if place.startswith("gs://"):
            return  # its own way will do
        raise UserError(
            f"{place}: Orbax {ocp.__version__} cannot keep checkpoints in s3; keep them in gs:// "
            'or in a mounted bucket (mountpoint-s3), or install "orbax-checkpoint==0.12.8"'
        )
    for name, original in zip(_ADDRESSES, originals, strict=True):
        if not getattr(original, "knows_s3", False):
            setattr(tensorstore_utils, name, _knowing_s3(original))


def _knowing_s3(original: Any) -> Any:
    def build(directory: str, *args: Any, **options: Any) -> Any:
        directory = os.fspath(directory)
        if not is_remote(directory):
            return original(directory, *args, **options)
        as_gs = re.sub(r"^s3://", "gs://", directory)
        spec = original(as_gs, *args, **options)
        _adapt(spec, s3=as_gs != directory)
        return spec

    build.knows_s3 = True  # type: ignore[attr-defined]
    return build


def _adapt(spec: Any, *, s3: bool) -> None:
    """Change the addresses of the store within a specification for TensorStore."""
    if isinstance(spec, list):
        for part in spec:
            _adapt(part, s3=s3)
    elif isinstance(spec, dict):
        if spec.get("driver") in ("gcs", "gcs_grpc") and s3:
            spec.update(driver="s3", **_s3_options())
            spec["s3_request_retries"] = _RETRIES
        elif spec.get("driver") == "gcs":
            spec["gcs_request_retries"] = _RETRIES
        for part in spec.values():
            _adapt(part, s3=s3)


def _s3_options() -> dict[str, Any]:
    """What TensorStore does not take from the environment as the AWS tools do."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {
        "endpoint": endpoint,
        "aws_region": region or (endpoint and "us-east-1"),
    }
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        # Otherwise it complains on the terminal that there is no ~/.aws.
        options["aws_credentials"] = {"type": "environment"}
    return {name: value for name, value in options.items() if value}


def _handler() -> ocp.PyTreeCheckpointHandler:
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
