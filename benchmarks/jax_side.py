"""Our side of `benchmarks.vectors`: the released Yeast recipe, its step, and the step's parts."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.clock import now
from jaxmlcl import config
from jaxmlcl.data.pipeline import GlobalOrder, Indices
from jaxmlcl.losses import multi_positive_infonce
from jaxmlcl.random import bernoulli, row_words
from jaxmlcl.sharding import batch_sharding
from jaxmlcl.training.console import Silent
from jaxmlcl.training.program import build_stage, device_constants
from jaxmlcl.training.splits import fit_preparation, open_split
from jaxmlcl.training.trainer import train

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mulsupcon" / "yeast_released.py"
# Inputs and outputs of the linear layers of encoder and head, and their queue.
LAYERS = ((103, 256), (256, 512), (512, 256), (256, 256), (256, 256))
QUEUE = 256


class Watch(Silent):
    """Notes when the first step begins."""

    began = 0.0

    def start(self, stage: str, step: int, total: int, batch_size: int) -> None:
        """The stage is compiled and begins."""
        super().start(stage, step, total, batch_size)
        self.began = now()


class Ours:
    """Our side, in a process of its own."""

    def __init__(self, root: str, folder: str) -> None:
        self.root = root
        self.folder = Path(folder)
        self.runs = 0
        self.released = config.load(CONFIG)
        self.steps: dict[int, Any] = {}

    def describe(self) -> dict[str, Any]:
        """Version, and number of trained parameters."""
        leaves = jax.tree.leaves(self._program(64).abstract.params)
        return {"version": jax.__version__, "parameters": sum(leaf.size for leaf in leaves)}

    def loss(self, *arrays: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss of given embeddings and labels, and its gradient in the anchors."""
        value, gradient = jax.value_and_grad(multi_positive_infonce)(*arrays, temperature=0.1)
        return float(value), np.asarray(gradient)

    def loop(self, batch: int, count: int) -> tuple[float, float]:
        """Seconds of a whole run from its first step to its last checkpoint, and of compiling."""
        self.runs += 1
        workdir = self.folder / f"run-{self.runs}"
        experiment = self._experiment(batch, count, workdir)
        watch = Watch()
        train(experiment, config.to_json(experiment), console=watch)
        seconds = now() - watch.began
        stages = json.loads((workdir / "stages.json").read_text())
        return seconds, stages["pretrain"]["compile_seconds"]

    def step(self, batch: int, count: int) -> float:
        """Seconds of `count` compiled steps, on batches whose indices are on the device."""
        step, state, hosts, constants = self._compiled(batch)
        started = now()
        for index in range(count):
            state, _ = step(state, hosts[index % len(hosts)], constants)
        jax.block_until_ready(state)
        self.steps[batch] = (step, state, hosts, constants)
        return now() - started

    def gflop(self, batch: int) -> float:
        """GFLOP of the matrix products that `parts` runs."""
        weights = sum(a * b for a, b in LAYERS)
        # Forward twice, gradients twice, but none in the inputs; scores, and their gradient.
        products = 4 * weights - LAYERS[0][0] * LAYERS[0][1] + 2 * (batch + QUEUE) * 256
        return 2e-9 * batch * products

    def parts(self, batch: int) -> dict[str, float]:
        """Least milliseconds of the whole step and of its parts, each by itself."""
        weights = [jnp.full(shape, 0.01) for shape in LAYERS]

        @jax.jit
        def products(weights: Any, x: jax.Array) -> Any:
            outputs, layers, keys = [], [x], x + 1.0
            for weight in weights:
                layers.append(layers[-1] @ weight)
                keys = keys @ weight
            candidates = jnp.concatenate([keys, jnp.ones((QUEUE, 256))])
            scores = layers[-1] @ candidates.T
            slope = scores @ candidates
            for index in reversed(range(len(weights))):
                outputs.append(layers[index].T @ slope)
                slope = slope @ weights[index].T if index else slope
            return outputs

        @jax.jit
        def masks(key: jax.Array) -> Any:
            # Two views, of each its mask and four layers of dropout.
            widths = (103, 256, 512, 256, 256) * 2
            return [
                bernoulli(row_words(jax.random.fold_in(key, i), jnp.arange(batch)), width, 0.8)
                for i, width in enumerate(widths)
            ]

        adam = optax.adam(4e-4)

        @functools.partial(jax.jit, donate_argnums=0)
        def update(carry: Any, grads: Any) -> Any:
            params, state, key_params = carry
            key_params = jax.tree.map(lambda k, q: 0.999 * k + 0.001 * q, key_params, params)
            updates, state = adam.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            norms = [optax.tree.norm(tree) for tree in (grads, params, updates)]
            return (params, state, key_params), norms

        def moved() -> Any:
            nonlocal carry
            carry, norms = update(carry, weights)
            return norms

        params, key_params = (jax.tree.map(jnp.copy, weights) for _ in range(2))
        carry = (params, adam.init(params), key_params)
        x, key = jnp.ones((batch, LAYERS[0][0])), jax.random.key(0)
        calls = {
            "matrix products": lambda: products(weights, x),
            "random bits of masks and dropout": lambda: masks(key),
            "Adam, momentum encoder, norms": moved,
        }
        result = {"whole step": 1e3 * min(self.step(batch, 50) for _ in range(7)) / 50}
        return result | {name: 1e3 * least(call) for name, call in calls.items()}

    def _experiment(self, batch: int, count: int, workdir: Path) -> Any:
        stage = self.released.stages["pretrain"]
        changes = {"duration": config.steps(count), "batch_size": batch}
        return dataclasses.replace(
            self.released,
            data=dataclasses.replace(self.released.data, root=self.root),
            stages={"pretrain": dataclasses.replace(stage, **changes)},
            main=None,
            workdir=str(workdir),
        )

    def _program(self, batch: int) -> Any:
        experiment = self._experiment(batch, 1000, self.folder / "unused")
        self.source = open_split(experiment.data, "train")
        mesh = experiment.mesh.build(None)
        return build_stage(experiment, "pretrain", mesh, self.source, {})

    def _compiled(self, batch: int) -> Any:
        if batch not in self.steps:
            program = self._program(batch)
            data = self._experiment(batch, 1000, self.folder / "unused").data
            preparation = fit_preparation(data, self.source)
            constants = device_constants(preparation, self.source, program.mesh, "float32")
            order = Indices(GlobalOrder(len(self.source), batch, 0), program.mesh.size)
            step, _ = program.compile(order[0], constants)
            rows = batch_sharding(program.mesh)
            hosts = [jax.device_put(order[index], rows) for index in range(4)]
            self.steps[batch] = (step, program.initial(None), hosts, constants)
        return self.steps[batch]


def least(call: Callable[[], Any], rounds: int = 7, count: int = 20) -> float:
    """Seconds of one call: the least mean of several rounds, which noise cannot shorten."""
    jax.block_until_ready(call())
    results = []
    for _ in range(rounds):
        started = now()
        for _ in range(count):
            result = call()
        jax.block_until_ready(result)
        results.append((now() - started) / count)
    return min(results)
