"""Small estimators, one of each class, that learn easy data in few steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmlcl.estimators import (
    BCEClassifier,
    CGMVAEClassifier,
    MLkNNClassifier,
    MulSupConClassifier,
    MultiLabelClassifier,
)

SMALL: dict[str, MultiLabelClassifier] = {
    "MulSupCon": MulSupConClassifier(
        hidden=(32,),
        embedding=16,
        pretraining_steps=20,
        steps=100,
        batch_size=32,
        queue_capacity=64,
        learning_rate=1e-2,
        encoder_rate=1.0,
    ),
    "BCE": BCEClassifier(hidden=(32,), steps=100, learning_rate=1e-2),
    "C-GMVAE": CGMVAEClassifier(
        hidden=(32,),
        dropout=0.1,
        embedding=32,
        latent=32,
        label_hidden=(16,),
        decoder_hidden=(32,),
        steps=100,
        batch_size=32,
        learning_rate=1e-2,
    ),
    "ML-kNN": MLkNNClassifier(),
}


def rows(n: int = 80, d: int = 6, labels: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Features [n, d] and labels [n, L] that the first L features say."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (n, labels))
    x = rng.normal(size=(n, d))
    x[:, :labels] = 2.0 * y - 1.0 + 0.2 * rng.normal(size=(n, labels))
    return x, y
