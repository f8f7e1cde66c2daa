"""MulSupCon from COCO to PASCAL VOC 2007 and MIRFLICKR: table 7a, and the transfer in three stages.

    jaxmlcl train configs/mulsupcon/coco_transfer.py --data.root FOLDER
    jaxmlcl evaluate runs/mulsupcon-coco-transfer
    jaxmlcl report runs/mulsupcon-coco-transfer

FOLDER (or JAXMLCL_DATA) holds the data of coco_resnet50.py, voc2007_resnet50.py and
mirflickr_resnet50.py. Encoders that are pretrained on COCO, by MulSupCon or by BCE, are frozen and
probed on the others; `pascal_finetuned` probes the encoder that was pretrained, then fine-tuned on
COCO.

Not run here, for want of the data. Expected under the paper protocol, as the paper's table 7a and
its text print it:

    stage             mAP   HA    ex-F1  mi-F1  ma-F1  P@1
    pascal            .853  .977  .818   .824   .792   .907
    pascal_bce        .865  .979  .838   .842   .809   .916
    mirflickr         .722  .923  .716   .741   .668   .899
    mirflickr_bce     .656  .911  .673   .700   .613   .873
    pascal_finetuned  .877

Cost: that of coco_resnet50.py; the probes are a hundredth of it.
"""

import dataclasses
from pathlib import Path

from jaxmlcl.config import load, transfer_probe

FOLDER = Path(__file__).parent
coco = load(FOLDER / "coco_resnet50.py")
pascal = load(FOLDER / "voc2007_resnet50.py").data
mirflickr = load(FOLDER / "mirflickr_resnet50.py").data

experiment = dataclasses.replace(
    coco,
    name="mulsupcon-coco-transfer",
    stages={
        **coco.stages,
        "pascal": transfer_probe("pretrain", pascal),
        "pascal_bce": transfer_probe("bce", pascal),
        "pascal_finetuned": transfer_probe("finetune", pascal),
        "mirflickr": transfer_probe("pretrain", mirflickr),
        "mirflickr_bce": transfer_probe("bce", mirflickr),
    },
    main="finetune",
)
