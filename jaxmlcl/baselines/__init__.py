"""Multi-label classifiers without a network: what every result is to be printed beside.

Importing this room imports scikit-learn.
"""

from jaxmlcl.baselines.base import Baseline, Predictor
from jaxmlcl.baselines.binary_relevance import KernelSVM, LogisticRegression
from jaxmlcl.baselines.frequencies import LabelFrequencies
from jaxmlcl.baselines.mlknn import MLkNN
from jaxmlcl.neighbours import nearest

__all__ = [
    "Baseline",
    "KernelSVM",
    "LabelFrequencies",
    "LogisticRegression",
    "MLkNN",
    "Predictor",
    "nearest",
]
