"""C-GMVAE on Reuters: a row of the paper's Table 7. Untested, data not at hand.

    jaxmlcl train configs/cgmvae/reuters.py --data.root FOLDER
    jaxmlcl evaluate runs/cgmvae-reuters

FOLDER (or JAXMLCL_DATA) holds vectors/reuters with reuters-train.hdf5, reuters-val.hdf5 and
reuters-test.hdf5, each with the datasets `feature` [n, D] and `target` [n, L] (docs/data.md).

Expected: nothing is measured here yet.
"""

from jaxmlcl.config import Data, Experiment, cgmvae_stage

experiment = Experiment(
    name="cgmvae-reuters",
    data=Data(
        train="vectors/reuters/reuters-train.hdf5",
        validation="vectors/reuters/reuters-val.hdf5",
        test="vectors/reuters/reuters-test.hdf5",
        inputs="raw",
    ),
    stages={"train": cgmvae_stage(rate=0.005, embedding=2048, alpha=2.0, beta=1.0)},
)
