"""C-GMVAE on SIDER: a row of the paper's Table 7. Untested, data not at hand.

    jaxmlcl train configs/cgmvae/sider.py --data.root FOLDER
    jaxmlcl evaluate runs/cgmvae-sider

FOLDER (or JAXMLCL_DATA) holds vectors/sider with sider-train.hdf5, sider-val.hdf5 and
sider-test.hdf5, each with the datasets `feature` [n, D] and `target` [n, L] (docs/data.md).

Expected: nothing is measured here yet.
"""

from jaxmlcl.config import Data, Experiment, cgmvae_stage

experiment = Experiment(
    name="cgmvae-sider",
    data=Data(
        train="vectors/sider/sider-train.hdf5",
        validation="vectors/sider/sider-val.hdf5",
        test="vectors/sider/sider-test.hdf5",
        inputs="raw",
    ),
    stages={"train": cgmvae_stage(rate=0.002, embedding=512)},
)
