"""What a data set is like: counts, label statistics, duplicates, and what is wrong with it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxmlcl.data.images._source import Stored
from jaxmlcl.data.source import Source
from jaxmlcl.errors import DataError


class _Content(NamedTuple):
    # A digest of each record's inputs (None where they were not read), the labels, which of them
    # are known (None: all), and which features never change.
    digests: list[bytes | None]
    labels: np.ndarray
    known: np.ndarray | None
    constant: list[str]
    images: dict[str, Any] | None = None


def inspect_sources(
    sources: Sequence[tuple[str, Source]], pairs: int = 10, check_images: bool = False
) -> dict[str, Any]:
    """Describe sources that are the splits of one data set, training first.

    Args:
      sources: what each is called, and the source; every record is read once, but image files
        only if they are to be checked.
      pairs: how many pairs of labels to list under "co_occurrences".
      check_images: whether image files are read and decoded, by as many threads as there are cores.

    Returns:
      A document that JSON can hold. "sources": for each its counts; "cardinality", labels per row;
      "density", the share of the known cells that are positive; "label_sets", how many different
      ones; "duplicate_rows", rows whose inputs occur in an earlier row, and "conflicting_rows",
      those among them with other labels; of image files "images": how many are "missing" and, if
      they are checked, "undecodable", and the smallest and largest "sizes". "labels": for each its
      positives in every source. Where labels are unknown, they count as not positive, and
      "unknown_labels" of a source and "unknown" of a label say how many there are. "overlaps": for
      each two sources the rows of the later whose inputs occur in the earlier. "co_occurrences":
      the pairs of labels of the first source with the largest Jaccard index, rows with both / rows
      with either. "problems": sentences.

    Raises:
      DataError: no source, one twice, or sources with different labels or shapes of inputs.

    Example:
      >>> from jaxmlcl.data.source import ArraySource
      >>> train = ArraySource([[1.0, 0], [2, 0], [1, 0]], [[1, 0], [1, 0], [1, 0]], name="train")
      >>> test = ArraySource([[2.0, 0], [3, 4]], [[0, 1], [0, 0]], name="test")
      >>> document = inspect_sources([("train", train), ("test", test)])
      >>> document["overlaps"][0]["rows"]
      1
      >>> for problem in document["problems"]:
      ...     print(problem)
      train: 1 of 3 rows repeat the inputs of an earlier row
      train: 1 of 2 features never change: feature_1
      train: 1 of 2 labels have no positive: label_1
      train: 1 of 2 labels are positive in every row: label_0
      test: 1 of 2 rows have no label
      test: 1 of 2 labels have no positive: label_0
      test: 1 of 2 labels have positives here but none in train: label_1
      test: 1 of 2 rows have inputs that occur in train
    """
    if not sources:
        raise DataError("no source to inspect; name at least one")
    titles = [title for title, _ in sources]
    if len(set(titles)) < len(titles):
        repeated = next(title for title in titles if titles.count(title) > 1)
        raise DataError(f"{repeated}: is given twice; name every split once")
    first = sources[0][1].metadata
    for title, source in sources[1:]:
        if source.metadata.label_names != first.label_names:
            raise DataError(
                f"{title} has other labels than {titles[0]} ({source.metadata.num_labels} and "
                f"{first.num_labels}, or other names); inspect splits of one data set"
            )
        if source.metadata.input_shape != first.input_shape:
            raise DataError(
                f"{title} has inputs of shape {source.metadata.input_shape}, {titles[0]} of "
                f"{first.input_shape}; inspect splits of one data set"
            )
    contents = [
        _read_files(source, check_images) if source.metadata.kind == "encoded" else _read(source)
        for _, source in sources
    ]
    positives = np.stack([content.labels.sum(axis=0, dtype=int) for content in contents], axis=1)
    overlaps = [
        _overlap(titles, contents, earlier, later)
        for later in range(len(sources))
        for earlier in range(later)
    ]
    described = [
        _describe(title, source, content)
        for (title, source), content in zip(sources, contents, strict=True)
    ]
    unknown = np.stack([_unknown(content) for content in contents], axis=1)
    listed: list[dict[str, Any]] = [
        {"label": name, "positives": row.tolist()}
        for name, row in zip(first.label_names, positives, strict=True)
    ]
    if unknown.any():
        for label, row in zip(listed, unknown, strict=True):
            label["unknown"] = row.tolist()
    return {
        "sources": described,
        "labels": listed,
        "overlaps": overlaps,
        "co_occurrences": _co_occurrences(contents[0].labels, first.label_names, pairs),
        "problems": _problems(described, first.label_names, positives, unknown, overlaps),
    }


def _read(source: Source) -> _Content:
    digests: list[bytes | None] = []
    labels = np.empty((len(source), source.metadata.num_labels), np.uint8)
    known = np.ones(labels.shape, bool) if source.metadata.unknown_labels else None
    is_vector = source.metadata.kind == "vector"
    low = high = None
    for row in range(len(source)):
        record = source[row]
        # As float64, so that types do not matter; adding 0 turns -0 into 0.
        inputs = np.asarray(record["inputs"], np.float64) + 0.0
        digests.append(hashlib.blake2b(inputs.tobytes(), digest_size=16).digest())
        labels[row] = record["labels"]
        if known is not None:
            known[row] = record["label_mask"]
        if is_vector:
            low = inputs if low is None else np.minimum(low, inputs)
            high = inputs if high is None else np.maximum(high, inputs)
    constant: list[str] = []
    if low is not None and high is not None:
        names = getattr(source, "feature_names", None)
        columns = np.flatnonzero(low == high).tolist()
        constant = [names[column] if names else f"feature_{column}" for column in columns]
    return _Content(digests, labels, known, constant)


def _read_files(source: Any, check: bool) -> _Content:
    missing = source.missing()
    images: dict[str, Any] = {"missing": len(missing)}
    if source.left_out:
        images["left_out"] = source.left_out
    digests: list[bytes | None] = [None] * len(source)
    if len(missing):
        images["first_missing"] = source.place(int(missing[0]))
    if check:
        verify: Any = getattr(source, "verify", None)
        if verify is not None:
            verify()
        rows = np.setdiff1d(np.arange(len(source)), missing).tolist()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda row: _decoded(source.read(row)), rows, chunksize=16))
        sizes: list[tuple[int, int]] = []
        bad = [row for row, (_, size) in zip(rows, found, strict=True) if size is None]
        for row, (digest, size) in zip(rows, found, strict=True):
            digests[row] = digest
            if size is not None:
                sizes.append(size)
        images["undecodable"] = len(bad)
        if bad:
            images["first_undecodable"] = source.place(bad[0])
        if sizes:
            ordered = sorted(sizes, key=lambda size: size[0] * size[1])
            images["sizes"] = [list(ordered[0]), list(ordered[-1])]
    return _Content(digests, source.labels(), source.label_mask(), [], images)


def _decoded(content: Stored) -> tuple[bytes, tuple[int, int] | None]:
    """A digest of a file's content, and width and height in pixels if all of it can be decoded."""
    from jaxmlcl.data.images.pack import Packing, reduced

    if isinstance(content, np.ndarray):
        pixels = hashlib.blake2b(np.ascontiguousarray(content).data, digest_size=16).digest()
        return pixels, (content.shape[1], content.shape[0])
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        return digest, reduced(content, "", Packing(short_side=None))[1]
    except DataError:
        return digest, None


