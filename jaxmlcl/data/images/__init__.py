"""Sources of photographs: encoded images, listed with their labels, and read one by one."""

from jaxmlcl.data.images._source import EncodedSource, FileSource
from jaxmlcl.data.images.photographs import Crops, Images, Photographs, Reader

__all__ = ["Crops", "EncodedSource", "FileSource", "Images", "Photographs", "Reader"]
