"""Convolutions as products of patches and as XLA has them, layer by layer and in whole encoders.

    make bench-step
    python -m benchmarks.convolution --help

`jaxmlcl.models.convolution.convolve` chooses between the two by shape, on CPUs. For every
convolution of two encoders this prints the milliseconds of value and gradient of both forms, which
it chooses, and where the other is faster; then the gradient of the whole encoder by `convolve` and
by XLA's form alone. Forms take turns, and a ratio is taken within its turn. The first convolution
has no gradient in its input. Exits with 1 if values or gradients differ, never for a time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import BUSY, machine
from jaxmlcl.bench import aligned, median, spread
from jaxmlcl.models import ARCHITECTURES, ResNet, convolution

# Of values and gradients, to the largest entry: of one layer, and of a whole encoder, whose
# normalisations divide by what is left after a mean was taken off.
TOLERANCE, TOLERANCE_OF_ENCODERS = 1e-4, 1e-2
# A form is called faster if it takes less than this share of the other's time.
CLEARLY = 0.95
# Seconds of a sample.
SAMPLE = 0.1


@dataclasses.dataclass(frozen=True)
class Subject:
    """An encoder and its input."""

    name: str
    encoder: ResNet
    size: int
    batch: int


class Layer(NamedTuple):
    """Shapes of a convolution."""

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int

    @property
    def title(self) -> str:
        """One line for a person."""
        _, height, width, channels = self.images
        size, features = self.kernel[0], self.kernel[-1]
        by = f" / {self.stride}" if self.stride > 1 else ""
        return f"{height} x {width} x {channels}, {size} x {size}{by}, {features}"

    @property
    def first(self) -> bool:
        """Whether its input is the image itself."""
        return self.images[-1] == 3

    @property
    def flop(self) -> float:
        """Of value and gradients."""
        size, _, channels, features = self.kernel
        height, width = (-(-n // self.stride) for n in self.images[1:3])
        once = 2.0 * self.images[0] * height * width * size**2 * channels * features
        return once * (2 if self.first else 3)


def main() -> int:
    """Measure and print; 0 if the forms agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolution", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--repetitions", type=int, default=5, help="of all (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny encoders, to see that it runs")
    options = parser.parse_args()
    here, load = machine(), os.getloadavg()[0]
    print(f"{here['cpu']}, {here['cores']} cores, {jax.default_backend()}, load {load:.1f}")
    if load > BUSY:
        print("the machine is busy: quote no figure of this run")
    report: dict[str, Any] = {"machine": here, "load": load, "jax": jax.__version__}
    wrong: list[str] = []
    for subject in subjects(options.quick):
        report[subject.name] = bench(subject, options.repetitions, wrong)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written: {options.json}")
    for line in wrong:
        print(f"FAIL {line}")
    return 1 if wrong else 0


def subjects(quick: bool) -> list[Subject]:
    """What is measured."""
    if quick:
        basic, bottleneck = ResNet((1, 1), channels=4), ResNet((1,), 4, "bottleneck")
        return [Subject("basic", basic, 32, 2), Subject("bottleneck", bottleneck, 32, 2)]
    half = dataclasses.replace(ARCHITECTURES["resnet18"], channels=32)
    return [
        Subject("ResNet-18, half width", half, 64, 64),
        Subject("ResNet-50", ARCHITECTURES["resnet50"], 224, 8),
    ]


def bench(subject: Subject, repetitions: int, wrong: list[str]) -> dict[str, Any]:
    """The tables of one encoder; what disagrees is added to `wrong`."""
    print(f"\n{subject.name}, {subject.size} px, batch {subject.batch}; median (least-most)")
    header = ("input, kernel, outputs", "times", "GFLOP", "patches ms", "XLA ms", "XLA / patches")
    rows: list[tuple[str, ...]] = [(*header, "takes", "")]
    layers = {}
    for layer, times in layers_of(subject).items():
        patches, xla = layer_calls(layer)
        check(f"{subject.name}: {layer.title}", patches(), xla(), TOLERANCE, wrong)
        seconds = in_turns({"patches": patches, "XLA": xla}, repetitions)
        ratios = [b / a for a, b in zip(seconds["patches"], seconds["XLA"], strict=True)]
        chosen = convolution.by_patches(*layer)
        # How long the other form takes, as a multiple of the chosen one.
        other = median(ratios) if chosen else 1 / median(ratios)
        takes, remark = "patches" if chosen else "XLA", ""
        if other < CLEARLY:
            remark = f"the other takes {other:.2f} of the time"
        milliseconds = [spread([1e3 * x for x in found]) for found in seconds.values()]
        gflop = f"{layer.flop / 1e9:.3g}"
        rows.append((layer.title, str(times), gflop, *milliseconds, spread(ratios), takes, remark))
        layers[layer.title] = {
            "times": times,
            "gflop": layer.flop / 1e9,
            "seconds": seconds,
            "takes": takes,
            "other_faster": other < CLEARLY,
        }
    print("\n".join(aligned(rows)))
    whole = whole_calls(subject)
    check(
        f"{subject.name}: gradient of the encoder",
        whole["convolve"](),
        whole["XLA"](),
        TOLERANCE_OF_ENCODERS,
        wrong,
    )
    seconds = in_turns(whole, repetitions)
    ratios = [b / a for a, b in zip(seconds["convolve"], seconds["XLA"], strict=True)]
    print(
        f"gradient of the whole encoder: convolve {spread(seconds['convolve'])} s, "
        f"XLA {spread(seconds['XLA'])} s, XLA / convolve {spread(ratios)}"
    )
    return {"layers": layers, "encoder": {"seconds": seconds, "ratios": ratios}}


