"""Digits: MulSupCon pretraining and a linear probe, against BCE alone at the same counted FLOPs.

    jaxmlcl train configs/quickstart.py
    jaxmlcl evaluate runs/quickstart
    jaxmlcl report runs/quickstart

The data are made from scikit-learn's handwritten digits: 48x48 canvases with 1 to 4 digits, no
network needed.

MulSupCon's settings were chosen on the validation canvases among some 50 short runs; BCE takes
the same ones. Expected on the test canvases (seed 0, thresholds from validation), in about 150 s
on two CPU cores:

    stage  mAP    P@1    HA     ex-F1  mi-F1  ma-F1
    probe  0.812  0.940  0.904  0.768  0.774  0.782
    bce    0.998  0.997  0.995  0.989  0.988  0.988
"""

from jaxmlcl.config import (
    Classification,
    Cosine,
    Data,
    Experiment,
    MulSupCon,
    Optimizer,
    Projection,
    ResNet,
    Shift,
    Stage,
    epochs,
    flops_of,
    linear_probe,
    steps,
)

encoder = ResNet(depths=(1, 1, 1), channels=32, stem="imagenet")
augmentation = (Shift(pixels=2),)

experiment = Experiment(
    name="quickstart",
    data=Data(
        train="digits:train?size=8000",
        validation="digits:validation?size=1000",
        test="digits:test?size=2000",
        inputs="unit",
    ),
    stages={
        # A short run: the key encoder follows faster (0.995, not 0.999), the batch is small for
        # the sake of many steps, and with 10 labels, of which any two canvases share one in two
        # cases, a softer temperature than the paper's 0.1 learns sooner.
        "pretrain": Stage(
            MulSupCon(
                encoder=encoder,
                head=Projection(width=128),
                temperature=0.3,
                momentum=0.995,
                queue_capacity=1024,
            ),
            duration=epochs(12),
            batch_size=32,
            optimizer=Optimizer(learning_rate=2e-3, schedule=Cosine(warmup=steps(100))),
            augmentation=augmentation,
        ),
        "probe": Stage(
            linear_probe(encoder),
            duration=epochs(4),
            batch_size=128,
            optimizer=Optimizer(learning_rate=1e-2, schedule=Cosine()),
            starts_from="pretrain",
            frozen=("^encoder/",),
            validate_every=epochs(2),
        ),
        "bce": Stage(
            Classification(encoder=encoder),
            duration=flops_of("pretrain", "probe"),
            batch_size=32,
            optimizer=Optimizer(learning_rate=2e-3, schedule=Cosine(warmup=steps(100))),
            augmentation=augmentation,
            validate_every=epochs(4),
        ),
    },
    main="probe",
)
