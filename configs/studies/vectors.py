"""C-GMVAE, MulSupCon and BCE on vector data, beside simple baselines that get as many trials.

    jaxmlcl reproduce vectors --data.root FOLDER --jobs 2

FOLDER (or JAXMLCL_DATA) holds vectors/ with Mulan's sets. The whole takes about an hour
on two CPU cores; it goes on where it was stopped. Expected: docs/results.md.
"""

import dataclasses
from pathlib import Path

from jaxmlcl.config import (
    CGMVAE,
    MLP,
    Classification,
    Cosine,
    Experiment,
    Optimizer,
    Stage,
    execute,
    steps,
)
from jaxmlcl.studies import Method, Networks, Study, Table

# Sets, and what MulSupCon and the baselines may choose, are those of its own study.
OTHER = Path(__file__).with_name("mulsupcon_vectors.py")
NAMES = ("emotions", "medical", "enron", "corel5k", "bibtex", "delicious")
SETS = tuple(
    dataclasses.replace(data, unseen=data.name == "delicious")
    for name in NAMES
    for data in execute(OTHER, "SETS")
    if data.name == name
)
WIDTHS = execute(OTHER, "WIDTHS")
PRETRAINING = execute(OTHER, "PRETRAINING")
FINE_TUNING = execute(OTHER, "FINE_TUNING")


def total(data):
    """Steps at most, the same for every network: MulSupCon's two parts together."""
    return PRETRAINING.get(data.name, 3_000) + FINE_TUNING


def trained(name, objective, rate, batch_size, total_steps, every):
    """One stage that keeps the step of best validation mAP, as the other networks do."""
    return {
        name: Stage(
            objective,
            duration=steps(total_steps),
            batch_size=batch_size,
            optimizer=Optimizer(
                learning_rate=rate,
                schedule=Cosine(final=0.1),
                weight_decay=1e-5,
                decay_all=True,
            ),
            validate_every=steps(every),
            select="map",
            patience=20,
        )
    }


def cgmvae(data, choice, seed):
    """The authors' program; width and learning rate are chosen, which Table 7 does by set."""
    objective = CGMVAE(encoder=MLP(hidden=choice["hidden"], dropout=0.5))
    # It over-fits within some hundred steps, so it is looked at more often.
    stages = trained("train", objective, choice["rate"], 128, total(data), 25)
    return Networks(Experiment(f"{data.name}-cgmvae", data.data, stages, seed=seed), "train")


def bce(data, choice, seed):
    """The same encoder under binary cross-entropy, without a mask."""
    objective = Classification(encoder=MLP(hidden=choice["hidden"], dropout=0.5))
    stages = trained("train", objective, choice["rate"], 128, total(data), 25)
    return Networks(Experiment(f"{data.name}-bce", data.data, stages, seed=seed), "train")


TRIALS = tuple({"hidden": hidden, "rate": rate} for hidden in WIDTHS for rate in (2e-3, 5e-4))

study = Study(
    title="C-GMVAE, MulSupCon and BCE on vector data",
    text="""Which of them is worth its steps, and is it better than what needs no network, or a
plain one? On none of six sets is it. C-GMVAE is behind the same network under plain binary
cross-entropy on all six, by .013 mAP (emotions, enron) to .078 (bibtex). MulSupCon is behind the
best of the two plain networks on validation on five, with p values of .02 and less; on enron
neither is ahead. Simple baselines win three sets: a support vector machine per label emotions
(.760), logistic regression per label medical (.462) and enron (.236). Corel5k and bibtex go to
cross-entropy on masked inputs (.140, .380), with logistic regression within .010 and .004, and
delicious to plain cross-entropy (.177); there C-GMVAE loses .007 when the test rows that occur in
training are left out, the others nothing, and would reach .168 with its own recipe and three times
the steps that all networks get here. C-GMVAE at rate 0.002 is unstable without clipping: one
of its trials on bibtex and one of its seeds on enron ended with parameters that are not finite.
Yeast and Scene are in the tables of C-GMVAE's parts and of MulSupCon.""",
    tables=(
        Table(
            "vectors",
            "Vectors",
            "Every method chooses among four trials by the mAP of the validation rows (a fifth of "
            "the training rows), and is then trained with every seed. Networks may take the same "
            "number of steps, and keep the one of best validation mAP; each chooses between the "
            "widths 256-512-256 and 512.",
            SETS,
            (
                Method("C-GMVAE", cgmvae, TRIALS),
                execute(OTHER, "pretrained_rows")[0],
                Method("BCE", bce, TRIALS, baseline=True),
                execute(OTHER, "supervised_rows")[0],
                *execute(OTHER, "classical_rows"),
            ),
            (0, 1, 2),
        ),
    ),
)
