"""The loss as programs in PyTorch write it, in a process of its own: PyTorch is optional.

Written from the paper's formulas: one loss row for every pair of an anchor and one of its labels.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import numpy as np

from jaxmlcl.bench._forms import COMPILED
from jaxmlcl.bench._problem import FACTORISED, TEMPERATURE, LossProblem
from jaxmlcl.bench._process import give_memory_back, resident_peak


class TorchSide:
    """One form in PyTorch, with its own threads."""

    def __init__(self, form: str, accelerator: bool = False, tidy: bool = False) -> None:
        if tidy:
            give_memory_back()
        import torch

        self.torch = torch
        self.form = form
        self.device = "cuda" if accelerator and torch.cuda.is_available() else "cpu"
        if hasattr(os, "sched_getaffinity"):
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        # That there is no GPU is said by others; the compiler would repeat it.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    def describe(self) -> dict[str, Any]:
        """Version, device and threads."""
        threads = self.torch.get_num_threads()
        return {"version": self.torch.__version__, "device": self.device, "threads": threads}

    def open(self, problem: LossProblem) -> None:
        """Make a problem's inputs."""
        torch = self.torch
        z, k, y, yk = (torch.from_numpy(x).to(self.device) for x in problem.arrays())
        dtype = getattr(torch, problem.dtype)
        anchors = z.to(dtype).requires_grad_()
        keys = k.to(dtype).requires_grad_(problem.keys_gradient)
        wanted = [anchors, keys] if problem.keys_gradient else [anchors]
        function = _rows_loss if problem.weighting in FACTORISED else _matrix_loss
        if self.form == COMPILED:
            function = torch.compile(function)

        def call() -> tuple[Any, Any]:
            loss = function(anchors, keys, y, yk, problem.weighting)
            return loss.detach(), torch.autograd.grad(loss, wanted)

        self.call = call

    def answer(self, form: str) -> tuple[float, list[np.ndarray]]:
        """Value and gradients, as the host's arrays."""
        del form
        value, gradients = self.call()
        return float(value), [_wide(x).cpu().numpy() for x in gradients]

    def run(self, form: str, count: int) -> float:
        """Seconds per call, of `count` calls."""
        del form
        # Not timed, as on the other side.
        self.call()
        self._wait()
        started = time.perf_counter()
        for _ in range(count):
            self.call()
        self._wait()
        return (time.perf_counter() - started) / count

    def peak(self, form: str) -> int | None:
        """Bytes over the inputs at most."""
        del form
        self.call()
        if self.device == "cpu":
            return resident_peak(self.call)
        cuda = self.torch.cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        self.call()
        cuda.synchronize()
        return int(cuda.max_memory_allocated() - before)

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def _wide(x: Any) -> Any:
    """Sums and softmax of short numbers are taken in float32."""
    return x.float() if x.itemsize < 4 else x


def _rows_loss(anchors: Any, keys: Any, labels: Any, key_labels: Any, weighting: str) -> Any:
    """MulSupCon: of every (anchor, label) row the mean of -log p over the keys with the label."""
    import torch

    anchor, label = torch.nonzero(labels, as_tuple=True)
    scores = (_wide(anchors @ keys.T) / TEMPERATURE)[anchor]
    # Converted first: to gather numbers is faster than to gather bytes and convert every row.
    positive = key_labels.to(scores.dtype).T[label]
    log_p = torch.log_softmax(scores, dim=1)
    of_rows = -(positive * log_p).sum(1) / positive.sum(1)
    if weighting == "mulsupcon":
        return of_rows.mean()
    sizes = labels.sum(1)[anchor]
    return (of_rows / sizes).sum() / len(labels)


def _matrix_loss(anchors: Any, keys: Any, labels: Any, key_labels: Any, weighting: str) -> Any:
    """The weightings that compare whole label sets: a weight for every (anchor, key)."""
    import torch

    log_p = torch.log_softmax(_wide(anchors @ keys.T) / TEMPERATURE, dim=1)
    y, yk = labels.to(log_p.dtype), key_labels.to(log_p.dtype)
    shared = y @ yk.T
    sizes, key_sizes = y.sum(1, keepdim=True), yk.sum(1)
    if weighting == "any":
        weights = (shared > 0).to(log_p.dtype)
    elif weighting == "all":
        weights = ((shared == sizes) & (shared == key_sizes)).to(log_p.dtype)
    else:
        union = sizes + key_sizes - shared
        index = torch.where(union == 0, torch.ones_like(union), shared / union.clamp(min=1))
        weights = torch.where(index >= 0.5, index, torch.zeros_like(index))
    positives = (weights > 0).sum(1)
    values = -(weights * log_p).sum(1) / positives.clamp(min=1)
    if weighting == "all":
        return values.mean()
    return values.sum() / (positives > 0).sum().clamp(min=1)
