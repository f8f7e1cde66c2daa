"""MulSupCon on MIRFLICKR-25k: ResNet-50 from scratch, as published.

    jaxmlcl train configs/mulsupcon/mirflickr_resnet50.py --data.root FOLDER
    jaxmlcl evaluate runs/mulsupcon-mirflickr
    jaxmlcl report runs/mulsupcon-mirflickr

FOLDER (or JAXMLCL_DATA) holds MIRFLICKR/ with mirflickr/ and mirflickr25k_annotations_v080/. The
paper has 19 664 and 4917 images with one of 24 labels, a fifth for test by a split of its own; here
it is one by seed 0, stratified. A tenth of all is held out for validation.

Not run here, for want of the data. Expected under the paper protocol, as the paper's Table 6 prints
it:

    stage     mAP   HA    ex-F1  mi-F1  ma-F1  P@1
    finetune  .711  .926  .729   .754   .658   .895
    linear    .694  .920  .705   .727   .637   .888
    bce       .696  .921  .710   .731   .641   .889

Cost of pretraining: 17 200 images, 400 epochs: 6.9 million, 26 minutes of an H200
at the 4361 images a second of docs/performance.md; BCE as long again at three quarters of the work.
"""

from jaxmlcl.config import Data, Experiment, Loading, photograph_stages

WHOLE = "mirflickr:MIRFLICKR?labels=24&empty=drop&split_seed=0&test_fraction=0.2&part="

experiment = Experiment(
    name="mulsupcon-mirflickr",
    data=Data(
        train=f"{WHOLE}train",
        validation=f"{WHOLE}validation",
        test=f"{WHOLE}test",
    ),
    stages=photograph_stages(),
    main="finetune",
    precision="bfloat16",
    loading=Loading(workers=8),
)
