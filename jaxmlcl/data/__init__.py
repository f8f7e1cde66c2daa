"""Data: sources of labelled records, opened by name and checked when they are opened."""

from jaxmlcl.data.binarise import logical_labels
from jaxmlcl.data.distributions import DistributionData, open_distributions
from jaxmlcl.data.source import (
    ArraySource,
    Source,
    SourceMetadata,
    open_source,
    register_source,
)

__all__ = [
    "ArraySource",
    "DistributionData",
    "Source",
    "SourceMetadata",
    "logical_labels",
    "open_distributions",
    "open_source",
    "register_source",
]
