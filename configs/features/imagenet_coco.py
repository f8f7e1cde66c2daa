"""MS-COCO by a frozen ResNet-50 of ImageNet: features for Table 4, and a linear probe.

    jaxmlcl train configs/features/imagenet_coco.py --data.root FOLDER
    for split in train validation test; do jaxmlcl embed runs/imagenet-coco --split $split \\
        -o FOLDER/features/coco-$split.npz; done

FOLDER (or JAXMLCL_DATA) holds the data of configs/mulsupcon/coco_resnet50.py, and
torchvision's ResNet50_Weights.IMAGENET1K_V1 as weights/resnet50.safetensors (extra `weights`), or
its state dict resnet50-0676ba61.pth, which `--stages.linear.weights` names. The paper says ImageNet
and no more. The features are what configs/features/coco.py learns from.

Not run here, for want of data and weights. Expected: 2048 features an image; the paper's Table 4
prints no probe of them. Cost: ten epochs of forward passes, 0.9 million images in all: a
minute or a few of an H200, where eight cores can decode them as fast.
"""

from pathlib import Path

from jaxmlcl.config import execute

probe = execute(Path(__file__).with_name("imagenet_voc2007.py"), "parts")["probe"]
experiment = probe("coco")
