"""MS-COCO as vectors of a frozen ImageNet ResNet-50: MulSupCon beside C-GMVAE, Table 4.

    jaxmlcl train configs/features/coco.py --data.root FOLDER
    jaxmlcl evaluate runs/features-coco
    jaxmlcl report runs/features-coco

FOLDER (or JAXMLCL_DATA) holds features/coco-train.npz, -validation.npz and -test.npz, as the
commands of configs/features/imagenet_coco.py write them.

Not run here, for want of data and weights. Expected under the paper protocol, as the paper's
Table 4 prints it:

    stage     HA    ex-F1  mi-F1  ma-F1  P@1
    finetune  .980  .715   .687   .640   .920
    cgmvae    .980  .710   .686   .638   .915

Cost: minutes on a CPU for PASCAL and MIRFLICKR, half an hour for COCO.
"""

from pathlib import Path

from jaxmlcl.config import execute

features = execute(Path(__file__).with_name("voc2007.py"), "parts")["features"]
experiment = features("coco")
