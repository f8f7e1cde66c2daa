"""Losses as pure functions of arrays.

They know nothing of networks, configurations or meshes; all can be jitted, differentiated, vmapped
and sharded. Shapes are written with B anchors, K keys, L labels and D embedding width.

- `normalize`, `multi_positive_infonce`, `class_sums`, `log_denominator`, `pair_statistics`:
  contrastive; `jaxmlcl.losses.parts` has what they are made of
- `binary_cross_entropy`, `focal`, `asymmetric`: on logits
- `gaussian_log_density`, `mixture_log_density`, `mixture_kl`, `gaussian_kl`, `gaussian_samples`,
  `label_contrastive`: a latent space in which every label is a Gaussian, and label embeddings
- `cross_view_contrastive`, `squared_distance`, `threshold_hinge`: label enhancement
"""

from ._classification import asymmetric, binary_cross_entropy, focal
from ._contrastive import (
    class_sums,
    log_denominator,
    multi_positive_infonce,
    normalize,
    pair_statistics,
)
from ._enhancement import cross_view_contrastive, squared_distance, threshold_hinge
from ._mixture import (
    gaussian_kl,
    gaussian_log_density,
    gaussian_samples,
    label_contrastive,
    mixture_kl,
    mixture_log_density,
)
from ._pairs import WEIGHTINGS

__all__ = [
    "WEIGHTINGS",
    "asymmetric",
    "binary_cross_entropy",
    "class_sums",
    "cross_view_contrastive",
    "focal",
    "gaussian_kl",
    "gaussian_log_density",
    "gaussian_samples",
    "label_contrastive",
    "log_denominator",
    "mixture_kl",
    "mixture_log_density",
    "multi_positive_infonce",
    "normalize",
    "pair_statistics",
    "squared_distance",
    "threshold_hinge",
]
