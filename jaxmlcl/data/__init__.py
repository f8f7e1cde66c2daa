"""Data: sources of labelled records, opened by name and checked when they are opened."""

from jaxmlcl.data.source import (
    ArraySource,
    Source,
    SourceMetadata,
    open_source,
    register_source,
)

__all__ = ["ArraySource", "Source", "SourceMetadata", "open_source", "register_source"]
