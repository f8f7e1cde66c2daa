"""What an enhancement is for: learners of label distributions on what was recovered.

    jaxmlcl reproduce conle-learners --data.root FOLDER

Expected: docs/results.md.
"""

import dataclasses
from pathlib import Path

from jaxmlcl.config import execute
from jaxmlcl.enhancement import SABFGS

whole = execute(Path(__file__).with_name("conle_table3.py"), "study")
SMALL = ("SJAFFE", "Yeast_spo5")

study = dataclasses.replace(
    whole,
    title="Learning from what was recovered",
    text="""
SA-BFGS (maximum entropy) is fitted to the distributions that an enhancer recovers of the training
rows, and its predictions for held-out rows, from their features alone, are compared with the true
ones. LESC and LEVI are left out for their cost.
""",
    sets=tuple(data for data in whole.sets if data.name in SMALL),
    columns=tuple(
        column
        for column in whole.columns
        if column.name not in ("LESC", "LEVI-MLP", "GLLE, converged")
    ),
    seeds=(0, 1),
    protocol="learner",
    learner=SABFGS,
    published={},
    misprints=(),
)
