"""ConLE beside PyLDL's, in one run: time of a full-batch epoch, and time to measures as good.

    python -m benchmarks.enhancement
    python -m benchmarks.enhancement --set distributions/Yeast_spo5.mat --peer-epochs 1000
    python -m benchmarks.enhancement --rows 200000 --method lp

The peer is PyLDL (in the extra `benchmark`) on PyTorch, with its own defaults: 1000 full-batch
epochs, SGD at 1e-3, and as many threads as suit it. At equal epochs both sides take the same
network, objective and optimiser; repetitions alternate and each ratio is taken within its
repetition. To equal measures ours is `ConLE()` as it stands, one seed, compilation included, and
the peer's whole training. With fewer --peer-epochs its time is scaled to 1000 and its measures are
those of the fewer epochs.

--rows times one enhancer of ours on random data of Yeast_alpha's shape and tells its peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.machine import BUSY, machine

INSTALL = "PyLDL is not installed, so there is no peer: pip install 'jaxmlcl[benchmark]'"
SHOWN = ("kl_recovered_true", "chebyshev", "clark", "canberra", "cosine", "intersection")


def main() -> int:
    """Print what was asked for."""
    options = parse()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    here, load = machine(), os.getloadavg()[0]
    print(f"{here['cpu']}, {here['cores']} cores, load {load:.1f}")
    if load > BUSY:
        print("the machine is busy: times are of no use, ratios of some")
    if options.rows:
        large(options.rows, options.method)
        return 0
    if importlib.util.find_spec("pyldl") is None:
        print(INSTALL)
        return 0
    features, labels, true = data(options.set, options.root)
    (n, q), num_labels = features.shape, labels.shape[1]
    print(f"{options.set}: {n} rows, {q} features, {num_labels} labels")
    print(f"PyLDL with {settle_threads(features, labels)} thread(s), which is faster here")
    equal_epochs(features, labels, options.epochs, options.repetitions)
    equal_measures(features, labels, true, options.peer_epochs)
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--set", default="distributions/SJAFFE.mat", help="a set with distributions"
    )
    parser.add_argument("--root", default=None, help="folder of the data (JAXMLCL_DATA)")
    parser.add_argument("--epochs", type=int, default=20, help="of a repetition (default: 20)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--peer-epochs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=0, help="time one enhancer on so many rows")
    parser.add_argument("--method", default="conle", help="of --rows")
    return parser.parse_args()


def data(uri: str, root: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features z-scored, labels and true distributions."""
    from jaxmlcl.data.distributions import open_distributions
    from jaxmlcl.enhancement import standardize

    opened = open_distributions(uri, root=root)
    return standardize(opened.features), opened.labels.astype(np.float64), opened.distributions


def peer(features: np.ndarray, labels: np.ndarray, epochs: int) -> tuple[float, np.ndarray]:
    """Seconds of PyLDL's training, and what it recovers."""
    from pyldl.algorithms import ConLE as Peer

    enhancer = Peer(random_state=0)
    started = time.perf_counter()
    enhancer.fit(features.astype(np.float32), labels.astype(np.float32), epochs=epochs)
    recovered = np.asarray(enhancer.transform(), np.float64)
    return time.perf_counter() - started, recovered / recovered.sum(1, keepdims=True)


def settle_threads(features: np.ndarray, labels: np.ndarray) -> int:
    """Let PyTorch take one thread or all cores, whichever its epochs are faster with."""
    if os.environ["KERAS_BACKEND"] != "torch":
        return os.cpu_count() or 1
    import torch

    times = {}
    peer(features, labels, 1)
    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        times[threads] = min(peer(features, labels, 3)[0] for _ in range(3))
    best = min(times, key=lambda threads: times[threads])
    torch.set_num_threads(best)
    return best


def alike(epochs: int) -> Any:
    """Ours with the peer's network, objective and optimiser."""
    from jaxmlcl.enhancement import ConLE

    return ConLE(
        output="softmax_twice",
        stop="epochs",
        calibrate=False,
        epochs=epochs,
        batch_size=None,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=1e-3,
        hidden=64,
        width=64,
        lambda_1=1e-3,
        lambda_2=1e-3,
        denominator="pyldl",
        reduction="sum",
    )


def equal_epochs(features: np.ndarray, labels: np.ndarray, epochs: int, repetitions: int) -> None:
    """Both sides, `epochs` full-batch epochs, alternating."""
    ours = alike(epochs)
    ours.fit(features, labels)  # compiles
    peer(features, labels, 1)
    times: list[tuple[float, float]] = []
    for _ in range(repetitions):
        started = time.perf_counter()
        ours.fit(features, labels)
        mine = time.perf_counter() - started
        times.append((mine, peer(features, labels, epochs)[0]))
    mine, other = (statistics.median(pair[i] for pair in times) / epochs for i in (0, 1))
    ratio = statistics.median(b / a for a, b in times)
    print(
        f"full-batch epoch: ours {1e3 * mine:.1f} ms, PyLDL {1e3 * other:.1f} ms, {ratio:.1f} "
        f"times (median of {repetitions} x {epochs} epochs)"
    )


def equal_measures(features: np.ndarray, labels: np.ndarray, true: np.ndarray, epochs: int) -> None:
    """The peer's whole training, and ours as it stands, with compilation."""
    import jax

    from jaxmlcl.enhancement import ConLE
    from jaxmlcl.evaluation import distribution_measures

    seconds, recovered = peer(features, labels, epochs)
    whole = seconds * 1000 / epochs
    told = "" if epochs == 1000 else f" (scaled from {epochs} epochs)"
    jax.clear_caches()
    started = time.perf_counter()
    found = ConLE().fit_transform(features, labels)
    cold = time.perf_counter() - started
    started = time.perf_counter()
    ConLE(random_state=1).fit_transform(features, labels)
    warm = time.perf_counter() - started
    for name, one in (("PyLDL", recovered), ("ours", found)):
        measures = distribution_measures(one, true)
        print(f"{name:6}" + "  ".join(f"{key} {measures[key]:.4f}" for key in SHOWN))
    print(
        f"whole training: ours {cold:.1f} s with compilation, {warm:.1f} s a further seed; PyLDL "
        f"{whole:.1f} s{told}; {whole / cold:.1f} and {whole / warm:.1f} times"
    )


def large(rows: int, method: str) -> None:
    """Seconds and peak memory of one enhancer on random data."""
    from jaxmlcl.enhancement import ENHANCERS

    random = np.random.default_rng(0)
    labels = (random.random((rows, 18)) < 0.5).astype(np.float64)
    features = labels @ random.normal(size=(18, 24)) + random.normal(size=(rows, 24))
    started = time.perf_counter()
    found = ENHANCERS[method]().fit_transform(features, labels)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert found.shape == labels.shape
    print(f"{method}, {rows} rows: {seconds:.0f} s, {peak:.1f} GiB at the peak")


if __name__ == "__main__":
    raise SystemExit(main())
