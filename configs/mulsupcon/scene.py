"""MulSupCon on Scene: the recipe as printed in the paper, which is that of Yeast.

    jaxmlcl train configs/mulsupcon/scene.py --data.root FOLDER
    jaxmlcl evaluate runs/mulsupcon-scene
    jaxmlcl report runs/mulsupcon-scene

FOLDER (or JAXMLCL_DATA) holds vectors/scene with Mulan's split, 1211 and 1196 rows; 294 features,
6 labels. A fifth of the training rows is held out for validation.

Expected under the paper protocol, mean and standard deviation of seeds 0 to 2
(`jaxmlcl reproduce mulsupcon-vectors --only printed`):

    stage     mAP          HA           ex-F1        mi-F1        ma-F1        P@1
    finetune  .852 ± .001  .921 ± .001  .783 ± .002  .774 ± .002  .780 ± .002  .802 ± .006
    linear    .859 ± .003  .925 ± .000  .794 ± .005  .782 ± .001  .785 ± .001  .804 ± .003
    none      .823 ± .005  .911 ± .001  .757 ± .006  .751 ± .003  .757 ± .005  .767 ± .002
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
