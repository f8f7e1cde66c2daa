"""Annotations in COCO's JSON: COCO 2014 and 2017, Objects365 v1 and v2, LVIS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.data._checks import shorten
from jaxmlcl.data.images._source import (
    EncodedSource,
    FileSource,
    check_files,
    choice,
    find_folder,
    finish,
)
from jaxmlcl.data.source import find_file
from jaxmlcl.errors import ConfigError, DataError


def open_coco(body: str, options: Mapping[str, str], places: Sequence[Path]) -> EncodedSource:
    """Open images with the labels that boxes or masks of a COCO file give them.

    A label is positive where the image has an object of its category; categories are ordered by
    their numbers, which need not be contiguous. Ids are the file's image ids.

    Args:
      body: the JSON file, such as `annotations/instances_train2017.json`.
      options: `images`, the folder of the images (of LVIS, the one that holds `train2017` and
        `val2017`); left out, the one beside or above the file that has the first of them.
        `crowd=drop` leaves objects out that are marked as a crowd. `empty` and `missing`: see
        `finish`. `unknown=mask` takes LVIS's word: a category is known to be absent only where the
        file says so.
      places: folders in which relative paths are sought.

    Returns:
      The images in the order of the file.

    Raises:
      DataError: no such file, JSON that is not COCO's, an object of an unknown image or category,
        names or ids that occur twice.
      ConfigError: the extra `images` is not installed.
    """
    where = f"coco:{body}"
    path = find_file(body, places)
    document = _document(path)
    categories = sorted(document.categories, key=lambda one: one.id)
    columns = {one.id: column for column, one in enumerate(categories)}
    if len(columns) < len(categories):
        raise DataError(f"{path}: two categories have the same id")
    rows = {one.id: row for row, one in enumerate(document.images)}
    if len(rows) < len(document.images):
        raise DataError(f"{path}: two images have the same id")
    if not rows or not columns:
        raise DataError(f"{path}: it lists no images or no categories")
    labels = np.zeros((len(rows), len(columns)), np.uint8)
    drop_crowds = choice(options, "crowd", ("keep", "drop"), where) == "drop"
    for number, one in enumerate(document.annotations):
        row, column = rows.get(one.image_id), columns.get(one.category_id)
        if row is None or column is None:
            what = f"image {one.image_id}" if row is None else f"category {one.category_id}"
            raise DataError(f"{path}: annotation {number} is of {what}, which the file lacks")
        if not (drop_crowds and one.iscrowd):
            labels[row, column] = 1
    known = None
    if "unknown" in options:
        choice(options, "unknown", ("mask",), where)
        known = labels.astype(bool)
        for row, image in enumerate(document.images):
            if image.neg_category_ids is None:
                raise DataError(
                    f"{path}: image {image.id} has no neg_category_ids, as LVIS has; leave "
                    "unknown=mask out"
                )
            known[row, [columns[one] for one in image.neg_category_ids if one in columns]] = True
    files = [_file_name(image, path) for image in document.images]
    check_files(files, str(path))
    source = FileSource(
        _folder(options, path, files[0], places, where),
        files,
        labels,
        name=path.stem,
        label_names=[one.name for one in categories],
        ids=np.array(list(rows), np.int64),
        where=str(path),
        label_mask=known,
    )
    return finish(source, options, where)


def _document(path: Path) -> Any:
    """The parts of the file that are needed: boxes, masks and licences are skipped unread."""
    try:
        import msgspec
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path}: reading COCO's JSON needs msgspec, which is not installed: run "
            'pip install "jaxmlcl[images]"'
        ) from None

    # Without these objects' garbage collection, 30 million annotations take seconds, not minutes.
    def struct(name: str, fields: list[Any]) -> Any:
        return msgspec.defstruct(name, fields, gc=False)

    image = struct(
        "Image",
        [
            ("id", int),
            ("file_name", str | None, None),
            ("coco_url", str | None, None),
            ("neg_category_ids", list[int] | None, None),
        ],
    )
    annotation = struct(
        "Annotation", [("image_id", int), ("category_id", int), ("iscrowd", int, 0)]
    )
    category = struct("Category", [("id", int), ("name", str)])
    several: Any = list
    parts = {"images": image, "annotations": annotation, "categories": category}
    document = msgspec.defstruct("Document", [(name, several[one]) for name, one in parts.items()])
    try:
        return msgspec.json.decode(path.read_bytes(), type=document)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not annotations in COCO's JSON: {error}") from None


def _file_name(image: Any, path: Path) -> str:
    if image.file_name:
        return str(image.file_name)
    if image.coco_url:
        # LVIS names the images of COCO by their addresses, and mixes those of two folders.
        return "/".join(image.coco_url.split("/")[-2:])
    raise DataError(f"{path}: image {image.id} has no file_name")


def _folder(
    options: Mapping[str, str], path: Path, first: str, places: Sequence[Path], where: str
) -> Path:
    if "images" in options:
        return find_folder(options["images"], [path.parent, *places], where)
    # instances_val2017.json in annotations/ belongs to val2017/ beside that folder.
    ending = path.stem.rpartition("_")[2]
    near = (path.parent, path.parent.parent)
    tried = [*(folder / ending for folder in near), *near, *(folder / "images" for folder in near)]
    for folder in tried:
        if (folder / first).is_file():
            return folder
    raise DataError(
        f"{where}: {shorten(first)} is in none of {', '.join(map(str, tried))}; name the folder of "
        "the images with ?images=FOLDER"
    )
