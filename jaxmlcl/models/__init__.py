"""Flax modules: encoders and heads, and the small typed descriptions that build them."""

from jaxmlcl.models.encoders import MLP, Encoder, ResNet
from jaxmlcl.models.gmvae import Decoder, GaussianHead, LabelGaussians
from jaxmlcl.models.heads import Classifier, Projection
from jaxmlcl.models.layers import Dropout, dense
from jaxmlcl.models.pretrained import ARCHITECTURES, Pretrained, load_pretrained, save_pretrained
from jaxmlcl.models.vit import ViT, vit

__all__ = [
    "ARCHITECTURES",
    "MLP",
    "Classifier",
    "Decoder",
    "Dropout",
    "Encoder",
    "GaussianHead",
    "LabelGaussians",
    "Pretrained",
    "Projection",
    "ResNet",
    "ViT",
    "dense",
    "load_pretrained",
    "save_pretrained",
    "vit",
]
