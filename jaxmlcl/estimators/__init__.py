"""The scikit-learn face for vector data: `MulSupConClassifier().fit(X, Y).predict(X)`.

Classifiers take arrays, sparse matrices and data frames, work in pipelines and searches, and are
saved without pickle. Importing this room imports scikit-learn.
"""

try:
    import sklearn  # noqa: F401
except ModuleNotFoundError:
    from jaxmlcl.errors import ConfigError

    raise ConfigError(
        "jaxmlcl.estimators needs scikit-learn, which is not installed: run "
        'pip install "scikit-learn>=1.6"'
    ) from None

from jaxmlcl.estimators._base import MultiLabelClassifier
from jaxmlcl.estimators._files import load
from jaxmlcl.estimators._network import NetworkClassifier
from jaxmlcl.estimators.bce import BCEClassifier
from jaxmlcl.estimators.cgmvae import CGMVAEClassifier
from jaxmlcl.estimators.mlknn import MLkNNClassifier
from jaxmlcl.estimators.mulsupcon import MulSupConClassifier

__all__ = [
    "BCEClassifier",
    "CGMVAEClassifier",
    "MLkNNClassifier",
    "MulSupConClassifier",
    "MultiLabelClassifier",
    "NetworkClassifier",
    "load",
]
