"""Encoded images become arrays: boxes of random crops, decoding, cropping and resizing.

The box of a crop is drawn before anything is decoded, from (seed, epoch, sample id, view) alone, so
that it depends neither on workers nor on the order of reading; a JPEG is then decoded at the lowest
scale that still has a pixel for each pixel of the crop.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmlcl.data.images._source import Stored
from jaxmlcl.errors import ConfigError, DataError

_ATTEMPTS = 10  # boxes tried before the central one is taken, as in torchvision
_STREAM = 1  # the counter's last word, apart from that of the order of samples


class UndecodableError(DataError):
    """Bytes that are cut off, or no image."""


class Box(NamedTuple):
    """A part of an image, in pixels of the image as it is stored.

    Example:
      >>> Box(top=0, left=10, height=20, width=30).width
      30
    """

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    *,
    seed: int,
    epoch: int,
    sample: int,
    view: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The box of a random resized crop, a pure function of what is given.

    Args:
      height, width: of the image, pixels.
      seed, epoch, sample, view: what the random numbers are keyed by; at least 0.
      scale: the smallest and largest share of the image's area.
      ratio: the smallest and largest width over height; uniform in the logarithm.

    Example:
      >>> whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
      >>> random_box(100, 100, seed=0, epoch=0, sample=1, view=0, **whole)
      Box(top=0, left=0, height=100, width=100)
    """
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, sample, view, _STREAM], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(4 * _ATTEMPTS)
    draws = ((words >> np.uint64(11)) * 2.0**-53).reshape(_ATTEMPTS, 4)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, down, right in draws.tolist():
        wanted = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(low + (high - low) * aspect)
        across, along = round(math.sqrt(wanted * shape)), round(math.sqrt(wanted / shape))
        if 0 < across <= width and 0 < along <= height:
            top, left = int(down * (height - along + 1)), int(right * (width - across + 1))
            return Box(top, left, along, across)
    across = min(width, max(1, round(height * ratio[1])))
    along = min(height, max(1, round(width / ratio[0])))
    return Box((height - along) // 2, (width - across) // 2, along, across)


# A small file that says it is enormous is no photograph (Pillow's limit).
_MOST_PIXELS = 89_478_485
_PNG = b"\x89PNG\r\n\x1a\n"
# What damaged headers make simplejpeg raise.
_REFUSALS = (ValueError, KeyError, OverflowError, MemoryError, RuntimeError)

_HARDLY = 1.25  # stored pixels for each pixel of the crop, along an axis


def image_size(encoded: Stored, where: str) -> tuple[int, int]:
    """Height and width in pixels of an encoded image; of a JPEG only the header is read.

    Raises:
      UndecodableError: it is no image; the message says where it lies.
    """
    if isinstance(encoded, np.ndarray):
        return encoded.shape[0], encoded.shape[1]
    if _is_jpeg(encoded):
        try:
            height, width, _, _ = _simplejpeg().decode_jpeg_header(encoded, strict=False)
        except _REFUSALS as error:
            raise _undecodable(where, error or "damaged header") from None
    elif encoded[:8] == _PNG and len(encoded) >= 24:
        # The first chunk begins with both, most significant byte first.
        width, height = (int.from_bytes(encoded[at : at + 4], "big") for at in (16, 20))
    else:
        height, width = _decoded(encoded, where).shape[:2]
    if height * width > _MOST_PIXELS:
        raise _undecodable(where, f"{width} x {height} pixels are too many")
    return height, width


def decode(encoded: Stored, where: str, *, at_least: tuple[int, int] = (0, 0)) -> np.ndarray:
    """An encoded image as uint8 [H, W, 3], red first; grey images are repeated.

    Args:
      encoded: the bytes of a JPEG or PNG file, or pixels, which stay as they are.
      where: what messages call it, such as the file's name.
      at_least: height and width in pixels that are enough: a JPEG is decoded at the lowest of the
        scales 1/8, 2/8, ... that has them. (0, 0): as it is stored.

    Raises:
      UndecodableError: the bytes are cut off or no image; the message says where they lie.
    """
    if isinstance(encoded, np.ndarray):
        return encoded if encoded.shape[2] == 3 else np.repeat(encoded, 3, axis=2)
    image_size(encoded, where)
    if _is_jpeg(encoded):
        try:
            return _simplejpeg().decode_jpeg(
                encoded, "RGB", min_height=at_least[0], min_width=at_least[1], min_factor=1
            )
        except _REFUSALS as error:
            # Four-channel JPEGs are rare: OpenCV converts them.
            if "color" not in str(error).lower():
                raise _undecodable(where, error) from None
    return _decoded(encoded, where)


def _decoded(encoded: bytes, where: str) -> np.ndarray:
    cv2 = _opencv()
    try:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise _undecodable(where, error) from None
    if image is None:
        raise _undecodable(where, "no JPEG or PNG")
    return np.ascontiguousarray(image[..., ::-1])


def crops(
    encoded: Stored,
    where: str,
    boxes: Sequence[Box],
    size: int,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Parts of one image, each resized to a square, from one decoding: uint8 [V, size, size, 3].

    Args:
      encoded, where: as in `decode`.
      boxes: V parts, in pixels of the image as it is stored.
      size: side of the squares, pixels.
      into: where they are written; a new array if left out.

    Raises:
      UndecodableError: the image cannot be decoded.
    """
    return crops_of(*decoded_for(encoded, where, boxes, size), boxes, size, into)


def decoded_for(
    encoded: Stored, where: str, boxes: Sequence[Box], size: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image at the lowest scale that is enough for these crops, and its stored size.

    Raises:
      UndecodableError: the image cannot be decoded.
    """
    height, width = image_size(encoded, where)
    enough = (
        min(height, max(math.ceil(height * size / box.height) for box in boxes)),
        min(width, max(math.ceil(width * size / box.width) for box in boxes)),
    )
    return decode(encoded, where, at_least=enough), (height, width)


def crops_of(
    image: np.ndarray,
    stored: tuple[int, int],
    boxes: Sequence[Box],
    size: int,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Parts of a decoded image, each resized to a square: uint8 [V, size, size, 3].

    Args:
      image: pixels, at any scale.
      stored: height and width of the image as it is stored, in whose pixels the boxes are.
      boxes, size, into: as in `crops`.
    """
    down, right = image.shape[0] / stored[0], image.shape[1] / stored[1]
    views = np.empty((len(boxes), size, size, 3), np.uint8) if into is None else into
    for view, box in zip(views, boxes, strict=True):
        top, left = int(box.top * down), int(box.left * right)
        bottom = min(image.shape[0], max(top + 1, round((box.top + box.height) * down)))
        end = min(image.shape[1], max(left + 1, round((box.left + box.width) * right)))
        _resized(image[top:bottom, left:end], size, size, view)
    return views


def centre(encoded: Stored, where: str, size: int, resize: int) -> np.ndarray:
    """The central square after the short side was resized: uint8 [size, size, 3].

    Args:
      encoded, where: as in `decode`.
      size: side of the square, pixels.
      resize: the short side beforehand, pixels.

    Raises:
      UndecodableError: the image cannot be decoded.
    """
    return centre_of(*decoded_for_centre(encoded, where, resize), size, resize)


def decoded_for_centre(
    encoded: Stored, where: str, resize: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image at the lowest scale whose short side is enough, and its stored size.

    Raises:
      UndecodableError: the image cannot be decoded.
    """
    height, width = image_size(encoded, where)
    factor = resize / min(height, width)
    enough = (min(height, math.ceil(height * factor)), min(width, math.ceil(width * factor)))
    return decode(encoded, where, at_least=enough), (height, width)


def centre_of(image: np.ndarray, stored: tuple[int, int], size: int, resize: int) -> np.ndarray:
    """The central square of a decoded image: uint8 [size, size, 3].

    Args:
      image: pixels, at any scale.
      stored: height and width of the image as it is stored.
      size, resize: as in `centre`.
    """
    height, width = stored
    rows = resize if height <= width else int(resize * height / width)
    columns = resize if width <= height else int(resize * width / height)
    image = _resized(image, rows, columns)
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def _is_jpeg(encoded: bytes) -> bool:
    return encoded[:2] == b"\xff\xd8"


def _resized(
    image: np.ndarray, rows: int, columns: int, into: np.ndarray | None = None
) -> np.ndarray:
    cv2 = _opencv()
    # Averaging over areas keeps fine patterns from aliasing; it is five times dearer than bilinear
    # interpolation, which does where an image hardly shrinks, and is what enlarging takes.
    down, right = image.shape[0] / rows, image.shape[1] / columns
    shrinks = min(down, right) >= 1.0 and max(down, right) > _HARDLY
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    made: np.ndarray = cv2.resize(image, (columns, rows), dst=into, interpolation=how)
    if into is not None and made is not into:
        # What it can't write to itself.
        into[...] = made
    return made


def _undecodable(where: str, why: Any) -> UndecodableError:
    return UndecodableError(f"{where}: cannot be decoded ({why})")


@functools.cache
def _simplejpeg() -> types.ModuleType:
    try:
        import simplejpeg
    except ImportError:
        raise _missing("simplejpeg") from None
    return simplejpeg


@functools.cache
def _opencv() -> types.ModuleType:
    try:
        import cv2
    except ImportError:
        raise _missing("OpenCV") from None
    # Processes and grain's threads are the parallelism; more threads would only be in their way.
    cv2.setNumThreads(0)
    return cv2


def _missing(library: str) -> ConfigError:
    return ConfigError(
        f'photographs need {library}, which is not installed: run pip install "jaxmlcl[images]"'
    )
