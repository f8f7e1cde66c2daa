"""The typed experiment: how it is loaded, overridden by flags, checked and written back.

A configuration is a Python file with a module-level `experiment` (or a function of that name that
returns one), or the `experiment.json` of a run. Everything such a file needs is importable here.
"""

from jaxmlcl.config._files import execute, load
from jaxmlcl.config._flags import Row, help_text, override, provenance
from jaxmlcl.config._grid import Axis, draw_trials, parse_axis
from jaxmlcl.config._json import from_json, to_json
from jaxmlcl.data.augment import Intensity, Noise, Shift, ZeroMask
from jaxmlcl.data.augment_images import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandAugment,
    RandomResizedCrop,
    strategy,
)
from jaxmlcl.data.images import Images
from jaxmlcl.methods import CGMVAE, Classification, JointMulSupCon, MulSupCon
from jaxmlcl.methods.cgmvae import cgmvae_stage
from jaxmlcl.methods.mulsupcon import (
    fine_tuning,
    linear_probe,
    photograph_stages,
    transfer_probe,
)
from jaxmlcl.models import MLP, Projection, ResNet, ViT, vit
from jaxmlcl.sharding import MeshSpec
from jaxmlcl.training.duration import Duration, epochs, examples, flops_of, steps
from jaxmlcl.training.experiment import Checkpoint, Data, Experiment, Loading, Logging
from jaxmlcl.training.optimizers import (
    Constant,
    Cosine,
    OneCycle,
    Optimizer,
    Plateau,
    WarmRestarts,
)
from jaxmlcl.training.stage import Stage

__all__ = [
    "CGMVAE",
    "MLP",
    "Axis",
    "Checkpoint",
    "Classification",
    "ColorJitter",
    "Constant",
    "Cosine",
    "Data",
    "Duration",
    "Experiment",
    "GaussianBlur",
    "Grayscale",
    "HorizontalFlip",
    "Images",
    "Intensity",
    "JointMulSupCon",
    "Loading",
    "Logging",
    "MeshSpec",
    "MulSupCon",
    "Noise",
    "OneCycle",
    "Optimizer",
    "Plateau",
    "Projection",
    "RandAugment",
    "RandomResizedCrop",
    "ResNet",
    "Row",
    "Shift",
    "Stage",
    "ViT",
    "WarmRestarts",
    "ZeroMask",
    "cgmvae_stage",
    "draw_trials",
    "epochs",
    "examples",
    "execute",
    "fine_tuning",
    "flops_of",
    "from_json",
    "help_text",
    "linear_probe",
    "load",
    "override",
    "parse_axis",
    "photograph_stages",
    "provenance",
    "steps",
    "strategy",
    "to_json",
    "transfer_probe",
    "vit",
]
