"""A program for several processes: the global batches they build, against the order itself.

launch/local.sh 2 (with JAXMLCL="python tests/distributed/batches.py")
"""

from __future__ import annotations

import sys

import jax
import numpy as np

from jaxmlcl.cli.processes import joined, take
from jaxmlcl.data.pipeline import GlobalOrder, Indices, Loading, Records, Views, batches
from jaxmlcl.data.source import ArraySource
from jaxmlcl.layout import deal
from jaxmlcl.sharding import MeshSpec, own_blocks, place_rows, replicated


class Watched:
    """A source that remembers which records were read."""

    def __init__(self, source: ArraySource) -> None:
        self.source, self.metadata, self.read = source, source.metadata, set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        self.read.add(index)
        return self.source[index]


def reader(row: int, epoch: int, into: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Two views of a row, as the reader of photographs gives them."""
    into = np.empty((2, 2), np.uint8) if into is None else into
    into[...] = [[row, epoch], [epoch, row]]
    return into, row


def main() -> None:
    """Forty steps of a source of 100 rows, whose epochs end within steps."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(100, 3)).astype(np.float32)
    source = Watched(ArraySource(inputs, generator.integers(0, 2, (100, 5)), name="x"))
    with joined(take(sys.argv[1:])[0]):
        mesh = MeshSpec().build()
        order = GlobalOrder(100, 24 if mesh.size == 4 else 32, seed=4)
        whole = jax.jit(lambda batch: batch, out_shardings=replicated(mesh))
        records = batches(
            Records(source, order, mesh.size, own_blocks(mesh)), 0, Loading(threads=3)
        )
        indices = batches(Indices(order, mesh.size, own_blocks(mesh)), 0)
        own = own_blocks(mesh)
        labels = source.source.arrays()

        def of_rows(rows: np.ndarray) -> dict[str, np.ndarray]:
            return {name: labels[name][rows] for name in ("labels", "ids")}

        photographs = batches(Views(reader, of_rows, order, mesh.size, own), 0, Loading(workers=2))
        direct = Records(source, order, mesh.size, own_blocks(mesh))
        blocks = list(own_blocks(mesh) or range(mesh.size))
        for step in range(40):
            rows = next(records)
            share = order.batch_size // jax.process_count()
            assert len(rows["ids"]) == share
            found = jax.device_get(whole(place_rows(rows, mesh)))
            index = jax.device_get(whole(place_rows(next(indices), mesh)))["index"]
            stream = deal(order[step], mesh.size)
            assert (index == stream).all()
            assert (found["ids"] == stream).all()
            for name in ("inputs", "labels"):
                there = np.stack([source.source[int(i)][name] for i in stream])
                assert (found[name] == there).all()
            seen = jax.device_get(whole(place_rows(next(photographs), mesh)))
            epochs = deal(order.epochs(step), mesh.size)
            first, second = np.stack([stream, epochs], 1), np.stack([epochs, stream], 1)
            assert (seen["inputs"] == np.stack([first, second], 1)).all()
            assert (seen["ids"] == stream).all()
            assert (seen["labels"] == found["labels"]).all()
        records.close()
        photographs.close()
        for step in range(40):
            # No row is read that belongs to another process's devices.
            source.read.clear()
            assert len(direct[step]["ids"]) == order.batch_size // jax.process_count()
            own = order[step].reshape(-1, mesh.size)[:, blocks]
            assert source.read == set(own.ravel().tolist())
        print("40 steps are the same")


if __name__ == "__main__":
    main()
