"""The whole pretraining step of MulSupCon on photographs, beside a plain PyTorch loop.

    make bench-step
    python -m benchmarks.train_step --help

Ours is the trainer's compiled step: two views through query and key encoder, the loss (equations
4-5) against a full queue, gradient, SGD, momentum encoder, queue. The peer is the same in PyTorch,
eager and with both networks compiled. Views are fixed uint8 arrays, so reading is not measured;
without augmentation on both sides, and ours once more with SimCLR's, whose crops the input makes.

Before anything is timed both sides take two steps from the same parameters; losses and gradients
must agree. Then each side has its own process and all cores, sides take turns, and a ratio is taken
within its repetition. Memory is the most that was resident in that process, and the same over what
it had before it began; on a GPU what PyTorch had allocated at most and what XLA has planned. The
floor is the counted FLOPs of the step at the rate of a matrix product in the same repetition.

A GPU is used where JAX finds one: bfloat16 and batch 256 then, the peer compiled, with autocast and
channels last. Exits with 1 if the sides do not compute the same, never for a time. Without PyTorch
only our side runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.machine import BUSY, machine
from benchmarks.train_step_problem import ARCHITECTURES, PRECISIONS, Settings
from jaxmlcl.bench import TORCH_MISSING, SideError, aligned, has_torch, median, side, spread

OUR_STEP, AUGMENTED = "jaxmlcl", "jaxmlcl, SimCLR"
PEERS = {"eager": "torch eager", "compiled": "torch compiled"}
# How far the sides may be from each other, relative. Normalisation over a small batch magnifies the
# rounding of gradients: of a ResNet-50 at 96 pixels, PyTorch's two memory layouts give norms that
# differ by 0.8 %.
TOLERANCE = {"first loss": 1e-4, "first gradient, norm": 3e-2, "second loss": 3e-2}
# Images that are compared; more would say nothing new.
COMPARED = 8
Call = Callable[..., Any]


@dataclasses.dataclass
class SideFigures:
    """What was measured of one side; nothing but a note where it did not run."""

    rates: list[float] = dataclasses.field(default_factory=list)
    """Images per second, one per repetition."""
    peak: int = 0
    """Bytes at most."""
    packages: int = 0
    """Bytes of it that were there before the side began."""
    first: float = 0.0
    """Seconds until the first step is done, compiling included."""
    note: str = ""


@dataclasses.dataclass
class StepFigures:
    """What was measured of a step."""

    settings: Settings
    sides: dict[str, SideFigures] = dataclasses.field(default_factory=dict)
    checks: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    flop_per_image: float = 0.0
    """Counted, of loss and gradient."""
    products: list[float] = dataclasses.field(default_factory=list)
    """FLOP per second of a matrix product, one per repetition."""

    def ratios(self, name: str) -> list[float]:
        """Our rate over another side's."""
        pairs = zip(self.sides[OUR_STEP].rates, self.sides[name].rates, strict=True)
        return [ours / theirs for ours, theirs in pairs]

    def parts_of_floor(self, name: str) -> list[float]:
        """The share of the product's rate that a side reaches."""
        pairs = zip(self.sides[name].rates, self.products, strict=True)
        return [rate * self.flop_per_image / product for rate, product in pairs]


def main() -> int:
    """Measure and print; 0 if both sides compute the same."""
    # A GPU is shared with the peer.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    on_gpu = jax.default_backend() == "gpu"
    options = parse(on_gpu)
    here = machine()
    load = os.getloadavg()[0]
    print(f"{here['cpu']}, {here['cores']} cores, {jax.default_backend()}, load {load:.1f}")
    if load > BUSY:
        print("the machine is busy: quote no figure of this run")
    settings = Settings(options.arch, options.batch, options.size, options.queue, options.precision)
    print(settings.title)
    figures = measure(
        settings,
        peers=options.peers,
        augmented=True,
        repetitions=options.repetitions,
        seconds=options.seconds,
        channels_last=options.channels_last,
        here=on_gpu,
        tell=lambda line: print(line, flush=True),
    )
    show(figures)
    if options.json:
        report = {"machine": here, "load": load, **dataclasses.asdict(figures)}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written: {options.json}")
    failed = [name for name, check in figures.checks.items() if not check["ok"]]
    for name in failed:
        print(f"FAIL {name}: {figures.checks[name]}")
    return 1 if failed else 0


