"""C-GMVAE on eBird: a row of the paper's Table 7. Untested, data not at hand.

    jaxmlcl train configs/cgmvae/ebird.py --data.root FOLDER
    jaxmlcl evaluate runs/cgmvae-ebird

FOLDER (or JAXMLCL_DATA) holds vectors/ebird with ebird-train.hdf5, ebird-val.hdf5 and
ebird-test.hdf5, each with the datasets `feature` [n, D] and `target` [n, L] (docs/data.md).

Expected: nothing is measured here yet.
"""

from jaxmlcl.config import Data, Experiment, cgmvae_stage

experiment = Experiment(
    name="cgmvae-ebird",
    data=Data(
        train="vectors/ebird/ebird-train.hdf5",
        validation="vectors/ebird/ebird-val.hdf5",
        test="vectors/ebird/ebird-test.hdf5",
        inputs="raw",
    ),
    stages={"train": cgmvae_stage(rate=0.001, embedding=2048)},
)
