"""C-GMVAE on Bookmarks: a row of the paper's Table 7. Untested, data not at hand.

    jaxmlcl train configs/cgmvae/bookmarks.py --data.root FOLDER
    jaxmlcl evaluate runs/cgmvae-bookmarks

FOLDER (or JAXMLCL_DATA) holds vectors/bookmarks with bookmarks-train.hdf5, bookmarks-val.hdf5 and
bookmarks-test.hdf5, each with the datasets `feature` [n, D] and `target` [n, L] (docs/data.md).

Expected: nothing is measured here yet.
"""

from jaxmlcl.config import Data, Experiment, cgmvae_stage

experiment = Experiment(
    name="cgmvae-bookmarks",
    data=Data(
        train="vectors/bookmarks/bookmarks-train.hdf5",
        validation="vectors/bookmarks/bookmarks-val.hdf5",
        test="vectors/bookmarks/bookmarks-test.hdf5",
        inputs="raw",
    ),
    stages={"train": cgmvae_stage(rate=0.002, embedding=2048, beta=1.0)},
)
