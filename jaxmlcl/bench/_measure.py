"""Time and memory of the loss beside its peers, each taking its turn in every repetition."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxmlcl.bench._forms import JAX_FORMS, OURS, counted_bytes, forms_of
from jaxmlcl.bench._problem import LossProblem
from jaxmlcl.bench._process import SideError, available_memory, side
from jaxmlcl.errors import UserError

TORCH_MISSING = (
    'PyTorch is not installed, so this peer is left out: pip install "jaxmlcl[benchmark]"'
)
# The two products of a walk, and exponentials of [B, K] scores: in an array in memory, or chunk by
# chunk in the cache.
FLOOR_TERMS = ("scores", "weighted sum", "exponentials", "exponentials in cache")
# How far a form may be from ours: of the value, and of the largest entry of the gradient.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 5e-2}
# Left for everything else on the machine.
_MARGIN = 1 << 29
# A sample of shorter calls is many of them.
_SHORTEST_SAMPLE = 5e-3
Call = Callable[..., Any]


@dataclasses.dataclass
class FormFigures:
    """What was measured of one form; a list is empty, or a figure None, where there is none."""

    name: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of value and gradient, one per repetition."""
    ratios: list[float] = dataclasses.field(default_factory=list)
    """To ours in the same repetition."""
    temporaries: int | None = None
    """Bytes that XLA plans beside inputs and outputs, on each device."""
    peak: int | None = None
    """Bytes over the inputs that were resident at most, measured in a process of its own."""
    counted: int | None = None
    """Bytes that it would need at least, where it was not run."""
    note: str = ""
    """Why it was not run."""


@dataclasses.dataclass
class LossFigures:
    """What was measured of one problem."""

    problem: LossProblem
    versions: dict[str, Any]
    forms: list[FormFigures]
    floor: dict[str, list[float]]
    """Seconds of the floor's terms, one per repetition, as often as the problem needs them."""
    deviations: dict[str, tuple[float, float]]
    """Of a form from ours: relative of the value, and of the gradient to its largest entry."""

    def floors(self, exponentials: str = "exponentials") -> list[float]:
        """Seconds of the floor, one per repetition: the products and one kind of exponentials."""
        terms = [self.floor.get(term, []) for term in (*FLOOR_TERMS[:2], exponentials)]
        return [sum(parts) for parts in zip(*terms, strict=True)]

    def floor_ratios(self, exponentials: str = "exponentials") -> list[float]:
        """Ours as multiples of that floor in the same repetition."""
        ours = next(form.seconds for form in self.forms if form.name == OURS)
        pairs = zip(ours, self.floors(exponentials), strict=False)
        return [mine / least for mine, least in pairs]

    @property
    def disagreements(self) -> list[str]:
        """Forms that do not compute what ours does, with how far they are off."""
        bound = TOLERANCE[self.problem.dtype]
        return [
            f"{self.problem.title}: {name} and {OURS} differ by {value:.1e} (value) and "
            f"{gradient:.1e} (gradient), above {bound:g}"
            for name, (value, gradient) in self.deviations.items()
            # Written so that NaN is a disagreement.
            if not (value <= bound and gradient <= bound)
        ]


