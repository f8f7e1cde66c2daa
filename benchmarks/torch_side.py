"""The peer of `benchmarks.vectors`: MulSupCon on vectors as a PyTorch program of its users has it.

Written from the paper's formulas: one loss row for every pair of an anchor and one of its labels, a
momentum encoder, a queue of keys and labels, and a DataLoader whose samples are scaled and masked
one by one. No line is tuned beyond what such a program does by itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.clock import now
from benchmarks.torch_loss import rows_loss

WIDTH = 256
MOMENTUM = 0.999
# Rounds of 1000 steps with a checkpoint at the end of each, a line in the log every 50 steps.
ROUND, LOG_EVERY = 1000, 50


def network(features: int) -> nn.Module:
    """The encoder 256-512-256 and the projection head."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((features, 256), (256, 512), (512, 256)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.2)]
    layers += [nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(256, WIDTH))


class Pretraining(nn.Module):
    """Query encoder, momentum encoder and queue; `forward` gives a step's loss."""

    def __init__(self, features: int, labels: int, capacity: int) -> None:
        super().__init__()
        self.query = network(features)
        self.key = copy.deepcopy(self.query)
        for parameter in self.key.parameters():
            parameter.requires_grad = False
        keys = functional.normalize(torch.randn(capacity, WIDTH), dim=1)
        self.register_buffer("queue", keys)
        self.register_buffer("queue_labels", torch.zeros(capacity, labels))
        self.pointer, self.full = 0, False

    def forward(self, views: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of views [B, 2, features] with labels [B, L]; the queue moves on."""
        q = functional.normalize(self.query(views[:, 0]), dim=1)
        with torch.no_grad():
            pairs = zip(self.key.parameters(), self.query.parameters(), strict=True)
            for of_key, of_query in pairs:
                of_key.mul_(MOMENTUM).add_(of_query, alpha=1.0 - MOMENTUM)
            k = functional.normalize(self.key(views[:, 1]), dim=1)
            old, old_labels = self.queue.clone(), self.queue_labels.clone()
            end = self.pointer + len(k)
            self.queue[self.pointer : end] = k
            self.queue_labels[self.pointer : end] = labels
            self.full = self.full or end == len(old)
            self.pointer = end % len(old)
        if not self.full:
            return rows_loss(q, k, labels, labels)
        return rows_loss(q, torch.cat([k, old]), labels, torch.cat([labels, old_labels]))


class Rows(Dataset):
    """Samples, each scaled by itself and masked twice when it is asked for."""

    def __init__(self, file: Path) -> None:
        with h5py.File(file) as data:
            self.inputs = np.asarray(data["feature"], np.float32)
            self.labels = np.asarray(data["target"], np.float32)
        self.scaler = StandardScaler().fit(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.scaler.transform(self.inputs[index].reshape(1, -1))[0]
        x = torch.from_numpy(row.astype(np.float32))
        views = torch.stack([x * (torch.rand(len(x)) > 0.5) for _ in range(2)])
        return views, torch.from_numpy(self.labels[index])


class Peer:
    """Answers the benchmark's questions, in a process of its own."""

    def __init__(self, data: str, folder: str, cores: int, queue: int, workers: int) -> None:
        torch.set_num_threads(cores)
        torch.manual_seed(0)
        self.rows = Rows(Path(data))
        self.folder = Path(folder)
        self.queue = queue
        self.workers = workers
        self.bare: dict[int, Any] = {}
        self.loops: dict[int, Any] = {}

    def describe(self) -> dict[str, Any]:
        """Version, threads and number of trained parameters."""
        model, _ = self._model()
        return {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in model.query.parameters()),
        }

    def loss(self, *arrays: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss of given embeddings and labels, and its gradient in the anchors."""
        anchors, *others = (torch.from_numpy(array) for array in arrays)
        anchors.requires_grad = True
        value = rows_loss(anchors, *others)
        value.backward()
        return value.item(), anchors.grad.numpy()

    def step(self, batch: int, count: int) -> float:
        """Seconds of `count` bare steps on one fixed batch: loss, gradient, Adam."""
        if batch not in self.bare:
            fixed = [self.rows[index] for index in range(batch)]
            views, labels = (torch.stack(column) for column in zip(*fixed, strict=True))
            self.bare[batch] = (*self._model(), views, labels)
        model, adam, views, labels = self.bare[batch]
        started = now()
        for _ in range(count):
            loss = model(views, labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
        return now() - started

    def loop(self, batch: int, count: int) -> float:
        """Seconds of `count` steps of the whole loop, with data, log and checkpoints."""
        if batch not in self.loops:
            self.loops[batch] = self._loop(batch)
        started = now()
        for _ in range(count):
            next(self.loops[batch])
        return now() - started

    def _model(self) -> tuple[Pretraining, torch.optim.Optimizer]:
        model = Pretraining(self.rows.inputs.shape[1], self.rows.labels.shape[1], self.queue)
        model.train()
        parameters = model.query.parameters()
        return model, torch.optim.Adam(parameters, lr=4e-4, weight_decay=1e-5)

    def _loop(self, batch: int) -> Iterator[None]:
        model, adam = self._model()
        sampler = RandomSampler(self.rows, replacement=True, num_samples=ROUND * batch)
        loader = DataLoader(
            self.rows,
            batch,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )
        step, total = 0, 0.0
        with open(self.folder / f"peer-{batch}.jsonl", "a", buffering=1) as log:
            while True:
                for views, labels in loader:
                    loss = model(views, labels)
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                    step, total = step + 1, total + loss.item()
                    if step % LOG_EVERY == 0:
                        log.write(json.dumps({"step": step, "loss": total / LOG_EVERY}) + "\n")
                        total = 0.0
                    if step % ROUND == 0:
                        state = {"step": step, "model": model.state_dict()}
                        state["optimizer"] = adam.state_dict()
                        torch.save(state, self.folder / f"peer-{batch}.pt")
                    yield
