"""The peer of `benchmarks.cgmvae`: C-GMVAE as a PyTorch program of its users has it.

Written from the paper's formulas and the shapes in docs/methods.md. No line is tuned beyond what
such a program does by itself; batches are cut from tensors in memory, which is the fastest way.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.clock import now

LATENT = 64
KL_WEIGHT, BETA = 6.0, 0.5
CHECKPOINT_EVERY, LOG_EVERY = 1000, 50


def layers(widths: list[int], dropout: float) -> nn.Sequential:
    """Linear layers, each with ReLU and dropout."""
    found: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        found += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*found)


def log_density(z: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Log density of a diagonal Gaussian, less the constant."""
    return -0.5 * (log_variance + (z - mean) ** 2 / log_variance.exp()).sum(-1)


def mixture_kl(
    z: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor,
    label_means: torch.Tensor,
    label_log_variances: torch.Tensor,
    y: torch.Tensor,
) -> torch.Tensor:
    """The KL from one point of each row, equation 3."""
    of_labels = log_density(z[:, None], label_means[None], label_log_variances[None])
    of_labels = of_labels.masked_fill(y == 0, -torch.inf)
    mixture = torch.logsumexp(of_labels, dim=1) - y.sum(1).log()
    return (log_density(z, mean, log_variance) - mixture).mean()


def total_loss(scores: torch.Tensor, kl: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """beta (three cross-entropies) + 6 KL + CL over the label sets' and the first rows' branch."""
    entropy = sum(
        functional.binary_cross_entropy_with_logits(branch, y, reduction="sum") / len(y)
        for branch in scores
    )
    both = torch.cat([scores[0], scores[1]])
    positive = torch.cat([y, y])
    log_p = functional.log_softmax(both, dim=1)
    contrast = -((log_p * positive).sum(1) / positive.sum(1)).mean()
    return BETA * entropy + KL_WEIGHT * kl + contrast


class Network(nn.Module):
    """Encoders of rows and labels, and the decoder that both share."""

    def __init__(self, features: int, labels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.encoder = layers([features, 256, 512, 256], dropout)
        self.mean, self.log_variance = nn.Linear(256, LATENT), nn.Linear(256, LATENT)
        self.embeddings = nn.Linear(labels, embedding)
        self.label_encoder = layers([embedding, 512, 256], dropout)
        self.label_mean, self.label_log_variance = nn.Linear(256, LATENT), nn.Linear(256, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(features + LATENT, 512), nn.ReLU(), nn.Linear(512, embedding), nn.LeakyReLU()
        )
        self.dropout = nn.Dropout(dropout)

    def scores(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Logits of points of the latent space beside their rows."""
        w = functional.normalize(self.decoder(torch.cat([x, z], dim=1)), dim=1)
        return w @ self.embeddings.weight

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss of a batch."""
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        h = self.dropout(functional.relu(self.embeddings.weight.T + self.embeddings.bias))
        h = self.label_encoder(h)
        label_means, label_log_variances = self.label_mean(h), self.label_log_variance(h)
        deviation = (0.5 * log_variance).exp()
        first, second, third = (mean + deviation * torch.randn_like(mean) for _ in range(3))
        kl = mixture_kl(third, mean, log_variance, label_means, label_log_variances, y)
        center = y @ label_means / y.sum(1, keepdim=True)
        scores = torch.stack([self.scores(x, z) for z in (center, first, second)])
        return total_loss(scores, kl, y)


class Peer:
    """Answers the benchmark's questions, in a process of its own."""

    def __init__(
        self, data: str, folder: str, embedding: int, dropout: float, batch: int, cores: int
    ) -> None:
        torch.set_num_threads(cores)
        torch.manual_seed(0)
        with np.load(data) as stored:
            labels = stored["labels"].astype(np.float32)
            # A row without labels makes this program's loss infinite.
            labels[labels.sum(1) == 0, 0] = 1.0
            self.x, self.y = torch.from_numpy(stored["features"]), torch.from_numpy(labels)
        self.folder, self.batch = Path(folder), batch
        self.model = Network(self.x.shape[1], self.y.shape[1], embedding, dropout)
        self.adam = torch.optim.Adam(self.model.parameters(), lr=2e-3, weight_decay=1e-5)
        self.steps = self._loop()

    def weights(self) -> dict[str, np.ndarray]:
        """The parameters by name."""
        return {name: value.numpy() for name, value in self.model.state_dict().items()}

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of rows, from the means of their Gaussians."""
        self.model.eval()
        with torch.no_grad():
            rows = torch.from_numpy(x)
            z = self.model.mean(self.model.encoder(rows))
            found = torch.sigmoid(self.model.scores(rows, z)).numpy()
        self.model.train()
        return found

    def loss(self, scores: np.ndarray, *others: np.ndarray) -> tuple[Any, ...]:
        """The loss of given scores and Gaussians, and its gradients in all but the labels."""
        *arrays, y = (torch.from_numpy(array) for array in others)
        inputs = [torch.from_numpy(scores), *arrays]
        for one in inputs:
            one.requires_grad = True
        value = total_loss(inputs[0], mixture_kl(*inputs[1:], y), y)
        value.backward()
        return value.item(), *(one.grad.numpy() for one in inputs)

    def loop(self, count: int) -> float:
        """Seconds of `count` steps of the whole loop, with data, log and checkpoints."""
        started = now()
        for _ in range(count):
            next(self.steps)
        return now() - started

    def _loop(self) -> Iterator[None]:
        step, total = 0, 0.0
        with open(self.folder / "cgmvae-peer.jsonl", "a", buffering=1) as log:
            while True:
                order = torch.randperm(len(self.x))
                for start in range(0, len(order) - self.batch + 1, self.batch):
                    rows = order[start : start + self.batch]
                    loss = self.model(self.x[rows], self.y[rows])
                    self.adam.zero_grad()
                    loss.backward()
                    self.adam.step()
                    step, total = step + 1, total + loss.item()
                    if step % LOG_EVERY == 0:
                        log.write(json.dumps({"step": step, "loss": total / LOG_EVERY}) + "\n")
                        total = 0.0
                    if step % CHECKPOINT_EVERY == 0:
                        state = {"step": step, "model": self.model.state_dict()}
                        state["optimizer"] = self.adam.state_dict()
                        torch.save(state, self.folder / "cgmvae-peer.pt")
                    yield
