"""Data: sources of labelled records, opened by name and checked when they are opened."""

from jaxmlcl.data.binarise import logical_labels
from jaxmlcl.data.source import (
    ArraySource,
    Source,
    SourceMetadata,
    open_source,
    register_source,
)

__all__ = [
    "ArraySource",
    "Source",
    "SourceMetadata",
    "logical_labels",
    "open_source",
    "register_source",
]
