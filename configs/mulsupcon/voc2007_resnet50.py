"""MulSupCon on PASCAL VOC 2007: ResNet-50 from scratch, as published.

    jaxmlcl train configs/mulsupcon/voc2007_resnet50.py --data.root FOLDER
    jaxmlcl evaluate runs/mulsupcon-voc2007
    jaxmlcl report runs/mulsupcon-voc2007

FOLDER (or JAXMLCL_DATA) holds VOCdevkit/VOC2007: 5011 images of trainval and 4952 of test, 20
classes. A tenth of trainval is held out for validation; difficult objects count as the devkit's
evaluation has it.

Not run here, for want of the data. Expected under the paper protocol, as the paper's Table 6 prints
it:

    stage     mAP   HA    ex-F1  mi-F1  ma-F1  P@1
    finetune  .726  .965  .716   .726   .670   .802
    linear    .694  .962  .680   .697   .644   .778
    bce       .673  .962  .684   .692   .628   .769

Cost of pretraining: 4500 images, 400 epochs: 1.8 million, 7 minutes of an H200
at the 4361 images a second of docs/performance.md; BCE as long again at three quarters of the work.
"""

from jaxmlcl.config import Data, Experiment, Loading, photograph_stages

experiment = Experiment(
    name="mulsupcon-voc2007",
    data=Data(
        train="voc:VOCdevkit/VOC2007?set=trainval&part=rest&fraction=0.1",
        validation="voc:VOCdevkit/VOC2007?set=trainval&part=held-out&fraction=0.1",
        test="voc:VOCdevkit/VOC2007?set=test",
    ),
    stages=photograph_stages(),
    main="finetune",
    precision="bfloat16",
    loading=Loading(workers=8),
)
