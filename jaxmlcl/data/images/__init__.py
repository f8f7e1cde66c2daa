"""Sources of photographs: encoded images, listed with their labels, and read one by one."""

from jaxmlcl.data.images._source import EncodedSource, FileSource

__all__ = ["EncodedSource", "FileSource"]
