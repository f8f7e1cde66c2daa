"""Flax modules: encoders and heads, and the small typed descriptions that build them."""

from jaxmlcl.models.encoders import MLP, Encoder, ResNet
from jaxmlcl.models.gmvae import Decoder, GaussianHead, LabelGaussians
from jaxmlcl.models.heads import Classifier, Projection
from jaxmlcl.models.layers import Dropout, dense

__all__ = [
    "MLP",
    "Classifier",
    "Decoder",
    "Dropout",
    "Encoder",
    "GaussianHead",
    "LabelGaussians",
    "Projection",
    "ResNet",
    "dense",
]