def bench_loss(
    problem: LossProblem,
    *,
    torch: bool = False,
    repetitions: int = 7,
    seconds: float = 60.0,
    run: Sequence[str] | None = None,
    resident: bool = True,
    floor: bool = True,
    here: bool = False,
    tell: Callable[[str], object] = str,
) -> LossFigures:
    """Measure value and gradient of the loss in every form.

    All forms in JAX share a process, each in PyTorch has its own. They take turns, so that noise
    hits all alike. A form that does not fit into the memory that is left is counted, not run.

    Args:
      problem: what is computed.
      torch: whether PyTorch's forms are asked for; where it is missing `tell` gets TORCH_MISSING.
      repetitions: turns of every form, at most.
      seconds: what the turns of one form may take together; slower ones get fewer, at least one.
      run: names of the forms that are run, the others being counted; None for all.
      resident: whether resident memory is measured, in one more process per form.
      floor: whether the floor is measured; it is on one device only.
      here: whether JAX runs in this process, as it must where this process holds the accelerator.
      tell: gets a line about what goes on.

    Returns:
      The figures.

    Raises:
      UserError: ours does not fit, or the strategy not the devices.
    """
    with contextlib.ExitStack() as stack:
        jax_side = stack.enter_context(_jax_side(problem, here))
        about = jax_side("describe")
        if torch and not has_torch():
            tell(TORCH_MISSING)
            torch = False
        forms = [FormFigures(name) for name in forms_of(problem, torch=torch)]
        _check_inputs(problem, jax_side("available"))
        figures = LossFigures(problem, {"jax": about}, forms, {}, {})
        sides: dict[str, Call] = {}
        opened = False
        for form in forms:
            skip = run is not None and form.name not in run
            if form.name in JAX_FORMS:
                if not opened:
                    jax_side("open", problem)
                    opened = True
                form.temporaries = jax_side("compile", form.name)
                _count(form, form.temporaries or 0, jax_side("available"), skip)
                if form.counted is None:
                    sides[form.name] = jax_side
                else:
                    jax_side("forget", form.name)
                continue
            needed = counted_bytes(form.name, problem)
            _count(form, needed, jax_side("available"), skip, problem.input_bytes)
            if form.counted is None:
                with _noted(form):
                    call = stack.enter_context(_torch_side(form.name, about["backend"] != "cpu"))
                    figures.versions["torch"] = call("describe")
                    call("open", problem)
                    sides[form.name] = call
        counts = _check(figures, sides, seconds, repetitions, tell)
        terms = FLOOR_TERMS if floor and problem.strategy == "single" else ()
        _take_turns(figures, sides, counts, terms, jax_side, tell)
    if resident and about["backend"] == "cpu" and problem.strategy == "single":
        for form in forms:
            if form.seconds:
                with _noted(form), _one_side(form.name, problem) as call:
                    tell(f"memory of {form.name}")
                    call("open", problem)
                    form.peak = call("peak", form.name)
    return figures


def resident_peaks(form: str, problems: Sequence[LossProblem]) -> list[int | None]:
    """Bytes over the inputs that a form needs at most for each problem, in one process.

    None for a problem whose counted bytes are more than is left.
    """
    peaks: list[int | None] = []
    with _one_side(form, problems[0]) as call:
        for problem in problems:
            available = available_memory()
            needed = problem.input_bytes + _MARGIN
            if form not in JAX_FORMS:
                needed += counted_bytes(form, problem)
            if available is not None and needed > available:
                peaks.append(None)
                continue
            call("open", problem)
            peaks.append(call("peak", form))
    return peaks


def _check(
    figures: LossFigures,
    sides: dict[str, Call],
    budget: float,
    repetitions: int,
    tell: Callable[[str], object],
) -> dict[str, tuple[int, int]]:
    """Compare all answers with ours; for each form the number of turns and of calls in a turn."""
    counts, expected = {}, None
    for form in figures.forms:
        if form.name not in sides:
            continue
        with _noted(form):
            tell(f"checking {form.name}")
            call = sides[form.name]
            started = time.perf_counter()
            answer = call("answer", form.name)
            once = time.perf_counter() - started
            if expected is None:
                expected = answer
            else:
                figures.deviations[form.name] = _deviation(answer, expected)
            # The first call has warmed up, which counts only where calls are short.
            if once < budget / 4:
                once = call("run", form.name, 1)
            calls = max(1, math.ceil(_SHORTEST_SAMPLE / once))
            turns = max(1, min(repetitions, int(budget / (calls * once))))
            counts[form.name] = (turns, calls)
    return counts


