"""MS-COCO by a frozen ResNet-50 of ImageNet: features for Table 4, and a linear probe.

    jaxmlcl train configs/features/imagenet_coco.py --data.root FOLDER
    for split in train validation test; do jaxmlcl embed runs/imagenet-coco --split $split \\
        -o FOLDER/features/coco-$split.npz; done

FOLDER (or JAXMLCL_DATA) holds the data of configs/mulsupcon/coco_resnet50.py, and
torchvision's weights as weights/resnet50.safetensors or as a state dict, which
`--stages.linear.weights` names. The features are what configs/features/coco.py learns from.

Not run here, for want of data and weights. Expected: 2048 features an image; the paper's Table 4
prints no probe of them. Cost: a pass over the images for each epoch of the probe.
"""

from pathlib import Path

from jaxmlcl.config import execute

probe = execute(Path(__file__).with_name("imagenet_voc2007.py"), "parts")["probe"]
experiment = probe("coco")
