"""NUS-WIDE: lists of images, and a file of 0 and 1 for each of its 81 concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmlcl.data._checks import shorten
from jaxmlcl.data.images._source import EncodedSource, FileSource, choice, find_folder, finish
from jaxmlcl.data.source import read_text
from jaxmlcl.errors import DataError

# Of each split: the list of its images, the folder of its labels, and the ending of their names.
_SPLITS = {
    "all": ("ImageList.txt", "AllLabels", ""),
    "train": ("TrainImagelist.txt", "TrainTestLabels", "_Train"),
    "test": ("TestImagelist.txt", "TrainTestLabels", "_Test"),
}


def open_nuswide(body: str, options: Mapping[str, str], places: Sequence[Path]) -> EncodedSource:
    """Open NUS-WIDE as it is published.

    `ImageList/TrainImagelist.txt` (or `TestImagelist.txt`, `ImageList.txt`) names the images,
    `Groundtruth/TrainTestLabels/Labels_CONCEPT_Train.txt` (`..._Test.txt`, or
    `AllLabels/Labels_CONCEPT.txt`) has a line of 0 or 1 for each of them, and the images lie in
    `Flickr`. Many of them are no longer to be had: those whose files are not there are left out and
    counted. Concepts are ordered by name; ids are the places in the list.

    Args:
      body: the folder that holds `ImageList` and `Groundtruth`.
      options: `split`, `train`, `test` or `all` (if left out). `images`, the folder of the images.
        `missing=refuse` keeps those that are not there. `empty`: see `finish`.
      places: folders in which a relative path is sought.

    Returns:
      The images in the order of the list.

    Raises:
      DataError: folders or files that are not there or not as described.
    """
    where = f"nuswide:{body}"
    folder = find_folder(body, places, where)
    split = choice(options, "split", tuple(_SPLITS), where)
    listed, beside, ending = _SPLITS[split]
    names = read_lines(folder / "ImageList" / listed)
    ground = folder / "Groundtruth" / beside
    files = {
        path.stem.removeprefix("Labels_").removesuffix(ending): path
        for path in ground.glob(f"Labels_*{ending}.txt")
    }
    if not files:
        raise DataError(f"{where}: no file {ground}/Labels_CONCEPT{ending}.txt")
    concepts = sorted(files)
    labels = np.zeros((len(names), len(concepts)), np.uint8)
    for column, concept in enumerate(concepts):
        values = read_lines(files[concept])
        if len(values) != len(names):
            raise DataError(
                f"{files[concept]}: {len(values)} lines for the {len(names)} images of {listed}"
            )
        for row, value in enumerate(values):
            if value not in ("0", "1"):
                raise DataError(f"{files[concept]}, line {row + 1}: {shorten(value)} is not 0 or 1")
            labels[row, column] = value == "1"
    images = find_folder(options.get("images", "Flickr"), [folder, *places], where)
    source = FileSource(
        images,
        [name.replace("\\", "/") for name in names],
        labels,
        name=f"{folder.name}-{split}",
        label_names=concepts,
        where=where,
    )
    return finish(source, {"missing": "drop", **options}, where)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold something, without the space around them.

    Raises:
      DataError: it cannot be read.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "list.txt"
      >>> _ = path.write_text("a \\n\\nb\\n")
      >>> read_lines(path)
      ['a', 'b']
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
