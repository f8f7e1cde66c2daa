"""Our side of `benchmarks.cgmvae`: the trainer on one of the configurations' stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.clock import now
from benchmarks.jax_side import Watch
from jaxmlcl import config
from jaxmlcl.losses import mixture_kl
from jaxmlcl.training.trainer import train


class Ours:
    """Our side, in a process of its own."""

    def __init__(self, data: str, folder: str, embedding: int, dropout: float, batch: int) -> None:
        self.folder, self.runs = Path(folder) / f"{Path(data).stem}-runs", 0
        stage = config.cgmvae_stage(
            rate=2e-3, embedding=embedding, dropout=dropout, batch_size=batch
        )
        # The peer's loop does not validate, so neither does ours.
        self.stage = dataclasses.replace(stage, select="last", patience=None)
        self.data = config.Data(train=data, inputs="raw")

    def scores(self, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        """Probabilities of rows, from the peer's weights."""

        def dense(name: str) -> dict[str, np.ndarray]:
            return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

        first, features = dense("decoder.0"), x.shape[1]
        params = {
            "encoder": {f"Dense_{i}": dense(f"encoder.{3 * i}") for i in range(3)},
            "head": {"mean": dense("mean"), "log_variance": dense("log_variance")},
            "decoder": {
                "kernel_features": first["kernel"][:features],
                "kernel_point": first["kernel"][features:],
                "bias": first["bias"],
                "Dense_0": dense("decoder.2"),
            },
            "labels": {"embeddings": weights["embeddings.weight"].T},
        }
        state: dict[str, Any] = {"batch_stats": {"encoder": {}}}
        return np.asarray(self.stage.objective.scores(params, state, jnp.asarray(x)))

    def loss(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        """The loss of given scores and Gaussians, and its gradients in all but the labels."""
        *inputs, y = map(jnp.asarray, arrays)
        objective: Any = self.stage.objective

        def total(inputs: list[jax.Array]) -> jax.Array:
            scores, z, mean, log_variance, label_means, label_log_variances = inputs
            kl = mixture_kl(
                z[None],
                mean,
                jnp.exp(log_variance),
                label_means,
                jnp.exp(label_log_variances),
                y,
            )
            value: jax.Array = objective.total(scores, kl, y, None)[0]
            return value

        value, slopes = jax.value_and_grad(total)(inputs)
        return float(value), *map(np.asarray, slopes)

    def loop(self, count: int) -> float:
        """Seconds of a whole run from its first step to its last checkpoint."""
        self.runs += 1
        stage = dataclasses.replace(self.stage, duration=config.steps(count))
        experiment = config.Experiment(
            "cgmvae",
            self.data,
            {"train": stage},
            workdir=str(self.folder / str(self.runs)),
        )
        watch = Watch()
        train(experiment, config.to_json(experiment), console=watch)
        return now() - watch.began
