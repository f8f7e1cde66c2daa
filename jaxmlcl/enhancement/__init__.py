"""Label enhancement: from 0/1 labels to label distributions.

Every enhancer is a scikit-learn transformer: `GLLE().fit_transform(X, L)`. Importing this room
imports scikit-learn.
"""

from jaxmlcl.enhancement._base import Enhancer

__all__ = ["Enhancer"]
