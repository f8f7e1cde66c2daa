"""Image files with labels: COCO, VOC, folders; parts of them, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxmlcl.cli import main
from jaxmlcl.data import open_source
from jaxmlcl.data.inspect import inspect_sources
from jaxmlcl.data.source import row_origin
from jaxmlcl.errors import DataError


def picture(shade: int, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def pictures(folder: Path, names: list[str]) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(20 * shade))


def coco(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 9, "file_name": "b.jpg", "width": 8, "height": 6},
            {"id": 4, "file_name": "a.jpg", "width": 8, "height": 6},
            {"id": 7, "file_name": "c.jpg", "width": 8, "height": 6},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 90, "bbox": [0, 0, 1, 1], "iscrowd": 0},
            {"id": 2, "image_id": 4, "category_id": 90, "bbox": [0, 0, 2, 1], "iscrowd": 0},
            {
                "id": 3,
                "image_id": 4,
                "category_id": 1,
                "segmentation": {"counts": []},
                "iscrowd": 1,
            },
            {"id": 4, "image_id": 9, "category_id": 13, "bbox": [0, 0, 1, 1]},
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 1, "name": "person"},
            {"id": 13, "name": "stop sign"},
        ],
        **(changes or {}),
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    pytest.importorskip("msgspec")
    pictures(tmp_path / "val2017", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "annotations").mkdir()
    write(tmp_path, coco())
    return tmp_path


def write(place: Path, document: Any) -> None:
    (place / "annotations" / "instances_val2017.json").write_text(json.dumps(document))


URI = "coco:annotations/instances_val2017.json"


def test_coco_orders_categories_by_number_and_images_by_the_file(place: Path) -> None:
    source = open_source(URI, root=place)
    assert source.metadata.label_names == ("person", "stop sign", "toothbrush")
    assert (source.metadata.kind, source.metadata.input_shape) == ("encoded", ())
    assert source.labels().tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    record = source[1]
    assert record["id"] == 4
    assert record["inputs"] == (place / "val2017" / "a.jpg").read_bytes()
    assert record["labels"].tolist() == [1, 0, 1]
    assert source.place(1).endswith("val2017/a.jpg")
    assert [source[i]["id"] for i in range(3)] == [9, 4, 7]


def test_coco_leaves_out_crowds_and_images_without_objects(place: Path) -> None:
    without = open_source(f"{URI}?crowd=drop", root=place)
    assert without.labels().tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    labelled = open_source(f"{URI}?empty=drop", root=place)
    assert labelled.ids.tolist() == [9, 4]
    assert labelled.metadata.fingerprint != open_source(URI, root=place).metadata.fingerprint


def test_coco_finds_its_images_or_is_told(place: Path) -> None:
    (place / "val2017").rename(place / "pictures")
    with pytest.raises(DataError, match=r"'b.jpg' is in none of .*images=FOLDER"):
        open_source(URI, root=place)
    assert len(open_source(f"{URI}?images=pictures", root=place)[0]["inputs"]) > 100


def test_images_that_are_missing_are_named_or_left_out(place: Path) -> None:
    (place / "val2017" / "a.jpg").unlink()
    source = open_source(URI, root=place)
    assert source.missing().tolist() == [1]
    with pytest.raises(DataError, match=r"val2017/a.jpg is listed but not there.*missing=drop"):
        source[1]
    assert open_source(f"{URI}?missing=drop", root=place).ids.tolist() == [9, 7]


def test_lvis_names_images_by_address_and_says_what_is_absent(place: Path) -> None:
    document = coco()
    for image, absent in zip(document["images"], ([1], [], [1, 90]), strict=True):
        folder = "train2017" if image["id"] == 4 else "val2017"
        image["coco_url"] = f"http://images.cocodataset.org/{folder}/" + image.pop("file_name")
        image["neg_category_ids"] = absent
    write(place, document)
    (place / "train2017").mkdir()
    (place / "val2017" / "a.jpg").rename(place / "train2017" / "a.jpg")
    source = open_source(f"{URI}?unknown=mask", root=place)
    assert source.place(1) == str(place / "train2017" / "a.jpg")
    assert len(source.missing()) == 0
    assert source.metadata.unknown_labels
    assert source.label_mask().tolist() == [
        [True, True, False],
        [True, False, True],
        [True, False, True],
    ]
    assert source[0]["label_mask"].tolist() == [True, True, False]
    assert not open_source(URI, root=place).metadata.unknown_labels


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not annotations in COCO's JSON"),
        ({"images": []}, "missing required field"),
        (coco({"images": []}), "lists no images"),
        (coco({"categories": []}), "no categories"),
        (coco({"annotations": [{"image_id": 5, "category_id": 1}]}), "annotation 0 is of image 5"),
        (coco({"annotations": [{"image_id": 4, "category_id": 2}]}), "of category 2, which the"),
        (coco({"annotations": [{"image_id": "4", "category_id": 2}]}), "Expected `int`"),
        (coco({"images": [{"id": 1, "file_name": "a.jpg"}] * 2}), "two images have the same id"),
        (coco({"images": [{"id": 1}], "annotations": []}), "image 1 has no file_name"),
        (
            coco({"images": [{"id": 1, "file_name": "../a.jpg"}], "annotations": []}),
            "leaves the folder",
        ),
        (
            coco({"images": [{"id": 1, "file_name": "/etc/passwd"}], "annotations": []}),
            "leaves the folder",
        ),
        (
            coco({"images": [{"id": i, "file_name": "a.jpg"} for i in (4, 9)]}),
            "'a.jpg' is listed twice",
        ),
        (
            coco({"images": [{"id": 2**31, "file_name": "b.jpg"}], "annotations": []}),
            "ids must be from 0",
        ),
        (coco({"categories": [{"id": i, "name": "x"} for i in (1, 13, 90)]}), "'x' occurs more"),
        (coco({"categories": [{"id": 1, "name": "x"}] * 2}), "two categories have the same id"),
    ],
)
def test_bad_coco_files_are_told_in_one_line(place: Path, document: Any, message: str) -> None:
    file = place / "annotations" / "instances_val2017.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(DataError, match=message) as caught:
        open_source(URI, root=place)
    assert "\n" not in str(caught.value)


def test_a_worker_gets_paths_and_bits_not_annotations(place: Path) -> None:
    document = coco()
    extra = [{"id": i, "file_name": f"x/{i}.jpg"} for i in range(100, 5100)]
    write(place, {**document, "images": [*document["images"], *extra]})
    source = open_source(URI, root=place)
    content = pickle.dumps(source)
    # Of an image: its name, where that ends, a byte of labels, its id.
    assert len(content) < 5003 * (10 + 8 + 1 + 4) + 2000
    again = pickle.loads(content)
    assert again[1]["labels"].tolist() == source[1]["labels"].tolist()
    assert again.place(5002).endswith("x/5099.jpg")


def voc(place: Path, values: dict[str, str]) -> Path:
    folder = place / "VOC2007"
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    names = ["000005", "000007", "000009"]
    pictures(folder / "JPEGImages", [f"{name}.jpg" for name in names])
    (main / "train.txt").write_text("".join(f"{name}\n" for name in names))
    for one, column in values.items():
        lines = [f"{name} {value:>2}\n" for name, value in zip(names, column.split(), strict=True)]
        (main / f"{one}_train.txt").write_text("".join(lines))
    return folder


def test_voc_from_the_files_of_its_classes(tmp_path: Path) -> None:
    voc(tmp_path, {"dog": "1 -1 0", "cat": "-1 -1 1"})
    source = open_source("voc:VOC2007?set=train", root=tmp_path)
    assert source.metadata.name == "VOC2007-train"
    assert source.metadata.label_names == ("cat", "dog")
    assert source.labels().tolist() == [[0, 1], [0, 0], [1, 0]]
    assert source.label_mask().tolist() == [[True, True], [True, True], [True, False]]
    assert source.place(2).endswith("JPEGImages/000009.jpg")
    positive = open_source("voc:VOC2007?set=train&difficult=positive", root=tmp_path)
    assert positive.labels().tolist() == [[0, 1], [0, 0], [1, 1]]
    assert positive.label_mask() is None
    negative = open_source("voc:VOC2007?set=train&difficult=negative&empty=drop", root=tmp_path)
    assert (negative.labels().tolist(), negative.ids.tolist()) == ([[0, 1], [1, 0]], [0, 2])


def test_voc_from_its_annotations(tmp_path: Path) -> None:
    folder = voc(tmp_path, {})
    (folder / "Annotations").mkdir()
    objects = {
        "000005": [("dog", 0), ("dog", 1), ("chair", 1)],
        "000007": [],
        "000009": [("cat", 1)],
    }
    for name, found in objects.items():
        inner = "".join(
            f"<object><name>{one}</name><difficult>{hard}</difficult></object>"
            for one, hard in found
        )
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{inner}</annotation>")
    source = open_source("voc:VOC2007?set=train", root=tmp_path)
    assert source.metadata.label_names == ("cat", "chair", "dog")
    assert source.labels().tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert source.label_mask().tolist() == [[True, False, True], [True] * 3, [False, True, True]]
    (folder / "Annotations" / "000007.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"000007.xml: not XML"):
        open_source("voc:VOC2007?set=train", root=tmp_path)


def test_bad_devkits_are_told_in_one_line(tmp_path: Path) -> None:
    folder = voc(tmp_path, {"dog": "1 -1 -1"})
    main = folder / "ImageSets" / "Main"
    for uri, message in (
        ("voc:VOC2008", "no folder VOC2008; tried"),
        ("voc:VOC2007", "no set 'trainval': .* is not there; there are train"),
        ("voc:VOC2007?set=train&from=xml", "nor a folder Annotations is there"),
        ("voc:VOC2007?set=train&difficult=no", "difficult=unknown or difficult=positive or"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(uri, root=tmp_path)
    for text, message in (
        ("000005 1\n000007 -1\n", "lacks '000009', which train.txt lists"),
        ("000005 2\n", "line 1: '000005 2' is not an image and 1, -1 or 0"),
        ("000005 1\n000005 1\n", "line 2: '000005' is listed twice"),
    ):
        (main / "dog_train.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            open_source("voc:VOC2007?set=train", root=tmp_path)


@pytest.mark.parametrize("form", ["columns", "names", "jsonl"])
def test_a_folder_with_a_table(tmp_path: Path, form: str) -> None:
    pictures(tmp_path, ["a.jpg", "in/b.jpg", "c.jpg"])
    if form == "columns":
        text = "file,split,sea,sky\na.jpg,train,1,1\nin/b.jpg,test,0,0\nc.jpg,train,0,1\n"
    elif form == "names":
        text = "file,labels,split\na.jpg,sky;sea,train\nin/b.jpg,,test\nc.jpg, sky ,train\n"
    else:
        rows = [
            ("a.jpg", ["sky", "sea"], "train"),
            ("in/b.jpg", [], "test"),
            ("c.jpg", ["sky"], "train"),
        ]
        text = "".join(
            json.dumps({"file": file, "labels": labels, "split": split}) + "\n"
            for file, labels, split in rows
        )
    (tmp_path / ("labels.jsonl" if form == "jsonl" else "labels.csv")).write_text(text)
    source = open_source(f"folder:{tmp_path}?split=train")
    assert source.metadata.label_names == ("sea", "sky")
    assert source.labels().tolist() == [[1, 1], [0, 1]]
    assert source.ids.tolist() == [0, 2]
    test = open_source(f"folder:{tmp_path}?split=test")
    assert test.metadata.label_names == source.metadata.label_names
    assert test[0]["inputs"] == (tmp_path / "in" / "b.jpg").read_bytes()
    with pytest.raises(DataError, match="no row of split 'val'; there are test, train"):
        open_source(f"folder:{tmp_path}?split=val")


def test_unknown_labels_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,sea,sky\na.jpg,1,\nb.jpg,0,1\n")
    with pytest.raises(DataError, match=r"line 2, label 'sky': no value.*unknown=mask"):
        open_source(f"folder:{tmp_path}")
    source = open_source(f"folder:{tmp_path}?unknown=mask")
    assert source.label_mask().tolist() == [[True, False], [True, True]]
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "labels.jsonl").write_text('{"file": "a.jpg", "labels": ["x"], "unknown": ["y"]}\n')
    source = open_source(f"folder:{tmp_path}?unknown=mask")
    assert source.metadata.label_names == ("x", "y")
    assert source.label_mask().tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "name,sea\na,1\n", "no column 'file'"),
        ("labels.csv", "file,sea\na.jpg,2\n", "line 2, label 'sea': '2' is not 0 or 1"),
        ("labels.csv", "file,sea\na.jpg,1,1\n", "line 2: another number of cells"),
        ("labels.csv", "file,sea\na.jpg\n", "line 2: another number of cells"),
        ("labels.csv", "file,sea,sea\na.jpg,1,1\n", "'sea' occurs more than once"),
        ("labels.csv", "file,sea\na.jpg,1\na.jpg,0\n", "line 3: 'a.jpg' is listed twice"),
        ("labels.csv", "file,labels,sea\na.jpg,x,1\n", "a column 'labels' and others, 'sea'"),
        ("labels.csv", "file,labels\na.jpg,\n", "no image has a label"),
        ("labels.csv", "file,sea\n", "lists no image"),
        ("labels.csv", "file,sea\n../a.jpg,1\n", "leaves the folder"),
        ("labels.csv", "file,sea\n./a.jpg,1\n", "cannot be the name of a file"),
        ("labels.csv", "file,sea\n,1\n", "'' cannot be the name of a file"),
        ("labels.jsonl", '{"file": "\\ud800.jpg", "labels": ["x"]}\n', "cannot be the name"),
        ("labels.jsonl", "{\n", "line 1: not JSON"),
        ("labels.jsonl", '{"labels": []}\n', "not an object with a text 'file'"),
        ("labels.jsonl", '{"file": "a", "labels": "x"}\n', "'labels' is not a list of names"),
        ("labels.jsonl", '{"file": "a", "unknown": ["x"]}\n', "write .unknown=mask"),
    ],
)
def test_bad_tables_are_told_in_one_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_source(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.fixture
def nuswide(tmp_path: Path) -> Path:
    folder = tmp_path / "NUS-WIDE"
    names = ["actor\\1_a.jpg", "boat\\2_b.jpg", "boat\\3_c.jpg"]
    pictures(folder / "Flickr", [name.replace("\\", "/") for name in names])
    for part in ("ImageList", "Groundtruth/AllLabels", "Groundtruth/TrainTestLabels"):
        (folder / part).mkdir(parents=True)
    for name, listed, rows in (
        ("ImageList", names, ""),
        ("TrainImagelist", names[:2], "_Train"),
        ("TestImagelist", names[2:], "_Test"),
    ):
        (folder / "ImageList" / f"{name}.txt").write_text("".join(f"{one}\r\n" for one in listed))
        for concept, values in (("sky", "101"), ("boats", "011")):
            start = 2 if rows == "_Test" else 0
            where = folder / "Groundtruth" / ("TrainTestLabels" if rows else "AllLabels")
            own = values[start : start + len(listed)]
            (where / f"Labels_{concept}{rows}.txt").write_text("".join(f"{v}\n" for v in own))
    return folder


def test_nuswide_by_its_lists(nuswide: Path) -> None:
    source = open_source("nuswide:NUS-WIDE", root=nuswide.parent)
    assert source.metadata.label_names == ("boats", "sky")
    assert source.labels().tolist() == [[0, 1], [1, 0], [1, 1]]
    assert source.place(1).endswith("Flickr/boat/2_b.jpg")
    train = open_source("nuswide:NUS-WIDE?split=train", root=nuswide.parent)
    test = open_source("nuswide:NUS-WIDE?split=test", root=nuswide.parent)
    assert (train.labels().tolist(), test.labels().tolist()) == ([[0, 1], [1, 0]], [[1, 1]])


def test_nuswide_counts_what_is_no_longer_there(nuswide: Path) -> None:
    (nuswide / "Flickr" / "boat" / "2_b.jpg").unlink()
    source = open_source("nuswide:NUS-WIDE", root=nuswide.parent)
    assert (source.ids.tolist(), source.left_out) == ([0, 2], 1)
    problems = inspect_sources([("nus", source)])["problems"]
    assert "nus: 1 listed images are left out, their files are not there" in problems
    whole = open_source("nuswide:NUS-WIDE?missing=refuse", root=nuswide.parent)
    assert whole.missing().tolist() == [1]


def test_bad_lists_of_nuswide(nuswide: Path) -> None:
    labels = nuswide / "Groundtruth" / "AllLabels" / "Labels_sky.txt"
    for text, message in (
        ("1\n0\n", "2 lines for the 3 images of ImageList.txt"),
        ("1\n0\nx\n", "line 3: 'x' is not 0 or 1"),
    ):
        labels.write_text(text)
        with pytest.raises(DataError, match=message):
            open_source("nuswide:NUS-WIDE", root=nuswide.parent)
    for file in labels.parent.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"no file .*Labels_CONCEPT.txt"):
        open_source("nuswide:NUS-WIDE", root=nuswide.parent)


def test_mirflickr_by_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "mir"
    pictures(folder / "mirflickr", ["im1.jpg", "im2.jpg", "im10.jpg"])
    notes = folder / "mirflickr25k_annotations_v080"
    notes.mkdir()
    (notes / "README.txt").write_text("what this is\n")
    for name, numbers in (("sky", "1\n10\n"), ("sky_r1", "10\n"), ("baby", "2\n")):
        (notes / f"{name}.txt").write_text(numbers)
    source = open_source("mirflickr:mir", root=tmp_path)
    assert source.metadata.label_names == ("baby", "sky", "sky_r1")
    assert source.ids.tolist() == [1, 2, 10]
    assert source.labels().tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 1]]
    fewer = open_source("mirflickr:mir?labels=24", root=tmp_path)
    assert fewer.metadata.label_names == ("baby", "sky")
    for text, message in (("x\n", "line 1: 'x' is not a number"), ("7\n", "image 7 is not there")):
        (notes / "sky.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            open_source("mirflickr:mir", root=tmp_path)


def test_parts_are_stratified_and_disjoint(tmp_path: Path) -> None:
    rows = "".join(f"{i}.jpg,{int(i % 2 == 0)},{int(i % 5 == 0)}\n" for i in range(100))
    (tmp_path / "labels.csv").write_text("file,even,fifth\n" + rows)
    uri = f"folder:{tmp_path}?part={{}}&fraction=0.2"
    parts = [open_source(uri.format(part)) for part in ("rest", "held-out")]
    assert sorted(np.concatenate([part.ids for part in parts]).tolist()) == list(range(100))
    assert parts[1].labels().sum(axis=0).tolist() == [10, 4]
    assert parts[1].place(0).endswith(f"{parts[1].ids[0]}.jpg")
    assert len(open_source(f"folder:{tmp_path}?share=0.1")) == 10
    assert row_origin(uri.format("rest")) == row_origin(f"folder:{tmp_path}")


def test_files_are_checked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (place / "val2017" / "b.jpg").read_bytes()
    (place / "val2017" / "b.jpg").write_bytes(good[: len(good) // 2])
    (place / "val2017" / "c.jpg").write_bytes((place / "val2017" / "a.jpg").read_bytes())
    source = open_source(URI, root=place)
    found = inspect_sources([("val", source)])["sources"][0]
    assert found["images"] == {"missing": 0}
    assert found["duplicate_rows"] == 0
    document = inspect_sources([("val", source)], check_images=True)
    found = document["sources"][0]
    assert found["images"]["undecodable"] == 1
    assert found["images"]["sizes"] == [[8, 6], [8, 6]]
    assert (found["duplicate_rows"], found["conflicting_rows"]) == (1, 1)
    told = [one for one in document["problems"] if "decoded" in one]
    assert told == [
        f"val: 1 of 3 files cannot be decoded; the first is {place / 'val2017' / 'b.jpg'}"
    ]
    (place / "val2017" / "a.jpg").unlink()
    words = ["data", "inspect", URI, "--data.root", str(place), "--check-images"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "1 of 3 files are not there; the first is" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("[1] ")]
    assert rows[2] == ["[1]", "1", "1", "8x6", "8x6"]


def test_real_photographs(shared_data: Path) -> None:
    pytest.importorskip("msgspec")
    files = "coco:images/coco_256/annotations/instances_{}2017.json"
    train, validation = (
        open_source(files.format(split), root=shared_data) for split in ("train", "val")
    )
    assert (len(train), len(validation), train.metadata.num_labels) == (128, 128, 80)
    assert train.metadata.label_names == validation.metadata.label_names
    assert int((~train.labels().any(axis=1)).sum()) == 2
    assert abs(train.labels().sum(axis=1).mean() - 2.9) < 0.1
    with Image.open(io.BytesIO(train[5]["inputs"])) as image:
        assert min(image.size) == 256
    voc = open_source("voc:images/voc2012_animals/VOC2012?set=trainval", root=shared_data)
    assert len(voc) == 3131
    counts = np.bincount(voc.labels().sum(axis=1))
    assert counts[1:].tolist() == [2092, 825, 174, 31, 9]
    assert len(voc.missing()) == 0
