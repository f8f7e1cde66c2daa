"""The PASCAL VOC devkit: image-level files of each class, or XML annotations of objects."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmlcl.data._checks import shorten
from jaxmlcl.data.images._source import EncodedSource, FileSource, choice, find_folder, finish
from jaxmlcl.data.source import read_text
from jaxmlcl.errors import DataError

# What the devkit writes in the files of a class.
_VALUES = {"1": 1, "-1": -1, "0": 0}


def open_voc(body: str, options: Mapping[str, str], places: Sequence[Path]) -> EncodedSource:
    """Open one set of a VOC devkit, such as `VOCdevkit/VOC2012`.

    Labels come from `ImageSets/Main/CLASS_SET.txt`, whose values are 1 (the class is there), -1 (it
    is not) and 0 (only difficult objects of it); or, with `from=xml`, or where there are no such
    files, from the objects in `Annotations/ID.xml`. Classes are ordered by name. Ids are the
    places in the set's list.

    Args:
      body: the folder that holds `ImageSets` and `JPEGImages`.
      options: `set`, the name of the list (`trainval` if left out). `difficult`, what an image
        with difficult objects of a class alone has: `unknown` (it is left out of losses and
        measures for that class, as in the devkit's evaluation), `positive` or `negative`. `from`,
        `main` or `xml`. `empty` and `missing`: see `finish`.
      places: folders in which a relative path is sought.

    Returns:
      The images in the order of the list.

    Raises:
      DataError: folders or files that are not there or not as described.
    """
    where = f"voc:{body}"
    folder = find_folder(body, places, where)
    subset = options.get("set", "trainval")
    main = folder / "ImageSets" / "Main"
    listed = main / f"{subset}.txt"
    if not listed.is_file():
        known = sorted(file.stem for file in main.glob("*.txt") if "_" not in file.stem)
        told = f"; there are {', '.join(known)}" if known else ""
        raise DataError(f"{where}: no set {shorten(subset)}: {listed} is not there{told}")
    names = [line.split()[0] for line in read_text(listed).splitlines() if line.strip()]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{listed}: {shorten(repeated)} is listed twice")
    files = {file.stem[: -len(subset) - 1]: file for file in main.glob(f"*_{subset}.txt")}
    given = choice(options, "from", ("main", "xml"), where)
    if "from" not in options and not files:
        given = "xml"
    if given == "main":
        if not files:
            raise DataError(f"{where}: no file {main}/CLASS_{subset}.txt; write from=xml")
        classes = sorted(files)
        values = np.stack([_of_class(files[one], names, listed) for one in classes], axis=1)
    else:
        classes, values = _of_objects(folder / "Annotations", names, where)
    difficult = choice(options, "difficult", ("unknown", "positive", "negative"), where)
    source = FileSource(
        folder / "JPEGImages",
        [f"{name}.jpg" for name in names],
        (values == 1) | ((values == 0) & (difficult == "positive")),
        name=f"{folder.name}-{subset}",
        label_names=classes,
        where=where,
        label_mask=values != 0 if difficult == "unknown" else None,
    )
    return finish(source, options, where)


def _of_class(path: Path, names: Sequence[str], listed: Path) -> np.ndarray:
    """1, -1 or 0 of every image of the list, from the file of a class."""
    found: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 2 or words[1] not in _VALUES:
            raise DataError(
                f"{path}, line {number}: {shorten(line)} is not an image and 1, -1 or 0"
            )
        if words[0] in found:
            raise DataError(f"{path}, line {number}: {shorten(words[0])} is listed twice")
        found[words[0]] = _VALUES[words[1]]
    absent = [name for name in names if name not in found]
    if absent:
        raise DataError(f"{path}: lacks {shorten(absent[0])}, which {listed.name} lists")
    return np.array([found[name] for name in names], np.int8)


def _of_objects(
    annotations: Path, names: Sequence[str], where: str
) -> tuple[list[str], np.ndarray]:
    """Classes, and 1, -1 or 0 of every image, from the objects in its XML file."""
    if not annotations.is_dir():
        raise DataError(
            f"{where}: neither ImageSets/Main/CLASS_SET.txt nor a folder Annotations is there"
        )
    objects = [_objects(annotations / f"{name}.xml") for name in names]
    classes = sorted({one for found in objects for one in found})
    if not classes:
        raise DataError(f"{where}: no annotation names an object")
    columns = {one: column for column, one in enumerate(classes)}
    values = np.full((len(names), len(classes)), -1, np.int8)
    for row, found in enumerate(objects):
        for one, value in found.items():
            values[row, columns[one]] = value
    return classes, values


def _objects(path: Path) -> dict[str, int]:
    """Of every class that an image has: 1, or 0 where all of its objects are difficult."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not XML: {error}") from None
    found: dict[str, int] = {}
    for one in root.iter("object"):
        name = (one.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: an object has no name")
        difficult = (one.findtext("difficult") or "0").strip() not in ("", "0")
        found[name] = max(found.get(name, 0), 0 if difficult else 1)
    return found