def parse(on_gpu: bool) -> argparse.Namespace:
    """The command line; what is usual depends on the device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    usual = Settings(batch=256, precision="bfloat16") if on_gpu else Settings()
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--arch", choices=ARCHITECTURES, default=usual.arch)
    parser.add_argument("--batch", type=int, default=usual.batch, help="images (%(default)s)")
    parser.add_argument("--size", type=int, default=usual.size, help="pixels (%(default)s)")
    parser.add_argument("--queue", type=int, default=usual.queue, help="keys (%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default=usual.precision)
    parser.add_argument("--repetitions", type=int, default=5, help="of all (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn (%(default)s)")
    peers = ["compiled"] if on_gpu else list(PEERS)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=peers, help="forms")
    parser.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=on_gpu,
        help="memory layout of the peer",
    )
    options = parser.parse_args()
    if min(options.batch, options.repetitions) < 1 or options.size < 32:
        parser.error("--batch and --repetitions must be at least 1, --size at least 32")
    if options.queue % options.batch:
        parser.error("--queue must be a multiple of --batch")
    return options


def measure(
    settings: Settings,
    *,
    peers: Sequence[str] = tuple(PEERS),
    augmented: bool = False,
    repetitions: int = 5,
    seconds: float = 5.0,
    channels_last: bool | None = None,
    here: bool = False,
    tell: Callable[[str], object] = str,
) -> StepFigures:
    """Compare the sides, then time them in turns.

    Args:
      settings: the sizes.
      peers: forms of the peer, of PEERS; none run where PyTorch is missing.
      augmented: whether our step is measured with SimCLR's augmentation as well.
      repetitions: turns of each side.
      seconds: of each turn, about.
      channels_last: the peer's layout; None for the usual one of the device.
      here: whether JAX runs in this process, as it must where this process holds a GPU.
      tell: gets a line about what goes on.

    Returns:
      The figures; those of a peer that cannot run are a note.
    """
    figures = StepFigures(settings)
    device = "cuda" if here else "cpu"
    layout = here if channels_last is None else channels_last
    if not has_torch():
        tell(TORCH_MISSING)
        peers = ()
    if peers:
        figures.checks = compare(settings, device, layout, here)
        for name, check in figures.checks.items():
            tell(f"{'ok  ' if check['ok'] else 'FAIL'} {name}: {json.dumps(check)}")
    with contextlib.ExitStack() as stack:
        calls = {OUR_STEP: stack.enter_context(our_side(settings, here))}
        if augmented:
            calls[AUGMENTED] = stack.enter_context(our_side(settings, here, augmented=True))
        for form in peers:
            arguments = (settings, form, device, layout)
            peer = side("benchmarks.train_step_torch", "Peer", *arguments)
            calls[PEERS[form]] = stack.enter_context(peer)
        counts = {}
        for name, call in calls.items():
            figures.sides[name] = SideFigures()
            with noted(figures.sides[name], name, tell):
                counts[name] = begin(figures, name, call, seconds)
        ours = calls[OUR_STEP]
        for repetition in range(repetitions):
            for name, count in counts.items():
                taken = calls[name]("run", count)
                figures.sides[name].rates.append(settings.batch * count / taken)
            figures.products.append(ours("products"))
            tell(f"repetition {repetition + 1} of {repetitions}")
        for name in counts:
            found = figures.sides[name]
            found.peak, found.packages = calls[name]("memory")
    return figures


def begin(figures: StepFigures, name: str, call: Call, seconds: float) -> int:
    """Warm a side up; how many of its steps make a turn."""
    about = call("describe")
    figures.versions["jax" if "flop" in about else "torch"] = about["version"]
    if name == OUR_STEP:
        figures.flop_per_image = about["flop"] / figures.settings.batch
    first = call("run", 1)
    figures.sides[name].first = about.get("compile_seconds", 0.0) + first
    # The second step, since the first may have been compiled, or found its buffers.
    call("run", 1)
    return max(1, round(seconds / call("run", 1)))


def compare(settings: Settings, device: str, channels_last: bool, here: bool) -> dict[str, Any]:
    """Whether two steps of both sides agree, in float32 and from the same parameters."""
    batch = min(settings.batch, COMPARED)
    small = dataclasses.replace(settings, batch=batch, precision="float32")
    with our_side(small, here, exact=True) as ours:
        weights = ours("weights")
        mine = ours("first_steps")
    with side("benchmarks.train_step_torch", "Peer", small, "eager", device, channels_last) as peer:
        theirs = peer("first_steps", *weights)
    pairs = {
        "first loss": (mine["loss"][0], theirs["loss"][0]),
        "first gradient, norm": (mine["gradient_norm"][0], theirs["gradient_norm"][0]),
        "second loss": (mine["loss"][1], theirs["loss"][1]),
    }
    checks = {}
    for name, (found, expected) in pairs.items():
        off = abs(found / expected - 1.0)
        # NaN is no agreement.
        agrees = bool(off <= TOLERANCE[name])
        checks[name] = {"ok": agrees, "jaxmlcl": found, "torch": expected, "off": off}
    return checks


@contextlib.contextmanager
def our_side(
    settings: Settings, here: bool, *, augmented: bool = False, exact: bool = False
) -> Iterator[Call]:
    """Our side in a process of its own, or here."""
    if not here:
        with side("benchmarks.train_step_ours", "Ours", settings, augmented, exact) as call:
            yield call
        return
    from benchmarks.train_step_ours import Ours

    instance = Ours(settings, augmented, exact)
    yield lambda method, *values: getattr(instance, method)(*values)


@contextlib.contextmanager
def noted(found: SideFigures, name: str, tell: Callable[[str], object]) -> Iterator[None]:
    """A peer that cannot run, for want of a compiler or memory, is left out with a line."""
    try:
        yield
    except SideError as error:
        if name not in PEERS.values():
            raise
        found.note = error.reason
        tell(f"{name} is left out: {error.reason}")


def show(figures: StepFigures) -> None:
    """The table, for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in figures.versions.items())
    print(f"\n{versions}; median (least-most)")
    header = (
        "step",
        "images/s",
        "jaxmlcl is so many times as fast",
        "part of the floor",
        "peak MB",
        "of it packages",
        "first step, s",
        "",
    )
    rows = [header]
    for name, found in figures.sides.items():
        if not found.rates:
            continue
        rows.append(
            (
                name,
                spread(found.rates),
                "" if name == OUR_STEP else spread(figures.ratios(name)),
                spread(figures.parts_of_floor(name)),
                f"{found.peak / 1e6:.0f}",
                f"{found.packages / 1e6:.0f}",
                f"{found.first:.1f}",
                "",
            )
        )
    print("\n".join(aligned(rows)))
    floor = [product / figures.flop_per_image for product in figures.products]
    print(
        f"floor: {figures.flop_per_image / 1e9:.4g} GFLOP an image, counted, at "
        f"{spread([product / 1e9 for product in figures.products])} GFLOP/s of a matrix product: "
        f"{spread(floor)} images/s; ours reaches {median(figures.parts_of_floor(OUR_STEP)):.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
