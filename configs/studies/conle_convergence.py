"""ConLE's figure 4: objective and Canberra distance against iterations, on Movie.

    jaxmlcl reproduce conle-convergence --data.root FOLDER

Expected: docs/results.md; the objective falls on while the distance has long begun to grow.
"""

from jaxmlcl.enhancement import ConLE
from jaxmlcl.studies import ConvergenceStudy, DistributionSet

study = ConvergenceStudy(
    title="ConLE, figure 4: convergence",
    text="""
Training goes on far beyond where the rule stops it (dashed). The objective keeps falling; the
distance to the true distributions does not, since the objective's minimum is L / |L|.
""",
    data=DistributionSet("Movie", "distributions/Movie.mat"),
    enhancer=ConLE(epochs=40),
    seeds=(0, 1, 2),
)
