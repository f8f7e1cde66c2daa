"""MulSupCon on MS-COCO: ResNet-50 from scratch, as published.

    jaxmlcl train configs/mulsupcon/coco_resnet50.py --data.root FOLDER
    jaxmlcl evaluate runs/mulsupcon-coco2014
    jaxmlcl report runs/mulsupcon-coco2014

FOLDER (or JAXMLCL_DATA) holds annotations/ and the images of COCO 2014, train2014/ and val2014/:
82 081 and 40 137 with an object of 80 categories. A tenth of the training images is held out for
validation; test is val2014.

Not run here, for want of the data. Expected under the paper protocol, as the paper's Table 6 prints
it:

    stage     mAP   HA    ex-F1  mi-F1  ma-F1  P@1
    finetune  .708  .982  .736   .714   .662   .930
    linear    .672  .980  .700   .688   .636   .916
    bce       .694  .981  .724   .706   .654   .921

Cost of pretraining: 74 000 images, 400 epochs: 30 million, 1.9 hours of an H200
at the 4361 images a second of docs/performance.md; BCE as long again at three quarters of the work.
"""

from jaxmlcl.config import Data, Experiment, Loading, photograph_stages

experiment = Experiment(
    name="mulsupcon-coco2014",
    data=Data(
        train="coco:annotations/instances_train2014.json?empty=drop&part=rest&fraction=0.1",
        validation="coco:annotations/instances_train2014.json?empty=drop&part=held-out&fraction=0.1",
        test="coco:annotations/instances_val2014.json?empty=drop",
    ),
    stages=photograph_stages(),
    main="finetune",
    precision="bfloat16",
    loading=Loading(workers=8),
)
