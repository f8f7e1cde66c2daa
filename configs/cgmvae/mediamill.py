"""C-GMVAE on Mediamill, which Table 7 leaves out: the values of most of its rows. Untested.

    jaxmlcl train configs/cgmvae/mediamill.py --data.root FOLDER
    jaxmlcl evaluate runs/cgmvae-mediamill

FOLDER (or JAXMLCL_DATA) holds vectors/mediamill with Mulan's split, which is not at hand here:
mediamill-train.arff, mediamill-test.arff and mediamill.xml. A fifth of the training rows is held
out for validation.

Expected: nothing is measured here yet.
"""

from jaxmlcl.config import Data, Experiment, cgmvae_stage

experiment = Experiment(
    name="cgmvae-mediamill",
    data=Data(
        train="vectors/mediamill/mediamill-train.arff?part=rest",
        validation="vectors/mediamill/mediamill-train.arff?part=held-out",
        test="vectors/mediamill/mediamill-test.arff",
        inputs="raw",
    ),
    stages={"train": cgmvae_stage(rate=0.001, embedding=2048)},
)
