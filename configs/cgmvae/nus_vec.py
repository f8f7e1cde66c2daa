"""C-GMVAE on NUS-WIDE, as vectors: a row of the paper's Table 7. Untested, data not at hand.

    jaxmlcl train configs/cgmvae/nus_vec.py --data.root FOLDER
    jaxmlcl evaluate runs/cgmvae-nus-vec

FOLDER (or JAXMLCL_DATA) holds vectors/nus-vec with nus-vec-train.hdf5, nus-vec-val.hdf5 and
nus-vec-test.hdf5, each with the datasets `feature` [n, D] and `target` [n, L] (docs/data.md).

Expected: nothing is measured here yet.
"""

from jaxmlcl.config import Data, Experiment, cgmvae_stage

experiment = Experiment(
    name="cgmvae-nus-vec",
    data=Data(
        train="vectors/nus-vec/nus-vec-train.hdf5",
        validation="vectors/nus-vec/nus-vec-val.hdf5",
        test="vectors/nus-vec/nus-vec-test.hdf5",
        inputs="raw",
    ),
    stages={"train": cgmvae_stage(rate=0.004, embedding=1024, batch_size=256)},
)
