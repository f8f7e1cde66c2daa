"""Multi-label contrastive learning in JAX.

The rooms of the package are imported where they are used: `jaxmlcl.losses`, `jaxmlcl.queue`,
`jaxmlcl.evaluation`, `jaxmlcl.data`, `jaxmlcl.models`, `jaxmlcl.methods`, `jaxmlcl.training`.
"""

__version__ = "0.1.0"
