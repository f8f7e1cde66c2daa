"""Label enhancement: from 0/1 labels to label distributions.

Every enhancer is a scikit-learn transformer: `GLLE().fit_transform(X, L)`. Importing this room
imports scikit-learn.
"""

from jaxmlcl.enhancement._base import Enhancer, standardize
from jaxmlcl.enhancement._mass import expected_mass
from jaxmlcl.enhancement.conle import ConLE
from jaxmlcl.enhancement.fcm import FCM
from jaxmlcl.enhancement.glle import GLLE
from jaxmlcl.enhancement.km import KM
from jaxmlcl.enhancement.learners import SABFGS, AAkNN
from jaxmlcl.enhancement.lesc import GRID, LESC, lesc_grid
from jaxmlcl.enhancement.levi import LEVI
from jaxmlcl.enhancement.lp import LP
from jaxmlcl.enhancement.references import (
    REFERENCES,
    normalized,
    r1,
    r2,
    softmax_of_normalized,
    uniform,
)

ENHANCERS: dict[str, type[Enhancer]] = {
    "conle": ConLE,
    "fcm": FCM,
    "km": KM,
    "lp": LP,
    "glle": GLLE,
    "lesc": LESC,
    "levi": LEVI,
}
"""Enhancers by the names that configurations and commands use."""

__all__ = [
    "ENHANCERS",
    "FCM",
    "GLLE",
    "GRID",
    "KM",
    "LESC",
    "LEVI",
    "LP",
    "REFERENCES",
    "SABFGS",
    "AAkNN",
    "ConLE",
    "Enhancer",
    "expected_mass",
    "lesc_grid",
    "normalized",
    "r1",
    "r2",
    "softmax_of_normalized",
    "standardize",
    "uniform",
]