def _unknown(content: _Content) -> np.ndarray:
    # How many labels are unknown, [L].
    count = np.zeros(content.labels.shape[1], int)
    return count if content.known is None else (~content.known).sum(axis=0, dtype=int)


def _repeats(content: _Content) -> tuple[int, int]:
    # Rows whose inputs occur in an earlier row, and those of them that contradict the first one.
    first: dict[bytes, int] = {}
    conflicts = read = 0
    for row, digest in enumerate(content.digests):
        if digest is None:
            continue
        read += 1
        seen = first.setdefault(digest, row)
        differs = content.labels[seen] != content.labels[row]
        if content.known is not None:
            differs &= content.known[seen] & content.known[row]
        conflicts += bool(differs.any())
    return read - len(first), conflicts


def _describe(title: str, source: Source, content: _Content) -> dict[str, Any]:
    metadata, labels = source.metadata, content.labels
    per_row = labels.sum(axis=1, dtype=int)
    packed = [row.tobytes() for row in np.packbits(labels, axis=1)]
    duplicates, conflicts = _repeats(content)
    unknown = int(_unknown(content).sum())
    return {
        "source": title,
        "name": metadata.name,
        "fingerprint": metadata.fingerprint,
        "kind": metadata.kind,
        "num_rows": len(source),
        "input_shape": list(metadata.input_shape),
        "num_labels": metadata.num_labels,
        "cardinality": float(per_row.mean()),
        "density": float(per_row.sum() / (labels.size - unknown)),
        "labels_per_row": {
            str(count): rows for count, rows in sorted(Counter(per_row.tolist()).items())
        },
        "label_sets": len(set(packed)),
        "unlabelled_rows": int((per_row == 0).sum()),
        "constant_features": content.constant,
        "duplicate_rows": duplicates,
        "conflicting_rows": conflicts,
        **({"unknown_labels": unknown} if unknown else {}),
        **({"images": content.images} if content.images is not None else {}),
    }


