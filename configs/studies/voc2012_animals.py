"""MulSupCon's weightings and BCE on photographs: VOC 2012's animals, on two CPU cores.

    jaxmlcl reproduce voc2012-animals --data.root FOLDER --jobs 2

FOLDER (or JAXMLCL_DATA) holds images/voc2012_animals/VOC2012 in the devkit's layout. It goes on
where it was stopped. Expected: docs/results.md.
"""

from pathlib import Path

from jaxmlcl.baselines import LabelFrequencies
from jaxmlcl.config import Experiment, execute
from jaxmlcl.studies import DataSet, Fitted, Method, Networks, Study, Table

OTHER = Path(__file__).parent.parent / "mulsupcon" / "voc2012_animals.py"
OPTIMIZERS = execute(OTHER, "OPTIMIZERS")
parts = execute(OTHER, "parts")
WEIGHTINGS = {
    "mulsupcon": "MulSupCon",
    "mulsupcon_mean": "MulSupCon, mean (eq. 6)",
    "all": "ALL",
    "any": "ANY",
}
animals = DataSet(
    "voc2012-animals",
    parts["data"](),
    "610 test images; some labels hardly occur, so no figure compares with VOC's.",
)
TRIALS = tuple({"optimizer": name} for name in OPTIMIZERS)


def contrast(weighting):
    """Pretraining under one weighting; fine-tuning chooses, the linear probe comes along."""

    def build(data, choice, seed):
        stages = parts["pretrained"](choice["optimizer"], weighting)
        experiment = Experiment(f"animals-{weighting}", data.data, stages, seed=seed)
        also = {"linear": f"{WEIGHTINGS[weighting]}, linear probe"}
        return Networks(experiment, "finetune", also)

    return build


def bce(name):
    """BCE for the number of epochs that the configuration calls so."""

    def build(data, choice, seed):
        stage = parts["supervised"](choice["optimizer"], execute(OTHER, name))
        return Networks(Experiment("animals-bce", data.data, {"bce": stage}, seed=seed), "bce")

    return build


study = Study(
    title="MulSupCon on photographs: VOC 2012's animals",
    text="""What does pretraining with labels add to a small network that sees 2141 photographs and
nothing else, in twelve epochs? Nothing: binary cross-entropy for as many epochs is ahead of all
four weightings of pairs, by .026 to .031 mAP, and further ahead with as many forward passes. The
weightings do not differ from each other by more than their seeds; the held-out images choose ANY
(validation mAP .154; ALL .151, the mean .150, MulSupCon .145). The schedule is short, an hour of a
core a seed for everything, and the contrastive losses have hardly moved when it ends: they are at
6.27 to 6.30, where a network that cannot tell its 544 keys apart has ln 544 = 6.30. All figures are
low: the frequencies of the labels alone reach .079. mAP is a mean over 18 labels of which three
have one positive image, and jumps by .05 where that is ranked first.""",
    tables=(
        Table(
            "animals",
            "VOC 2012's animals, half-width ResNet-10, 64 pixels",
            "Every method chooses between the same two optimisers by the mAP of 15 % of train, "
            "ends with the epoch of least loss there, and is then trained with every seed; val is "
            "scored once a seed. BCE has as many epochs as pretraining and fine-tuning together, "
            "or as many forward passes, those of the key encoder counted.",
            (animals,),
            (
                *(
                    Method(name, contrast(weighting), TRIALS)
                    for weighting, name in WEIGHTINGS.items()
                ),
                Method("BCE", bce("SAME_EPOCHS"), TRIALS, baseline=True),
                Method("BCE, equal forward passes", bce("SAME_PASSES"), TRIALS),
                Method(
                    "label frequencies",
                    lambda data, _choice, _seed: Fitted(LabelFrequencies(), data.data),
                    seeded=False,
                ),
            ),
            (0, 1, 2),
        ),
    ),
)
