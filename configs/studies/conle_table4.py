"""ConLE's Table 4: the objective without its contrastive term, and without its hinge.

    jaxmlcl reproduce conle-table4 --data.root FOLDER

Expected: docs/results.md.
"""

import functools
import json
from pathlib import Path

from jaxmlcl.config import execute
from jaxmlcl.enhancement import ConLE
from jaxmlcl.studies import EnhancementStudy, Recovery

PUBLISHED = json.loads(Path(__file__).with_name("conle_published.json").read_text(encoding="utf-8"))
whole = execute(Path(__file__).with_name("conle_table3.py"), "study")
VARIANTS = {"ConLE_h": "h", "ConLE_l": "l", "ConLE": "full"}

study = EnhancementStudy(
    title="ConLE, Table 4: ablation",
    text="""
ConLE_h has no contrastive term, ConLE_l no hinge. All stop by the same rule, at the same mass of
the labels.
""",
    sets=whole.sets,
    columns=tuple(
        Recovery(name, functools.partial(ConLE, variant)) for name, variant in VARIANTS.items()
    ),
    seeds=whole.seeds,
    published=PUBLISHED["table4"],
    misprints=tuple(map(tuple, PUBLISHED["table4_misprints"])),
)
