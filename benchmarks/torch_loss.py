"""MulSupCon's loss as PyTorch programs of its users have it, from the paper's formulas."""

from __future__ import annotations

import torch
from torch.nn import functional

TEMPERATURE = 0.1


def rows_loss(
    anchors: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor, key_labels: torch.Tensor
) -> torch.Tensor:
    """MulSupCon, equations 4-5: the mean over all (anchor, label) rows of -mean log p(positive)."""
    anchor, label = torch.nonzero(labels, as_tuple=True)
    scores = (anchors @ keys.T / TEMPERATURE)[anchor]
    positive = key_labels.T[label]
    log_p = functional.log_softmax(scores, dim=1)
    return -((positive * log_p).sum(1) / positive.sum(1)).mean()