def layers_of(subject: Subject) -> Counter[Layer]:
    """The convolutions of an encoder, and how often it has each."""
    found: Counter[Layer] = Counter()
    original = convolution.convolve

    def watched(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
        found[Layer(x.shape, kernel.shape, stride)] += 1
        return original(x, kernel, stride)

    with mock.patch.object(convolution, "convolve", watched):
        module = subject.encoder.build(jnp.float32)
        jax.eval_shape(lambda: module.init(jax.random.key(0), images_of(subject), False))
    return found


def layer_calls(layer: Layer) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Value and gradients by patches and by XLA."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=layer.images), jnp.float32)
    scale = 1.0 / np.sqrt(np.prod(layer.kernel[:3]))
    kernel = jnp.asarray(scale * generator.normal(size=layer.kernel), jnp.float32)
    shape = jax.eval_shape(lambda: convolution.of_xla(x, kernel, layer.stride)).shape
    slope = jnp.asarray(generator.normal(size=shape), jnp.float32)

    def call(form: Callable[..., jax.Array]) -> Callable[[], Any]:
        @jax.jit
        def value_and_gradient(x: jax.Array, kernel: jax.Array, slope: jax.Array) -> Any:
            if layer.first:
                y, pull = jax.vjp(lambda kernel: form(x, kernel, layer.stride), kernel)
            else:
                y, pull = jax.vjp(lambda x, kernel: form(x, kernel, layer.stride), x, kernel)
            return y, pull(slope)

        return lambda: value_and_gradient(x, kernel, slope)

    return call(convolution.of_patches), call(convolution.of_xla)


def whole_calls(subject: Subject) -> dict[str, Callable[[], Any]]:
    """The gradient of an encoder in training, by `convolve` and by XLA's convolutions."""
    module = subject.encoder.build(jnp.float32)
    x = images_of(subject)
    variables = jax.jit(lambda: module.init(jax.random.key(0), x[:1], False))()

    def compiled() -> Callable[[], Any]:
        def loss(params: Any) -> jax.Array:
            given = {**variables, "params": params}
            y, _ = module.apply(given, x, True, mutable=["batch_stats"])
            return (y**2).mean()

        step = jax.jit(jax.value_and_grad(loss)).lower(variables["params"]).compile()
        return lambda: step(variables["params"])

    calls = {"convolve": compiled()}
    with plain():
        calls["XLA"] = compiled()
    return calls


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """What is traced here has XLA's convolutions only."""
    with mock.patch.object(convolution, "by_patches", return_value=False):
        yield


def images_of(subject: Subject) -> jax.Array:
    """Normal numbers in the place of images."""
    shape = (subject.batch, subject.size, subject.size, 3)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def check(name: str, found: Any, expected: Any, tolerance: float, wrong: list[str]) -> None:
    """Add a line to `wrong` if arrays differ."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    worst = 0.0
    for a, b in pairs:
        scale = float(jnp.abs(b).max())
        worst = max(worst, float(jnp.abs(a - b).max()) / (scale or 1.0))
    # NaN is no agreement.
    if not worst <= tolerance:
        wrong.append(f"{name}: the forms differ by {worst:.1e}, above {tolerance:g}")


def in_turns(calls: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each call, one per repetition; all have been called before."""

    def run(call: Callable[[], Any], count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            result = call()
        jax.block_until_ready(result)
        return (time.perf_counter() - started) / count

    counts = {name: max(1, int(SAMPLE / run(call, 1))) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            seconds[name].append(run(call, counts[name]))
    return seconds


if __name__ == "__main__":
    sys.exit(main())
