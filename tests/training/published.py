"""The data that recipes name, in the layouts in which they are published, of real photographs."""

from __future__ import annotations

import json
from pathlib import Path

from jaxmlcl.cli import main

# So many images of a set of VOC's, which has thousands.
ROWS = 60


def write_published(shared_data: Path, root: Path) -> None:
    """COCO 2014, Objects365's shards, NUS-WIDE and MIRFLICKR of COCO's subset; VOC 2007 of VOC's.

    All but VOC have the 80 labels of COCO, so that the programs of all recipes are the same.
    """
    coco, voc = (shared_data / "images" / name for name in ("coco_256", "voc2012_animals"))
    (root / "annotations").mkdir(parents=True)
    placed: list[tuple[Path, set[int]]] = []
    for split in ("train", "val"):
        (root / f"{split}2014").symlink_to(coco / f"{split}2017")
        text = (coco / "annotations" / f"instances_{split}2017.json").read_text()
        (root / "annotations" / f"instances_{split}2014.json").write_text(text)
        document = json.loads(text)
        labels: dict[int, set[int]] = {image["id"]: set() for image in document["images"]}
        for one in document["annotations"]:
            labels[one["image_id"]].add(one["category_id"])
        placed += [
            (coco / f"{split}2017" / image["file_name"], labels[image["id"]])
            for image in document["images"]
        ]
        words = f"coco:annotations/instances_{split}2014.json", "-o"
        packed = str(root / "packed" / f"objects365-{split}")
        assert main(["data", "pack", *words, packed, "--data.root", str(root)]) == 0
    names = {one["id"]: one["name"].replace(" ", "_") for one in document["categories"]}
    write_nuswide(root / "NUS-WIDE", placed, names)
    write_mirflickr(root / "MIRFLICKR", placed, names)
    write_voc(root / "VOCdevkit" / "VOC2007", voc / "VOC2012")


def write_nuswide(folder: Path, placed: list[tuple[Path, set[int]]], names: dict[int, str]) -> None:
    labels = folder / "Groundtruth" / "AllLabels"
    for needed in (folder / "ImageList", labels, folder / "Flickr" / "all"):
        needed.mkdir(parents=True)
    listed = [f"all\\{number:04}_{file.name}" for number, (file, _) in enumerate(placed)]
    for name, (file, _) in zip(listed, placed, strict=True):
        (folder / "Flickr" / name.replace("\\", "/")).symlink_to(file)
    (folder / "ImageList" / "ImageList.txt").write_text("\n".join(listed) + "\n")
    for number, name in names.items():
        column = "\n".join(str(int(number in found)) for _, found in placed)
        (labels / f"Labels_{name}.txt").write_text(column + "\n")


def write_mirflickr(
    folder: Path, placed: list[tuple[Path, set[int]]], names: dict[int, str]
) -> None:
    images, notes = folder / "mirflickr", folder / "mirflickr25k_annotations_v080"
    images.mkdir(parents=True)
    notes.mkdir()
    for number, (file, _) in enumerate(placed, start=1):
        (images / f"im{number}.jpg").symlink_to(file)
    for label, name in names.items():
        found = [str(i) for i, (_, labels) in enumerate(placed, start=1) if label in labels]
        (notes / f"{name}.txt").write_text("".join(f"{number}\n" for number in found))


def write_voc(folder: Path, whole: Path) -> None:
    main_of = folder / "ImageSets" / "Main"
    main_of.mkdir(parents=True)
    (folder / "JPEGImages").symlink_to(whole / "JPEGImages")
    for ours, theirs in (("trainval", "train"), ("test", "val")):
        for file in (whole / "ImageSets" / "Main").glob(f"*{theirs}.txt"):
            name = file.name.removesuffix(f"{theirs}.txt")
            if name.endswith("train"):  # of trainval
                continue
            lines = file.read_text().splitlines(keepends=True)[:ROWS]
            (main_of / f"{name}{ours}.txt").write_text("".join(lines))
