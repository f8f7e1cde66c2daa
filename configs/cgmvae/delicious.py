"""C-GMVAE on Delicious: the authors' program with the hyper-parameters of the paper's Table 7.

    jaxmlcl train configs/cgmvae/delicious.py --data.root FOLDER
    jaxmlcl evaluate runs/cgmvae-delicious
    jaxmlcl report runs/cgmvae-delicious

FOLDER (or JAXMLCL_DATA) holds vectors/delicious with Mulan's split, 12 920 and 3185 rows; 500
features, 983 labels. A fifth of the training rows is held out for validation.

Expected, seed 0, on test (thresholds from validation): mAP .168, P@1 .593, HA .982, ex-F1 .344,
mi-F1 .363, ma-F1 .185; 7185 steps in 8 to 16 minutes on two CPU cores.
"""

from jaxmlcl.config import Data, Experiment, cgmvae_stage

experiment = Experiment(
    name="cgmvae-delicious",
    data=Data(
        train="vectors/delicious/delicious-train.arff?part=rest",
        validation="vectors/delicious/delicious-train.arff?part=held-out",
        test="vectors/delicious/delicious-test.arff",
        inputs="raw",
    ),
    stages={"train": cgmvae_stage(rate=0.001, embedding=2048)},
)
