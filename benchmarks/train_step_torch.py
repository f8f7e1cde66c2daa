"""The peer of `benchmarks.train_step`: MulSupCon's step on photographs as a plain PyTorch loop.

A ResNet of version 1.5 with torchvision's names, a momentum encoder whose batch normalisation has
statistics of its own, a queue, and SGD. `compiled` gives both networks to torch.compile.
"""

from __future__ import annotations

import copy
import os
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.machine import peak_memory
from benchmarks.torch_loss import rows_loss
from benchmarks.train_step_problem import DECAY, KEPT, MOMENTUM, RATE, WIDTH, Arrays, Settings

# Blocks of each group, and whether they are bottlenecks.
ARCHITECTURES = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1-3x3-1x1 with the stride in the 3x3."""

    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        plan = (
            [(inputs, channels, 1, 1), (channels, channels, 3, stride), (channels, outputs, 1, 1)]
            if bottleneck
            else [(inputs, channels, 3, stride), (channels, channels, 3, 1)]
        )
        self.layers = len(plan)
        for number, (before, after, size, step) in enumerate(plan, 1):
            layer = nn.Conv2d(before, after, size, step, size // 2, bias=False)
            self.add_module(f"conv{number}", layer)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        y = x
        for number in range(1, self.layers + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.layers:
                y = self.relu(y)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Version 1.5, without the classifier; tensors are named as torchvision's."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        depths, bottleneck = ARCHITECTURES[arch]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width = 64
        for group, depth in enumerate(depths):
            channels, blocks = 64 * 2**group, []
            for position in range(depth):
                stride = 2 if group > 0 and position == 0 else 1
                blocks.append(Block(width, channels, stride, bottleneck))
                width = 4 * channels if bottleneck else channels
            self.add_module(f"layer{group + 1}", nn.Sequential(*blocks))
        self.groups = len(depths)
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Representations [B, width] of images [B, 3, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for group in range(self.groups):
            x = getattr(self, f"layer{group + 1}")(x)
        return x.mean((2, 3))


def projection(inputs: int) -> nn.Module:
    """The head, without dropout."""
    hidden = inputs // 2 if inputs >= 2 * WIDTH else WIDTH
    first = nn.Linear(inputs, hidden, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(True), nn.Linear(hidden, WIDTH))


class Pretraining(nn.Module):
    """Query encoder, momentum encoder and queue; `forward` gives a step's loss."""

    def __init__(self, arch: str, arrays: Arrays) -> None:
        super().__init__()
        encoder = ResNet(arch)
        self.query = nn.Sequential(encoder, projection(encoder.width))
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", torch.from_numpy(arrays.keys))
        self.register_buffer("queue_labels", torch.from_numpy(arrays.key_labels).float())
        self.pointer = 0

    def start_from(self, encoder: dict[str, np.ndarray], head: list[np.ndarray]) -> None:
        """Take the parameters of the encoder, by torchvision's names, and of the head in order."""
        found = {name: torch.tensor(array) for name, array in encoder.items()}
        wrong = self.query[0].load_state_dict(found, strict=False)
        counters = [name for name in wrong.missing_keys if name.endswith("num_batches_tracked")]
        if wrong.unexpected_keys or len(counters) != len(wrong.missing_keys):
            raise ValueError(f"not the weights of this network: {wrong}")
        with torch.no_grad():
            for mine, array in zip(self.query[1].parameters(), head, strict=True):
                mine.copy_(torch.tensor(array))
        self.key.load_state_dict(self.query.state_dict())

    def forward(self, views: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of views [B, 2, 3, H, W] with labels [B, L]; the queue moves on."""
        q = functional.normalize(self.query(views[:, 0]).float(), dim=1)
        with torch.no_grad():
            of_key, of_query = list(self.key.parameters()), list(self.query.parameters())
            torch._foreach_lerp_(of_key, of_query, 1.0 - KEPT)
            k = functional.normalize(self.key(views[:, 1]).float(), dim=1)
            keys = torch.cat([k, self.queue])
            key_labels = torch.cat([labels, self.queue_labels])
            # Both are copies, so the queue may change before the gradient is taken.
            end = self.pointer + len(k)
            self.queue[self.pointer : end] = k
            self.queue_labels[self.pointer : end] = labels
            self.pointer = end % len(self.queue)
        return rows_loss(q, keys, labels, key_labels)


class Peer:
    """Answers the benchmark's questions, in a process of its own.

    Args:
      settings: the sizes.
      form: `eager` or `compiled`.
      device: `cpu` or `cuda`.
      channels_last: whether images and kernels lie in memory channel by channel.
    """

    def __init__(self, settings: Settings, form: str, device: str, channels_last: bool) -> None:
        if hasattr(os, "sched_getaffinity"):
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        # What XLA does without being asked: the fastest of cuDNN's convolutions for these shapes,
        # and products in TF32 where float32 is meant.
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        self.start = peak_memory()
        self.device = device
        self.autocast = settings.precision == "bfloat16"
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        arrays = settings.arrays()
        model = Pretraining(settings.arch, arrays).to(device)
        self.model = model.to(memory_format=self.format).train()
        if form == "compiled":
            for network in (self.model.query, self.model.key):
                network.compile()
        self.optimizer = torch.optim.SGD(
            self.model.query.parameters(), RATE, MOMENTUM, weight_decay=DECAY
        )
        self.views = torch.from_numpy(arrays.views).to(device)
        self.labels = torch.from_numpy(arrays.labels).to(device).float()

    def describe(self) -> dict[str, Any]:
        """Version and threads."""
        return {"version": torch.__version__, "threads": torch.get_num_threads()}

    def run(self, count: int) -> float:
        """Seconds of so many steps."""
        started = time.perf_counter()
        for _ in range(count):
            self._step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def memory(self) -> tuple[int, int]:
        """Bytes at most, and those that the packages alone take."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated(), 0
        return peak_memory(), self.start

    def first_steps(
        self, encoder: dict[str, np.ndarray], head: list[np.ndarray]
    ) -> dict[str, list[float]]:
        """Loss and norm of the gradient of two steps from given parameters, in full float32."""
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.model.start_from(encoder, head)
        found: dict[str, list[float]] = {"loss": [], "gradient_norm": []}
        for _ in range(2):
            found["loss"].append(self._step().item())
            gradients = [p.grad for p in self.model.query.parameters()]
            found["gradient_norm"].append(torch.nn.utils.get_total_norm(gradients).item())
        return found

    def _step(self) -> torch.Tensor:
        batch, views, *shape = self.views.shape
        # To [B, 2, 3, H, W]; each view then is [B, 3, H, W] as the layout wants it.
        x = self.views.float().div_(255).reshape(batch * views, *shape).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=self.format).unflatten(0, (batch, views))
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            loss = self.model(x, self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
