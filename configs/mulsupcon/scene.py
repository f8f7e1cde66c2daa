"""MulSupCon on Scene: the recipe as printed in the paper, which is that of Yeast.

    jaxmlcl train configs/mulsupcon/scene.py --data.root FOLDER
    jaxmlcl evaluate runs/mulsupcon-scene
    jaxmlcl report runs/mulsupcon-scene

FOLDER (or JAXMLCL_DATA) holds vectors/scene with Mulan's split, 1211 and 1196 rows; 294 features,
6 labels. A fifth of the training rows is held out for validation.

Expected: docs/results.md
"""

import dataclasses
from pathlib import Path

from jaxmlcl.config import Data, load

experiment = dataclasses.replace(
    load(Path(__file__).with_name("yeast.py")),
    name="mulsupcon-scene",
    data=Data(
        train="vectors/scene/scene-train.arff?part=rest",
        validation="vectors/scene/scene-train.arff?part=held-out",
        test="vectors/scene/scene-test.arff",
        inputs="standardize",
    ),
)
