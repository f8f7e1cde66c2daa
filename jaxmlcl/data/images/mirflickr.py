"""MIRFLICKR-25k: numbered images, and for each label a file with the numbers that carry it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmlcl.data._checks import shorten
from jaxmlcl.data.images._source import EncodedSource, FileSource, choice, find_folder, finish
from jaxmlcl.data.images.nuswide import read_lines
from jaxmlcl.errors import DataError

_RELEVANT = "_r1"


def open_mirflickr(body: str, options: Mapping[str, str], places: Sequence[Path]) -> EncodedSource:
    """Open MIRFLICKR-25k as it is published.

    `mirflickr/im1.jpg` and so on are the images; each text file of
    `mirflickr25k_annotations_v080` holds the numbers of the images that carry its label: 24 that
    were given generously, and 14 `_r1`, of images in which they are salient. Labels are ordered by
    name; ids are the images' numbers.

    Args:
      body: the folder that holds both; or the folder of the images, with the text files beside it.
      options: `labels`, `38` (all, if left out) or `24` (without `_r1`). `empty` and `missing`: see
        `finish`.
      places: folders in which a relative path is sought.

    Returns:
      The images in the order of their numbers.

    Raises:
      DataError: folders or files that are not there or not as described.
    """
    where = f"mirflickr:{body}"
    folder = find_folder(body, places, where)
    images = folder / "mirflickr" if (folder / "mirflickr").is_dir() else folder
    numbers = sorted(
        int(found[1])
        for path in images.glob("im*.jpg")
        if (found := re.fullmatch(r"im(\d+)", path.stem))
    )
    if not numbers:
        raise DataError(f"{where}: no image im1.jpg, im2.jpg, ... in {images}")
    files = _annotations(folder, images, where)
    if choice(options, "labels", ("38", "24"), where) == "24":
        files = {name: path for name, path in files.items() if not name.endswith(_RELEVANT)}
    rows = {number: row for row, number in enumerate(numbers)}
    names = sorted(files)
    labels = np.zeros((len(numbers), len(names)), np.uint8)
    for column, name in enumerate(names):
        for line, text in enumerate(read_lines(files[name]), 1):
            if not text.isdecimal():
                raise DataError(f"{files[name]}, line {line}: {shorten(text)} is not a number")
            if int(text) not in rows:
                raise DataError(
                    f"{files[name]}, line {line}: image {text} is not there; it should be "
                    f"{images / f'im{text}.jpg'}"
                )
            labels[rows[int(text)], column] = 1
    source = FileSource(
        images,
        [f"im{number}.jpg" for number in numbers],
        labels,
        name=folder.name,
        label_names=names,
        ids=np.array(numbers),
        where=where,
    )
    return finish(source, options, where)


def _annotations(folder: Path, images: Path, where: str) -> dict[str, Path]:
    tried = [*sorted(folder.glob("mirflickr25k_annotations*")), folder, images.parent]
    for place in tried:
        found = {
            path.stem: path
            for path in place.glob("*.txt")
            if not path.stem.lower().startswith("readme")
        }
        if found:
            return found
    raise DataError(
        f"{where}: no annotations LABEL.txt in {', '.join(map(str, dict.fromkeys(tried)))}"
    )
