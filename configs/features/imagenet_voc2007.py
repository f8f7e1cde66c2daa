"""PASCAL VOC 2007 by a frozen ResNet-50 of ImageNet: features for Table 4, and a linear probe.

    jaxmlcl train configs/features/imagenet_voc2007.py --data.root FOLDER
    for split in train validation test; do jaxmlcl embed runs/imagenet-voc2007 --split $split \\
        -o FOLDER/features/voc2007-$split.npz; done

FOLDER (or JAXMLCL_DATA) holds the data of configs/mulsupcon/voc2007_resnet50.py, and
torchvision's weights as weights/resnet50.safetensors or as a state dict, which
`--stages.linear.weights` names. The features are what configs/features/voc2007.py learns from.

Not run here, for want of data and weights. Expected: 2048 features an image; the paper's Table 4
prints no probe of them. Cost: a pass over the images for each epoch of the probe.
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

RECIPE = Path(__file__).parent.parent / "mulsupcon" / "voc2007_resnet50.py"

experiment = Experiment(
    name="imagenet-voc2007",
    data=dataclasses.replace(load(RECIPE).data, images=Images(statistics="imagenet")),
    stages={
        "linear": Stage(
            linear_probe(ResNet((3, 4, 6, 3), block="bottleneck")),
            epochs(10),
            weights="weights/resnet50.safetensors",
            optimizer=Optimizer(
                "adam",
                0.01,
                schedule=Plateau(factor=0.1, patience=2, cooldown=1, threshold=1e-3),
            ),
            frozen=("^encoder/",),
            select="loss",
        )
    },
    precision="bfloat16",
    loading=Loading(workers=8),
)
