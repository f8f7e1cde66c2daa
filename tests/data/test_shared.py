"""Batches through shared memory: the same arrays, segments used again, and none left."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest

from jaxmlcl.data import pipeline
from jaxmlcl.data._shared import Full, Inbox, Outbox, Sent
from jaxmlcl.data.pipeline import GlobalOrder, Loading, Views, batches
from jaxmlcl.errors import DataError


def arrays(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "inputs": generator.integers(0, 255, (3, 5, 7)).astype(np.uint8),
        "rows": generator.integers(0, 9, 3),
        "none": np.zeros((0, 4), np.float32),
    }


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    box = Outbox()
    yield box
    box.close()


def sent(box: Outbox, seed: int) -> Sent:
    found = box.put(arrays(seed))
    assert isinstance(found, Sent)
    return found


def test_arrays_arrive_and_segments_are_used_again(outbox: Outbox) -> None:
    inbox = Inbox()
    first, second = sent(outbox, 0), sent(outbox, 1)
    assert first.segment != second.segment
    for seed, letter in ((1, second), (0, first)):
        found = inbox.take(letter)
        for name, array in arrays(seed).items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
            assert found[name].flags.writeable
    # Both are free now; what was taken stays as it is.
    kept = inbox.take(sent(outbox, 2))
    again = [sent(outbox, seed).segment for seed in (3, 4)]
    assert set(again) == {first.segment, second.segment}
    np.testing.assert_array_equal(kept["inputs"], arrays(2)["inputs"])
    larger = outbox.put({"inputs": np.zeros(100_000)})
    assert isinstance(larger, Sent)
    assert larger.segment not in again
    inbox.close()


def test_no_segment_is_left() -> None:
    box = Outbox()
    names = [sent(box, seed).segment for seed in range(3)]
    box.close()
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    assert isinstance(box.put(arrays(0)), Full)


def test_no_room_is_told(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert outbox.put(arrays(0)) == Full(64 + 128 + 64)
    steps = Views(
        lambda row, epoch, into: (np.zeros(3, np.uint8), row),
        lambda rows: {"ids": rows},
        GlobalOrder(4, 2, 0),
    )
    monkeypatch.setattr(pipeline, "_outbox", outbox)
    with pytest.raises(DataError, match=r"no room for a batch .*--shm-size.*--loading.workers 0"):
        next(batches(steps, 0, Loading(threads=0)))
