"""PASCAL VOC 2007 as vectors of a frozen ImageNet ResNet-50: MulSupCon beside C-GMVAE, Table 4.

    jaxmlcl train configs/features/voc2007.py --data.root FOLDER
    jaxmlcl evaluate runs/features-voc2007
    jaxmlcl report runs/features-voc2007

FOLDER (or JAXMLCL_DATA) holds features/voc2007-train.npz, -validation.npz and -test.npz, as the
commands of configs/features/imagenet_voc2007.py write them.

Not run here, for want of data and weights. Expected under the paper protocol, as the paper's
Table 4 prints it:

    stage     HA    ex-F1  mi-F1  ma-F1  P@1
    finetune  .977  .841   .833   .809   .913
    cgmvae    .978  .835   .832   .811   .921

Cost: minutes on a CPU for PASCAL and MIRFLICKR, half an hour for COCO.
"""

from dataclasses import replace

from jaxmlcl.config import (
    MLP,
    Cosine,
    Data,
    Experiment,
    MulSupCon,
    Optimizer,
    Plateau,
    Stage,
    ZeroMask,
    cgmvae_stage,
    epochs,
    fine_tuning,
)


def features(name):
    """Both methods on the features of one set: the recipes for vectors, as they are printed.

    Batch size, epochs, rate and schedule of pretraining are the paper's; head, decay and the rates
    of fine-tuning those of its authors' program for Yeast. Neither says how large the queue is for
    larger sets and how long to fine-tune on them: 2048 keys and 30 epochs, at the epoch of least
    validation loss. C-GMVAE has the settings of MIRFLICKR in its Table 7, on inputs as they are.
    """
    train, validation, test = (
        f"features/{name}-{split}.npz" for split in ("train", "validation", "test")
    )
    data = Data(train, validation, test)
    cgmvae = cgmvae_stage(rate=0.001, embedding=2048, alpha=2.0)
    encoder = MLP(hidden=(256, 512, 256), dropout=0.2)
    stages = {
        "pretrain": Stage(
            MulSupCon(encoder=encoder, queue_capacity=2048),
            epochs(150),
            batch_size=256,
            optimizer=Optimizer("adam", 4e-4, schedule=Cosine(), weight_decay=1e-5, decay_all=True),
            augmentation=(ZeroMask(probability=0.5),),
        ),
        "finetune": Stage(
            fine_tuning(encoder),
            epochs(30),
            batch_size=32,
            optimizer=Optimizer(
                "adam",
                4e-4,
                schedule=Plateau(factor=0.1, patience=2, cooldown=1, threshold=1e-3),
                rates=(("^encoder/", 0.1),),
            ),
            starts_from="pretrain",
            select="loss",
        ),
        "cgmvae": replace(cgmvae, data=replace(data, inputs="raw")),
    }
    return Experiment(f"features-{name}", data, stages, main="finetune")


# For the other sets.
parts = {"features": features}
experiment = features("voc2007")