def _deviation(
    answer: tuple[float, list[np.ndarray]], expected: tuple[float, list[np.ndarray]]
) -> tuple[float, float]:
    def off(found: Any, right: Any) -> float:
        scale = float(np.abs(right).max())
        return float(np.abs(found - right).max()) / (scale or 1.0)

    pairs = zip(answer[1], expected[1], strict=True)
    return off(answer[0], expected[0]), max(off(found, right) for found, right in pairs)


def _take_turns(
    figures: LossFigures,
    sides: dict[str, Call],
    counts: dict[str, tuple[int, int]],
    terms: Sequence[str],
    jax_side: Call,
    tell: Callable[[str], object],
) -> None:
    scores, sums, exponentials = figures.problem.walks
    walks = dict(zip(FLOOR_TERMS, (scores, sums, exponentials, exponentials), strict=True))
    figures.floor = {term: [] for term in terms}
    # Finds the chunks; the first turn would pay for it.
    for term in terms:
        jax_side("floor", term)
    most = max((turns for turns, _ in counts.values()), default=0)
    for turn in range(most):
        tell(f"repetition {turn + 1} of {most}")
        ours = 0.0
        for form in figures.forms:
            turns, calls = counts.get(form.name, (0, 0))
            if turn >= turns:
                continue
            with _noted(form):
                form.seconds.append(sides[form.name]("run", form.name, calls))
                if form.name == OURS:
                    ours = form.seconds[-1]
                elif ours:
                    form.ratios.append(form.seconds[-1] / ours)
        for term in terms if turn < counts.get(OURS, (0, 0))[0] else ():
            figures.floor[term].append(walks[term] * jax_side("floor", term))


def _count(
    form: FormFigures, needed: int, available: int | None, skip: bool, inputs: int = 0
) -> None:
    """Note a form that is not to run, with what it would need."""
    short = available is not None and needed + inputs > available - _MARGIN
    if short and available is not None and form.name == OURS:
        raise UserError(
            f"{OURS} needs {needed / 1e6:.0f} MB beside its inputs and {available / 1e6:.0f} MB "
            "are left; give a smaller --chunk-size or smaller sizes"
        )
    if short or skip:
        form.counted = needed
        form.note = "does not fit" if short else "counted only"


def _check_inputs(problem: LossProblem, available: int | None) -> None:
    # Twice: the host's copy exists until the device has its own.
    needed = 2 * problem.input_bytes
    if available is not None and needed > available - _MARGIN:
        raise UserError(
            f"inputs of {problem.title} need {needed / 1e6:.0f} MB while they are made and "
            f"{available / 1e6:.0f} MB are left; give smaller sizes"
        )


@contextlib.contextmanager
def _noted(form: FormFigures) -> Iterator[None]:
    """A form of a peer that fails has a note instead of figures; one of JAX is a bug."""
    try:
        yield
    except SideError as error:
        if form.name in JAX_FORMS:
            raise
        form.note = error.reason


@contextlib.contextmanager
def _jax_side(problem: LossProblem, here: bool, tidy: bool = False) -> Iterator[Call]:
    if here:
        from jaxmlcl.bench._jax_side import JaxSide

        instance = JaxSide()
        yield lambda method, *values: getattr(instance, method)(*values)
        return
    options = (problem.dtype == "float64", tidy)
    with side("jaxmlcl.bench._jax_side", "JaxSide", *options) as call:
        yield call


def _torch_side(form: str, accelerator: bool, tidy: bool = False) -> Any:
    return side("jaxmlcl.bench._torch_side", "TorchSide", form, accelerator, tidy)


def _one_side(form: str, problem: LossProblem) -> Any:
    """A process for one form, whose memory is looked at."""
    if form in JAX_FORMS:
        return _jax_side(problem, here=False, tidy=True)
    return _torch_side(form, accelerator=False, tidy=True)


def has_torch() -> bool:
    """Whether PyTorch is installed; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def median(values: Sequence[float]) -> float:
    """The median, or NaN of nothing."""
    return statistics.median(values) if values else math.nan