def _overlap(
    titles: Sequence[str], contents: Sequence[_Content], earlier: int, later: int
) -> dict[str, Any]:
    known = set(contents[earlier].digests) - {None}
    rows = sum(digest in known for digest in contents[later].digests)
    return {
        "source": titles[later],
        "occurs_in": titles[earlier],
        "rows": rows,
        "of": len(contents[later].digests),
    }


def _co_occurrences(labels: np.ndarray, names: Sequence[str], pairs: int) -> list[dict[str, Any]]:
    both = np.zeros((len(names), len(names)))
    for start in range(0, len(labels), 65536):
        # Counts below 2**24 are exact in float32, whose product is fast.
        block = labels[start : start + 65536].astype(np.float32)
        both += block.T @ block
    positives = np.diag(both)
    a, b = np.triu_indices(len(names), 1)
    together = both[a, b]
    either = positives[a] + positives[b] - together
    jaccard = together / np.maximum(either, 1)
    order = np.lexsort((-together, -jaccard))[:pairs]
    return [
        {
            "labels": [names[a[pair]], names[b[pair]]],
            "rows": int(together[pair]),
            "jaccard": float(jaccard[pair]),
        }
        for pair in order.tolist()
        if together[pair] > 0
    ]


def _problems(
    described: Sequence[dict[str, Any]],
    names: Sequence[str],
    positives: np.ndarray,
    unknown: np.ndarray,
    overlaps: Sequence[dict[str, Any]],
) -> list[str]:
    found: list[str] = []
    first = described[0]["source"]
    for column, one in enumerate(described):
        title, rows = one["source"], one["num_rows"]
        if one["duplicate_rows"]:
            also = f", {one['conflicting_rows']} of them with other labels"
            found.append(
                f"{title}: {one['duplicate_rows']} of {rows} rows repeat the inputs of an earlier "
                "row" + (also if one["conflicting_rows"] else "")
            )
        images = one.get("images", {})
        if images.get("left_out"):
            left_out = f"{images['left_out']} listed images are left out"
            found.append(f"{title}: {left_out}, their files are not there")
        for what, words in (
            ("missing", "files are not there"),
            ("undecodable", "files cannot be decoded"),
        ):
            if images.get(what):
                found.append(
                    f"{title}: {images[what]} of {rows} {words}; the first is "
                    f"{images['first_' + what]}"
                )
        if one["unlabelled_rows"]:
            found.append(f"{title}: {one['unlabelled_rows']} of {rows} rows have no label")
        if one["constant_features"]:
            found.append(
                f"{title}: {len(one['constant_features'])} of {one['input_shape'][0]} features "
                f"never change: {_some(one['constant_features'])}"
            )
        counts, known = positives[:, column], rows - unknown[:, column]
        for wrong, words in (
            (counts == 0, "have no positive"),
            ((counts == known) & (known > 0), "are positive in every row"),
            (known == 0, "are known in no row"),
            ((counts > 0) & (positives[:, 0] == 0), f"have positives here but none in {first}"),
        ):
            if wrong.any():
                listed = _some(
                    [name for name, is_wrong in zip(names, wrong, strict=True) if is_wrong]
                )
                found.append(f"{title}: {wrong.sum()} of {len(names)} labels {words}: {listed}")
        found += [
            f"{title}: {overlap['rows']} of {overlap['of']} rows have inputs that occur in "
            f"{overlap['occurs_in']}"
            for overlap in overlaps
            if overlap["source"] == title and overlap["rows"]
        ]
    return found


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
