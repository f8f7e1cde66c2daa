"""Our side of `benchmarks.train_step`: the trainer's compiled step on a fixed batch of views."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import peak_memory
from benchmarks.steps import Case, prepare
from benchmarks.train_step_problem import DECAY, MOMENTUM, RATE, WIDTH, Settings
from jaxmlcl.data.augment_images import strategy
from jaxmlcl.data.source import ArraySource
from jaxmlcl.methods import MulSupCon
from jaxmlcl.models import ARCHITECTURES, Pretrained, Projection
from jaxmlcl.models.pretrained import named_weights
from jaxmlcl.training.duration import steps
from jaxmlcl.training.optimizers import Optimizer
from jaxmlcl.training.stage import Stage

# Side of the square matrices whose product says what the machine can multiply.
PRODUCT = {"cpu": 2048, "gpu": 8192}


class Ours:
    """Our side.

    Args:
      settings: the sizes.
      augmented: whether the step augments its views as SimCLR does; crops are made by the input.
      exact: whether an accelerator multiplies in full float32.
    """

    def __init__(self, settings: Settings, augmented: bool = False, exact: bool = False) -> None:
        self.start = peak_memory()
        self.settings = settings
        arrays = settings.arrays()
        self.encoder = ARCHITECTURES[settings.arch]
        augmentation = strategy("simclr") if augmented else ()
        stage = Stage(
            MulSupCon(
                encoder=self.encoder,
                # Both sides without dropout, so that they compute the same.
                head=Projection(WIDTH, dropout=0.0),
                queue_capacity=settings.queue,
            ),
            steps(1000),
            settings.batch,
            # PyTorch's SGD decays biases and normalisation as well.
            Optimizer("sgd", RATE, momentum=MOMENTUM, weight_decay=DECAY, decay_all=True),
            tuple(operation for operation in augmentation if not operation.on_host),
        )
        source = ArraySource(arrays.views[:, 0], arrays.labels, name="views")
        views = {
            "inputs": arrays.views,
            "labels": arrays.labels,
            "ids": np.arange(settings.batch, dtype=np.int32),
        }
        precision = jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
        with precision:
            prepared = prepare(
                Case(source, "unit", stage), jax.local_devices()[0], settings.precision, views
            )
        self.step, self.constants, self.compiling = (
            prepared.step,
            prepared.constants,
            prepared.seconds,
        )
        self.flop = prepared.program.flops_per_step
        self.batch = prepared.host(0)
        self.state = _with_full_queue(prepared.state, arrays.keys, arrays.key_labels)
        self.product: Any = None

    def describe(self) -> dict[str, Any]:
        """Version, device, seconds of compiling, and counted FLOPs of a step."""
        return {
            "version": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "compile_seconds": self.compiling,
            "flop": self.flop,
        }

    def run(self, count: int) -> float:
        """Seconds of so many steps."""
        started = time.perf_counter()
        for _ in range(count):
            self.state, _ = self.step(self.state, self.batch, self.constants)
        jax.block_until_ready(self.state)
        return time.perf_counter() - started

    def memory(self) -> tuple[int, int]:
        """Bytes at most, and those that the packages alone take.

        On an accelerator, whose highest mark cannot be put back, what XLA has planned for the step.
        """
        if jax.default_backend() == "cpu":
            return peak_memory(), self.start
        planned: Any = self.step.memory_analysis()
        arguments = planned.argument_size_in_bytes + planned.temp_size_in_bytes
        return arguments + planned.output_size_in_bytes - planned.alias_size_in_bytes, 0

    def products(self) -> float:
        """FLOP per second of a product of two square matrices in the step's precision."""
        if self.product is None:
            side = PRODUCT.get(jax.default_backend(), PRODUCT["gpu"])
            matrix = jnp.full((side, side), 1.0 / side, self.settings.precision)
            self.product = matrix, jax.jit(jnp.matmul)
        matrix, multiply = self.product
        flop, count = 2.0 * len(matrix) ** 3, 5
        jax.block_until_ready(multiply(matrix, matrix))
        started = time.perf_counter()
        result = matrix
        for _ in range(count):
            result = multiply(result, matrix)
        jax.block_until_ready(result)
        return flop * count / (time.perf_counter() - started)

    def weights(self) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """The initial encoder by torchvision's names, and the head's parameters in order."""
        params = jax.device_get(self.state.params)
        stats = jax.device_get(self.state.objective["batch_stats"])
        encoder = named_weights(Pretrained(self.encoder, params["encoder"], stats["encoder"]))
        first, norm, last = (params["head"][n] for n in ("Dense_0", "BatchNorm_0", "Dense_1"))
        head = [first["kernel"].T, norm["scale"], norm["bias"], last["kernel"].T, last["bias"]]
        return encoder, [np.array(array) for array in head]

    def first_steps(self) -> dict[str, list[float]]:
        """Loss and norm of the gradient of two steps."""
        found: dict[str, list[float]] = {"loss": [], "gradient_norm": []}
        for _ in range(2):
            self.state, measured = self.step(self.state, self.batch, self.constants)
            for name, values in found.items():
                values.append(float(measured[name]))
        return found


def _with_full_queue(state: Any, keys: np.ndarray, labels: np.ndarray) -> Any:
    """The state with a queue that has been filled, as it is for most of a training."""
    queue = state.objective["queue"]
    filled = dataclasses.replace(
        queue,
        keys=keys,
        labels=labels,
        ids=np.arange(len(keys), dtype=np.int32),
        count=np.int32(len(keys)),
    )
    # Copies: the step gives every buffer of its state away.
    placed = jax.tree.map(
        lambda new, old: jax.device_put(jnp.array(new, old.dtype), old.sharding), filled, queue
    )
    return dataclasses.replace(state, objective={**state.objective, "queue": placed})
