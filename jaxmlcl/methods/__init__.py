"""Methods: one file per paper, each an objective and the recipe that was published with it."""

from jaxmlcl.methods.cgmvae import CGMVAE
from jaxmlcl.methods.classification import Classification
from jaxmlcl.methods.joint import JointMulSupCon
from jaxmlcl.methods.mulsupcon import MulSupCon

# The registry: a method becomes known to configurations and saved experiments by standing here.
OBJECTIVES = (MulSupCon, Classification, JointMulSupCon, CGMVAE)

__all__ = ["CGMVAE", "OBJECTIVES", "Classification", "JointMulSupCon", "MulSupCon"]
