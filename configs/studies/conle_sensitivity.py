"""ConLE's figure 3: one weight over seven values while the other stays, on SBU_3DFE.

    jaxmlcl reproduce conle-sensitivity --data.root FOLDER

All fits are one program. Expected: docs/results.md.
"""

from jaxmlcl.enhancement import ConLE
from jaxmlcl.studies import DistributionSet, SensitivityStudy

study = SensitivityStudy(
    title="ConLE, figure 3: the two weights",
    text="""
lambda_1 weighs the squared distance, lambda_2 the hinge; .5 and 1 are the defaults. Training stops
by the same rule whatever they are, so what differs is the way to the same mass of the labels.
""",
    data=DistributionSet("SBU_3DFE", "distributions/SBU_3DFE.mat"),
    enhancer=ConLE(),
    seeds=(0,),
    values=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0),
)
