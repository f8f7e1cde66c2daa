"""Photographs: encoded images as images of one size, cut centrally or, view by view, at random.

What reads the files is apart from what knows the labels: only the former is sent to the processes
that read ahead, so that a worker of a set of millions holds no labels.
"""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, SupportsIndex

import numpy as np

from jaxmlcl.data.images._source import EncodedSource, Stored
from jaxmlcl.data.images.decoding import (
    Box,
    UndecodableError,
    centre,
    crops,
    image_size,
    random_box,
)
from jaxmlcl.data.source import SourceMetadata, checked_index
from jaxmlcl.errors import ConfigError, DataError

# Mean and standard deviation of the channels, values from 0 to 1.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True)
class Images:
    """What photographs of any size become before they reach the network."""

    size: int = 224
    """Side of the square that the network sees (pixels)."""
    resize: int | None = None
    """Short side before the central crop, where nothing is cropped at random (pixels); size * 256
    / 224 if absent."""
    statistics: Literal["cifar10", "imagenet"] = "cifar10"
    """Whose mean and deviation of the channels inputs "standardize" means; MulSupCon's authors take
    CIFAR-10's, weights trained on ImageNet its own."""
    undecodable: Literal["error", "skip"] = "error"
    """A training image that cannot be decoded ends the run, or the next one takes its place, which
    is counted. What is scored must be decodable."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.short_side:
            raise ConfigError(
                f"images: size must be from 1 to resize, {self.short_side}, not {self.size}"
            )

    @property
    def short_side(self) -> int:
        """The short side before the central crop, pixels.

        Example:
          >>> Images(size=224).short_side
          256
        """
        return round(self.size * 256 / 224) if self.resize is None else self.resize


@dataclasses.dataclass(frozen=True)
class Crops:
    """How training images are cropped at random: boxes keyed by (seed, epoch, sample id, view)."""

    seed: int
    views: int = 1
    """How many views of each image, V, from one decoding."""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


class Reader:
    """Reads rows of encoded images, in any process and without their labels.

    Args:
      source: the images.
      images: their size, and what happens to those that cannot be decoded.
      crop: random crops; the central one if left out.
      advice: what to do about an image that cannot be decoded.
    """

    def __init__(
        self,
        source: EncodedSource,
        images: Images,
        crop: Crops | None = None,
        advice: str = "mend or remove it, or set data.images.undecodable to skip",
    ) -> None:
        self._advice = advice
        self._source = source.without_labels()
        self._images = images
        self._crop = crop

    def __call__(
        self, row: int, epoch: int, into: np.ndarray | None = None
    ) -> tuple[np.ndarray, int]:
        """A row's image, uint8 [S, S, 3] or [V, S, S, 3], and the row that it is of.

        Args:
          row: which.
          epoch: the pass over the data, from 0.
          into: where the image is written; a new array if left out.

        Raises:
          DataError: it cannot be decoded; with "skip", no image can.
        """
        for offset in range(len(self._source) if self._images.undecodable == "skip" else 1):
            here = (row + offset) % len(self._source)
            stored = self._source.read(here)
            try:
                return self._made(stored, here, epoch, into), here
            except UndecodableError as error:
                if self._images.undecodable == "error":
                    raise DataError(f"{error}; {self._advice}") from None
        raise DataError(f"{self._source.metadata.name}: no image can be decoded")

    def stored(self, row: int) -> tuple[Stored, str]:
        """A row's image as it is stored, and what messages call it."""
        return self._source.read(row), self._source.place(row)

    def boxes(self, row: int, epoch: int, height: int, width: int) -> list[Box]:
        """Where an image of a size is cut, once for each view; empty for the central crop."""
        crop = self._crop
        if crop is None:
            return []
        sample = int(self._source.ids[row])
        return [
            random_box(
                height,
                width,
                seed=crop.seed,
                epoch=epoch,
                sample=sample,
                view=view,
                scale=crop.scale,
                ratio=crop.ratio,
            )
            for view in range(crop.views)
        ]

    def _made(self, stored: Stored, row: int, epoch: int, into: np.ndarray | None) -> np.ndarray:
        where, size = self._source.place(row), self._images.size
        if self._crop is None:
            central = centre(stored, where, size, self._images.short_side)
            if into is None:
                return central
            into[...] = central
            return into
        one = self._crop.views == 1
        views = into[None] if into is not None and one else into
        boxes = self.boxes(row, epoch, *image_size(stored, where))
        made = crops(stored, where, boxes, size, views)
        return made[0] if one else made


class Photographs:
    """Encoded images as images of one size, cut centrally: what is scored, and trained on.

    Args:
      source: the images with their labels.
      images: their size, and what happens to those that cannot be decoded.
    """

    def __init__(self, source: EncodedSource, images: Images | None = None) -> None:
        self.images = images or Images()
        self._source = source
        # An image that took another's place would be scored in its stead.
        strict = dataclasses.replace(self.images, undecodable="error")
        advice = (
            "mend or remove it, since what is scored is not replaced (data pack --unreadable skip "
            "writes a set without such images)"
        )
        self._central = Reader(source, strict, advice=advice)
        seen = f"{source.metadata.fingerprint} {self.images.size} {self.images.short_side}"
        self._metadata = dataclasses.replace(
            source.metadata,
            kind="image",
            input_shape=(self.images.size, self.images.size, 3),
            input_dtype="uint8",
            fingerprint=hashlib.sha256(seen.encode()).hexdigest(),
            # Of the same files, whatever size they are looked at.
            rows_fingerprint=source.metadata.fingerprint_of_rows,
        )

    @property
    def metadata(self) -> SourceMetadata:
        """That of the source, with the shape of the crops."""
        return self._metadata

    @property
    def ids(self) -> np.ndarray:
        """The ids of all rows, int32 [n], without reading an image."""
        return self._source.ids

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        row = checked_index(index, len(self))
        found = self._source.annotations(np.array([row]))
        record: dict[str, Any] = {name: array[0] for name, array in found.items() if name != "ids"}
        return {"inputs": self._central(row, 0)[0], **record, "id": int(self.ids[row])}

    def annotations(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Labels, ids and, where some are unknown, the mask of some rows, without their images."""
        return self._source.annotations(rows)

    def inputs(self, rows: range, pool: ThreadPoolExecutor) -> np.ndarray:
        """The central crops of some rows, uint8 [n, S, S, 3], decoded by the threads of a pool.

        Raises:
          DataError: one cannot be decoded.
        """
        found = np.empty((len(rows), *self._metadata.input_shape), np.uint8)
        central = pool.map(lambda row: self._central(row, 0), rows)
        for into, (image, _) in zip(found, central, strict=True):
            into[...] = image
        return found

    def reader(self, crop: Crops | None) -> Reader:
        """What reads training images, in this process or another."""
        return Reader(self._source, self.images, crop)
