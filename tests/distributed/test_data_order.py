"""The order of the data for any number of hosts, by computation alone."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmlcl.data.pipeline import GlobalOrder, Indices, share

SAMPLES = 2_000_000


def host_blocks(hosts: int, devices: int) -> list[range]:
    """The devices of each host, as the mesh has them."""
    return [range(host * devices, (host + 1) * devices) for host in range(hosts)]


@pytest.mark.parametrize("batch_size", [8192, 10_240])
def test_two_million_samples_over_1024_hosts(batch_size: int) -> None:
    # Neither batch size divides the epoch, so a step holds the end of one and the start of the
    # next. One device a host; every step of the first epoch is looked at.
    order = GlobalOrder(SAMPLES, batch_size, seed=3)
    steps = -(-SAMPLES // batch_size)
    assert SAMPLES % batch_size
    stream = np.concatenate([order[step] for step in range(steps)])
    for hosts in (1, 2, 8, 1024):
        seen = np.zeros(SAMPLES, np.int64)
        counts = np.zeros(hosts, np.int64)
        for step in range(steps):
            position = step * batch_size + np.arange(batch_size)
            # What each host reads: a row of samples, and where these stand in the stream.
            read = share(order[step], hosts).reshape(hosts, -1)
            places = share(position, hosts).reshape(hosts, -1)
            # Together they are the same global batch, in the same order, for any number of hosts.
            whole = np.empty(batch_size, np.int64)
            whole[places.ravel() - step * batch_size] = read.ravel()
            assert (whole == stream[position]).all()
            first_epoch = places < SAMPLES
            np.add.at(seen, read[first_epoch], 1)
            counts += first_epoch.sum(axis=1)
        assert (seen == 1).all(), "each sample once an epoch"
        assert counts.sum() == SAMPLES
        assert counts.max() - counts.min() <= 1, "balanced to one sample"


@pytest.mark.parametrize("devices", [4, 8])
def test_hosts_with_several_devices_are_balanced_to_one_sample_a_device(devices: int) -> None:
    hosts, batch_size = 128, 8192
    order = GlobalOrder(SAMPLES, batch_size, seed=0)
    epoch = 5  # not the first: it begins and ends in the middle of a step
    first, last = epoch * SAMPLES, (epoch + 1) * SAMPLES
    counts = np.zeros(hosts * devices, np.int64)
    seen = np.zeros(SAMPLES, np.int64)
    for step in range(first // batch_size, -(-last // batch_size)):
        position = step * batch_size + np.arange(batch_size)
        here = share((first <= position) & (position < last), hosts * devices)
        read = share(order[step], hosts * devices)
        np.add.at(seen, read[here], 1)
        counts += here.reshape(hosts * devices, -1).sum(axis=1)
    assert (seen == 1).all()
    assert counts.max() - counts.min() <= 1


def test_a_host_reads_its_own_rows_and_no_others() -> None:
    order = GlobalOrder(1000, 64, seed=1)
    whole = Indices(order, 16)[7]["index"]
    for hosts, devices in ((2, 8), (4, 4), (16, 1)):
        parts = [Indices(order, 16, blocks)[7]["index"] for blocks in host_blocks(hosts, devices)]
        assert (np.concatenate(parts) == whole).all()
    # An order in which a host's devices do not stand together.
    apart = Indices(order, 16, (3, 11))[7]["index"]
    assert (apart == whole.reshape(16, -1)[[3, 11]].ravel()).all()


def test_a_step_far_ahead_needs_none_before_it() -> None:
    order = GlobalOrder(SAMPLES, 8192, seed=0)
    step = 1_000_000
    epochs = np.unique((step * 8192 + np.arange(8192)) // SAMPLES)
    assert len(epochs) <= 2
    assert len(np.unique(order[step])) == 8192
