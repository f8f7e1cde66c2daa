"""The order of samples: each once per epoch, a function of (seed, epoch), for any reader."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from typing import Any

import numpy as np
import pytest

from jaxmlcl.data.pipeline import GlobalOrder, Indices, Loading, Records, batches
from jaxmlcl.data.source import ArraySource, SourceMetadata


def stream(order: GlobalOrder, number: int) -> np.ndarray:
    """The first samples of the endless sequence."""
    count = -(-number // order.batch_size)
    return np.concatenate([order[step] for step in range(count)])[:number]


@pytest.mark.parametrize(("rows", "size"), [(20, 5), (23, 5), (7, 7), (1, 1), (5, 12), (3, 64)])
def test_every_sample_once_per_epoch(rows: int, size: int) -> None:
    order = GlobalOrder(rows, size, seed=4)
    epochs = stream(order, 6 * rows).reshape(6, rows)
    for epoch in epochs:
        assert sorted(epoch) == list(range(rows))
    assert order[3].shape == (size,)
    assert order[3].dtype == np.int32


def test_epochs_and_seeds_differ_and_nothing_else_matters() -> None:
    epochs = stream(GlobalOrder(50, 5, 0), 1000).reshape(20, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    # Neither the batch size nor what was read before changes the order.
    for size in (1, 7, 50, 64, 1000):
        np.testing.assert_array_equal(stream(GlobalOrder(50, size, 0), 1000), epochs.ravel())
    other = stream(GlobalOrder(50, 5, 1), 1000).reshape(20, 50)
    # The key is the pair: seed 1 in epoch 0 is not seed 0 in epoch 1.
    assert not {tuple(epoch) for epoch in epochs} & {tuple(epoch) for epoch in other}
    assert stream(GlobalOrder(50, 5, 2**32 - 1), 50).tolist() != epochs[0].tolist()


def test_exact_order() -> None:
    # Pinned: a run that is continued by a later version must go on with the same samples.
    np.testing.assert_array_equal(GlobalOrder(10, 10, seed=3)[0], [6, 8, 4, 1, 3, 5, 9, 7, 0, 2])
    np.testing.assert_array_equal(GlobalOrder(10, 4, seed=3)[1_000_001], [9, 3, 8, 0])


def test_every_place_is_equally_likely() -> None:
    rows, epochs = 16, 2000
    drawn = stream(GlobalOrder(rows, rows, 9), rows * epochs).reshape(epochs, rows)
    counts = np.stack([(drawn == sample).sum(0) for sample in range(rows)])
    expected = epochs / rows
    # Chi-square with 15 x 15 degrees of freedom: mean 225, deviation 21.
    assert ((counts - expected) ** 2 / expected).sum() < 225 + 5 * 21


def test_steps_can_be_read_in_any_order() -> None:
    forward = GlobalOrder(23, 5, 6)
    expected = [forward[step] for step in range(60)]
    backward = GlobalOrder(23, 5, 6)
    for step in reversed(range(60)):
        np.testing.assert_array_equal(backward[step], expected[step])
    far = GlobalOrder(23, 5, 6)[2**40]
    assert far.min() >= 0
    assert far.max() < 23


def source(rows: int = 23) -> ArraySource:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 3)).astype(np.float32)
    return ArraySource(x, generator.integers(0, 2, (rows, 4)), name="rows")


@pytest.mark.parametrize("start", [0, 1, 17, 1_000_003])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_iteration_is_random_access_from_any_start(start: int, threads: int) -> None:
    steps = Indices(GlobalOrder(23, 5, 6))
    found = list(itertools.islice(batches(steps, start, Loading(threads=threads)), 30))
    for offset, batch in enumerate(found):
        np.testing.assert_array_equal(batch["index"], steps[start + offset]["index"])


class Slow:
    """A source whose even records take long, so that threads overtake each other."""

    metadata = SourceMetadata("slow", ("a",), (2,), "float32", "vector", "0" * 64)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: Any) -> dict[str, Any]:
        time.sleep(0.004 if index % 2 == 0 else 0.0)
        labels = np.array([index % 2], np.uint8)
        return {"inputs": np.full(2, index, np.float32), "labels": labels, "id": 100 + index}


def test_threads_that_overtake_each_other_keep_the_order() -> None:
    order = GlobalOrder(12, 2, 1)
    found = list(
        itertools.islice(batches(Records(Slow(), order), 3, Loading(threads=8, ahead=16)), 24)
    )
    for offset, batch in enumerate(found):
        rows = order[3 + offset]
        np.testing.assert_array_equal(batch["ids"], rows + 100)
        np.testing.assert_array_equal(batch["inputs"], np.stack([rows, rows], 1))
        np.testing.assert_array_equal(batch["labels"], rows[:, None] % 2)
        assert {name: array.dtype.name for name, array in batch.items()} == {
            "inputs": "float32",
            "labels": "uint8",
            "ids": "int32",
        }


def test_sources_in_memory_need_no_workers() -> None:
    iterator = batches(Records(source(), GlobalOrder(23, 5, 6)), 0, Loading(workers=3))
    next(iterator)
    assert not multiprocessing.active_children()
    iterator.close()


def test_records_are_what_indices_point_at() -> None:
    rows, order = source(), GlobalOrder(23, 8, 2)
    records, indices, arrays = Records(rows, order), Indices(order), rows.arrays()
    assert len(records) == len(indices) == 2**62
    for step in (0, 1, 2, 9, 400):
        index = indices[step]["index"]
        for name, array in records[step].items():
            np.testing.assert_array_equal(array, arrays[name][index])


def test_an_error_in_a_record_reaches_the_reader() -> None:
    class Broken(Slow):
        def __getitem__(self, index: Any) -> dict[str, Any]:
            if index == 5:
                raise OSError("record 5 cannot be read")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="record 5 cannot be read"):
        list(itertools.islice(batches(Records(Broken(), GlobalOrder(12, 2, 1)), 0), 12))


def test_iteration_can_be_left_early() -> None:
    iterator = batches(Records(Slow(), GlobalOrder(12, 2, 1)), 0, Loading(threads=4, ahead=64))
    next(iterator)
    iterator.close()
    with pytest.raises(StopIteration):
        next(iterator)
