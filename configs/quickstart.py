"""Digits: MulSupCon pretraining and a linear probe, against BCE alone at the same counted FLOPs.

    jaxmlcl train configs/quickstart.py
    jaxmlcl evaluate runs/quickstart
    jaxmlcl report runs/quickstart

The data are made from scikit-learn's handwritten digits: 48x48 canvases with 1 to 4 digits, no
network needed.
"""

from jaxmlcl.config import (
    Classification,
    Cosine,
    Data,
    Experiment,
    Intensity,
    MulSupCon,
    Noise,
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

encoder = ResNet(depths=(1, 1, 1, 1), channels=16, stem="small")
augmentation = (Shift(pixels=4), Intensity(brightness=0.2, contrast=0.4), Noise(deviation=0.05))

experiment = Experiment(
    name="quickstart",
    data=Data(
        train="digits:train?size=8000",
        validation="digits:validation?size=1000",
        test="digits:test?size=2000",
        inputs="unit",
    ),
    stages={
        "pretrain": Stage(
            MulSupCon(encoder=encoder, head=Projection(width=64), queue_capacity=1024),
            duration=epochs(3),
            batch_size=128,
            optimizer=Optimizer(learning_rate=2e-3, schedule=Cosine(warmup=steps(20))),
            augmentation=augmentation,
        ),
        "probe": Stage(
            linear_probe(encoder),
            duration=epochs(3),
            batch_size=128,
            optimizer=Optimizer(learning_rate=1e-2, schedule=Cosine()),
            starts_from="pretrain",
            frozen=("^encoder/",),
        ),
        "bce": Stage(
            Classification(encoder=encoder),
            duration=flops_of("pretrain", "probe"),
            batch_size=128,
            optimizer=Optimizer(learning_rate=2e-3, schedule=Cosine(warmup=steps(20))),
            augmentation=augmentation,
        ),
    },
)
