"""PASCAL VOC 2012's animals on a GPU: ResNet-50 at 224 pixels, 100 epochs.

    jaxmlcl train configs/mulsupcon/voc2012_animals_resnet50.py --data.root FOLDER
    jaxmlcl evaluate runs/voc2012-animals-resnet50
    jaxmlcl report runs/voc2012-animals-resnet50

The same data, stages and code as voc2012_animals.py, at the size that a GPU wants: batches of 32,
1.3 million images in all stages. Not run here, for want of a GPU; expected: above the figures of
voc2012_animals.py. Cost: some 6 minutes of an H200 at the rate that coco_resnet50.py reckons with.
Optimisers are those that were chosen there.
"""

from pathlib import Path

from jaxmlcl.config import Experiment, Loading, ResNet, execute

parts = execute(Path(__file__).with_name("voc2012_animals.py"), "parts")
encoder = ResNet((3, 4, 6, 3), block="bottleneck")

experiment = Experiment(
    name="voc2012-animals-resnet50",
    data=parts["data"](size=224),
    stages={
        **parts["pretrained"]("sgd 0.1", encoder=encoder, length=100, after=30),
        "bce": parts["supervised"]("adam 0.001", 130, encoder=encoder),
        "bce_same_passes": parts["supervised"]("adam 0.001", 230, encoder=encoder),
    },
    main="finetune",
    precision="bfloat16",
    loading=Loading(workers=8),
)
