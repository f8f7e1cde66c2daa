"""MulSupCon from NUS-WIDE to PASCAL VOC 2007 and MIRFLICKR: table 7b.

    jaxmlcl train configs/mulsupcon/nuswide_transfer.py --data.root FOLDER
    jaxmlcl evaluate runs/mulsupcon-nuswide-transfer
    jaxmlcl report runs/mulsupcon-nuswide-transfer

FOLDER (or JAXMLCL_DATA) holds the data of nuswide_resnet50.py, voc2007_resnet50.py and
mirflickr_resnet50.py. Encoders that are pretrained on NUS-WIDE, by MulSupCon or by BCE, are frozen
and probed on the others.

Not run here, for want of the data. Expected under the paper protocol, as the paper's table 7b
prints it:

    stage          mAP   HA    ex-F1  mi-F1  ma-F1  P@1
    pascal         .750  .969  .749   .760   .693   .853
    pascal_bce     .661  .964  .713   .713   .624   .801
    mirflickr      .750  .927  .736   .758   .691   .906
    mirflickr_bce  .716  .922  .716   .740   .662   .897

Cost: that of nuswide_resnet50.py; the probes are a hundredth of it.
"""

import dataclasses
from pathlib import Path

from jaxmlcl.config import load, transfer_probe

FOLDER = Path(__file__).parent
nuswide = load(FOLDER / "nuswide_resnet50.py")
pascal = load(FOLDER / "voc2007_resnet50.py").data
mirflickr = load(FOLDER / "mirflickr_resnet50.py").data

experiment = dataclasses.replace(
    nuswide,
    name="mulsupcon-nuswide-transfer",
    stages={
        "pretrain": nuswide.stages["pretrain"],
        "bce": nuswide.stages["bce"],
        "pascal": transfer_probe("pretrain", pascal),
        "pascal_bce": transfer_probe("bce", pascal),
        "mirflickr": transfer_probe("pretrain", mirflickr),
        "mirflickr_bce": transfer_probe("bce", mirflickr),
    },
    main="bce",
)
