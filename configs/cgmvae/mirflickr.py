"""C-GMVAE on MIRFlickr: a row of the paper's Table 7. Untested, data not at hand.

    jaxmlcl train configs/cgmvae/mirflickr.py --data.root FOLDER
    jaxmlcl evaluate runs/cgmvae-mirflickr

FOLDER (or JAXMLCL_DATA) holds vectors/mirflickr with mirflickr-train.hdf5, mirflickr-val.hdf5 and
mirflickr-test.hdf5, each with the datasets `feature` [n, D] and `target` [n, L] (docs/data.md).

The authors' released indices split it into 9821, 2455 and 12 305 rows (40/10/50), not the 80/10/10
of the paper.

Expected: nothing is measured here yet.
"""

from jaxmlcl.config import Data, Experiment, cgmvae_stage

experiment = Experiment(
    name="cgmvae-mirflickr",
    data=Data(
        train="vectors/mirflickr/mirflickr-train.hdf5",
        validation="vectors/mirflickr/mirflickr-val.hdf5",
        test="vectors/mirflickr/mirflickr-test.hdf5",
        inputs="raw",
    ),
    stages={"train": cgmvae_stage(rate=0.001, embedding=2048, alpha=2.0)},
)
