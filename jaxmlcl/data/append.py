"""The rows of two files as one source."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmlcl.data.source import ArraySource, Source
from jaxmlcl.errors import DataError

_LARGEST_ID = 2**31 - 1


def appended(first: Source, second: Source, where: str) -> ArraySource:
    """The rows of one source, then those of another with the same columns.

    Args:
      first: a source in memory; its ids stay.
      second: another, whose ids become those that it has, plus one and the largest of the first.
      where: the URI, for messages.

    Raises:
      DataError: one is not in memory, or labels, inputs or what is known beside them differ.

    Example:
      >>> one = ArraySource([[1.0], [2.0]], [[0], [1]], name="a")
      >>> both = appended(one, ArraySource([[3.0]], [[1]], name="b"), "a?and=b")
      >>> both.metadata.name, both.arrays()["ids"].tolist()
      ('a-and-b', [0, 1, 2])
    """
    a, b = first.metadata, second.metadata
    for name, one, other in (
        ("labels", a.label_names, b.label_names),
        ("inputs of the shape", a.input_shape, b.input_shape),
        ("features", *(getattr(source, "feature_names", None) for source in (first, second))),
    ):
        if one != other:
            raise DataError(
                f"{where}: the second file has not the {name} of the first; only rows of the same "
                "columns can be appended"
            )
    arrays: list[Any] = []
    for source in (first, second):
        function: Any = getattr(source, "arrays", None)
        if function is None:
            raise DataError(f"{where}: only sources that fit in memory can be appended")
        arrays.append(function())
    if set(arrays[0]) != set(arrays[1]):
        raise DataError(f"{where}: one of the two files has unknown labels and the other has none")
    start = int(arrays[0]["ids"].max()) + 1
    ids = arrays[1]["ids"].astype(np.int64) + start
    if ids.max() > _LARGEST_ID:
        raise DataError(f"{where}: ids of the second file would go beyond {_LARGEST_ID}")
    joined = {
        name: np.concatenate([part[name] for part in arrays]) for name in arrays[0] if name != "ids"
    }
    return ArraySource(
        joined["inputs"],
        joined["labels"],
        name=f"{a.name}-and-{b.name}",
        label_names=a.label_names,
        feature_names=getattr(first, "feature_names", None),
        ids=np.concatenate([arrays[0]["ids"], ids.astype(np.int32)]),
        where=where,
        label_mask=joined.get("label_mask"),
    )
