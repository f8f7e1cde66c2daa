"""ConLE's Table 3 by ten times ten-fold cross-validation, the protocol that the paper names.

    jaxmlcl reproduce conle-table3-folds --data.root FOLDER

A hundred fits of a set are one program. FCM, KM, LP, GLLE and LESC recover only rows that they are
fitted to: n/a. Expected: docs/results.md.
"""

import dataclasses
from pathlib import Path

from jaxmlcl.config import execute

whole = execute(Path(__file__).with_name("conle_table3.py"), "study")
SMALL = ("SJAFFE", "Yeast_spo5")

study = dataclasses.replace(
    whole,
    title="ConLE, Table 3, by cross-validation",
    text="""
Enhancers that can recover rows they were not fitted to, from their features and labels, on sets
small enough for a few minutes on two CPU cores. LEVI, which could too, is left out:
a hundred fits of a set take it an hour or more.
""",
    sets=tuple(data for data in whole.sets if data.name in SMALL),
    columns=tuple(
        column for column in whole.columns if column.name not in ("LEVI-MLP", "GLLE, converged")
    ),
    protocol="cv10x10",
)
