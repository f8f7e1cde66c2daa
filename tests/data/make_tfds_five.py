"""Makes the five-image data sets in tests/data/tfds, in the layout of TensorFlow Datasets.

    python -m tests.data.make_tfds_five FOLDER

Written once; the tests read what is there. It needs tensorflow-datasets, but not TensorFlow, since
images are given as JPEG. `five/objects` is like COCO, `five/labels` like VOC.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CLASSES = ["cat", "dog", "sky"]
# Classes of each image's objects; those with a minus are crowds, or difficult.
OBJECTS = [[], [0], [1, 2, 2], [-1], [0, -1, 2]]


def picture(number: int) -> io.BytesIO:
    """A JPEG whose height and colour tell which one it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8 + number), (50 * number, 0, 90)).save(buffer, "JPEG")
    buffer.seek(0)
    return buffer


class Five(tfds.core.GeneratorBasedBuilder):
    """Five images."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="objects"),
        tfds.core.BuilderConfig(name="labels"),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        classes = tfds.features.ClassLabel(names=CLASSES)
        features: dict[str, Any] = {"image": tfds.features.Image(encoding_format="jpeg")}
        if self.builder_config.name == "objects":
            features["image/id"] = np.int64
            features["objects"] = tfds.features.Sequence({"label": classes, "is_crowd": np.bool_})
        else:
            features["labels"] = tfds.features.Sequence(classes)
            features["labels_no_difficult"] = tfds.features.Sequence(classes)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager: Any) -> dict[str, Any]:
        del manager
        return {"train": self._generate_examples(range(5)), "test": self._generate_examples([3, 4])}

    def _generate_examples(self, numbers: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in numbers:
            classes = OBJECTS[number]
            example: dict[str, Any] = {"image": picture(number)}
            if self.builder_config.name == "objects":
                example["image/id"] = 100 + number
                example["objects"] = [
                    {"label": abs(label), "is_crowd": label < 0} for label in classes
                ]
            else:
                example["labels"] = sorted({abs(label) for label in classes})
                example["labels_no_difficult"] = sorted({label for label in classes if label >= 0})
            yield number, example


if __name__ == "__main__":
    for config in Five.BUILDER_CONFIGS:
        Five(config=config, data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
