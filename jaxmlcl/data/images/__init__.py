"""Sources of photographs: files that are encoded, listed with their labels, and read one by one."""

from jaxmlcl.data.images._source import EncodedSource

__all__ = ["EncodedSource"]
