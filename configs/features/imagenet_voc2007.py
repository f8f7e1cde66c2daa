"""PASCAL VOC 2007 by a frozen ResNet-50 of ImageNet: features for Table 4, and a linear probe.

    jaxmlcl train configs/features/imagenet_voc2007.py --data.root FOLDER
    for split in train validation test; do jaxmlcl embed runs/imagenet-voc2007 --split $split \\
        -o FOLDER/features/voc2007-$split.npz; done

FOLDER (or JAXMLCL_DATA) holds the data of configs/mulsupcon/voc2007_resnet50.py, and
torchvision's ResNet50_Weights.IMAGENET1K_V1 as weights/resnet50.safetensors (extra `weights`), or
its state dict resnet50-0676ba61.pth, which `--stages.linear.weights` names. The paper says ImageNet
and no more. The features are what configs/features/voc2007.py learns from.

Not run here, for want of data and weights. Expected: 2048 features an image; the paper's Table 4
prints no probe of them. Cost: ten epochs of forward passes, 50 000 images in all: a
minute or a few of an H200, where eight cores can decode them as fast.
"""

import dataclasses
from pathlib import Path

from jaxmlcl.config import (
    Experiment,
    Images,
    Loading,
    Optimizer,
    Plateau,
    ResNet,
    Stage,
    epochs,
    linear_probe,
    load,
)

CONFIGS = Path(__file__).parent.parent


def probe(name):
    """A linear probe of frozen ImageNet weights on the data of a published recipe."""
    recipe = load(CONFIGS / "mulsupcon" / f"{name}_resnet50.py")
    plateau = Plateau(factor=0.1, patience=2, cooldown=1, threshold=1e-3)
    stage = Stage(
        linear_probe(ResNet((3, 4, 6, 3), block="bottleneck")),
        epochs(10),
        weights="weights/resnet50.safetensors",
        optimizer=Optimizer("adam", 0.01, schedule=plateau),
        frozen=("^encoder/",),
        select="loss",
    )
    return Experiment(
        name=f"imagenet-{name}",
        data=dataclasses.replace(recipe.data, images=Images(statistics="imagenet")),
        stages={"linear": stage},
        precision="bfloat16",
        loading=Loading(workers=8),
    )


# For the other sets.
parts = {"probe": probe}
experiment = probe("voc2007")
