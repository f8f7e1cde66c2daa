"""Time and memory of the loss: every form computes the same, and the figures mean what they say."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest

from jaxmlcl import bench
from jaxmlcl.bench import (
    CLASS_SUMS,
    EAGER,
    OURS,
    WEIGHTS,
    FormFigures,
    JaxSide,
    LossFigures,
    LossProblem,
    bench_loss,
)
from jaxmlcl.bench._process import resident_peak
from jaxmlcl.errors import UserError
from jaxmlcl.losses import WEIGHTINGS

TINY = LossProblem(anchors=12, keys=96, labels=7, dim=16, cardinality=1.5)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch, an optional peer, is not installed"
)


# ------------------------------------------------------------------------------- the problem


def test_arrays() -> None:
    problem = LossProblem(anchors=300, keys=2000, labels=20, dim=8, cardinality=3.0)
    z, k, y, yk = problem.arrays()
    assert [x.shape for x in (z, k, y, yk)] == [(300, 8), (2000, 8), (300, 20), (2000, 20)]
    assert [x.dtype for x in (z, k, y, yk)] == ["float32", "float32", "uint8", "uint8"]
    np.testing.assert_allclose(np.linalg.norm(k, axis=1), 1, rtol=1e-6)
    assert (y == yk[:300]).all()
    # Three standard deviations of the mean of 2000 rows are 0.11.
    assert abs(yk.sum(1).mean() - 3.0) < 0.11
    assert sum(x.nbytes for x in (z, k, y, yk)) == problem.input_bytes
    assert all((a == b).all() for a, b in zip((z, k, y, yk), problem.arrays(), strict=True))


def test_more_anchors_than_keys_and_a_label_at_least() -> None:
    _, _, y, yk = LossProblem(anchors=5, keys=2, labels=3, dim=2, cardinality=1e-6).arrays()
    assert yk.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert y[:, 0].tolist() == [1, 0, 1, 0, 1]


def test_operations_are_counted() -> None:
    problem = LossProblem(anchors=256, keys=65_536, labels=365, dim=256, cardinality=10)
    # Two products of B x K x D, each a multiplication and an addition; class sums of K x L x D.
    assert problem.walk_flop == 2 * 2 * 256 * 65_536 * 256
    assert problem.class_sum_flop == 2 * 65_536 * 365 * 256
    with_keys = dataclasses.replace(problem, keys_gradient=True)
    assert with_keys.walk_flop == 2 * problem.walk_flop
    assert dataclasses.replace(problem, weighting="any").class_sum_flop == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": 0}, "anchors must be at least 1, not 0"),
        ({"dim": -1}, "dim must be at least 1, not -1"),
        ({"chunk_size": 0}, "chunk size must be at least 1"),
        ({"cardinality": 81.0}, "at most the 80 labels there are, not 81"),
        ({"cardinality": 0.0}, "must be above 0"),
        ({"cardinality": math.nan}, "not nan"),
        ({"weighting": "mulsubcon"}, 'unknown weighting "mulsubcon"; did you mean mulsupcon?'),
        ({"dtype": "int8"}, 'unknown dtype "int8"; use float32, bfloat16, float64'),
        ({"strategy": "rings"}, 'unknown strategy "rings"; did you mean ring?'),
    ],
)
def test_a_problem_that_cannot_be(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refused:
        LossProblem(**change)  # type: ignore[arg-type] # wrong on purpose
    assert message in str(refused.value)


# ---------------------------------------------------------------------------------- the forms


@pytest.mark.parametrize("keys_gradient", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_plain_forms_compute_what_ours_does(weighting: str, keys_gradient: bool) -> None:
    problem = dataclasses.replace(TINY, weighting=weighting, keys_gradient=keys_gradient)
    assert (problem.arrays()[2].sum(1) == 0).any()  # anchors without labels are among them
    side = JaxSide()
    side.open(problem)
    answers = {}
    for form in bench.forms_of(problem, torch=False):
        side.compile(form)
        answers[form] = side.answer(form)
    value, gradients = answers.pop(OURS)
    assert len(gradients) == 1 + keys_gradient
    assert set(answers) == {WEIGHTS, *([CLASS_SUMS] if weighting.startswith("mulsup") else [])}
    for other, slopes in answers.values():
        assert other == pytest.approx(value, rel=1e-5)
        for slope, gradient in zip(slopes, gradients, strict=True):
            np.testing.assert_allclose(slope, gradient, atol=1e-5 * np.abs(gradient).max())


@needs_torch
def test_torch_computes_what_ours_does() -> None:
    ours = JaxSide()
    with bench.side("jaxmlcl.bench._torch_side", "TorchSide", EAGER) as call:
        for weighting in WEIGHTINGS:
            problem = dataclasses.replace(TINY, weighting=weighting, keys_gradient=True)
            ours.open(problem)
            ours.compile(OURS)
            value, gradients = ours.answer(OURS)
            call("open", problem)
            other, slopes = call("answer", EAGER)
            assert other == pytest.approx(value, rel=1e-5)
            for slope, gradient in zip(slopes, gradients, strict=True):
                np.testing.assert_allclose(slope, gradient, atol=1e-5 * np.abs(gradient).max())
        assert call("run", EAGER, 2) > 0


def test_temporaries_are_known_without_arrays() -> None:
    # Inputs of 1 TB; the weight matrix alone has 4 GB.
    huge = LossProblem(anchors=1024, keys=2**20, labels=80, dim=256)
    found = bench.temporaries(huge, [WEIGHTS])[WEIGHTS]
    assert found is not None
    assert found >= 4 * 1024 * 2**20
    assert bench.temporaries(TINY, [WEIGHTS])[WEIGHTS] < 10 * 4 * 12 * 96


@pytest.mark.parametrize("strategy", ["auto", "gather_keys", "gather_anchors", "ring"])
def test_eight_devices_compute_what_the_plain_form_does(strategy: str) -> None:
    side = JaxSide()
    side.open(dataclasses.replace(TINY, anchors=16, strategy=strategy, keys_gradient=True))
    assert len(side.arguments[1].sharding.device_set) == 8
    side.compile(OURS)
    side.compile(WEIGHTS)
    (value, gradients), (other, slopes) = side.answer(OURS), side.answer(WEIGHTS)
    assert other == pytest.approx(value, rel=1e-5)
    for slope, gradient in zip(slopes, gradients, strict=True):
        np.testing.assert_allclose(slope, gradient, atol=1e-5 * np.abs(gradient).max())


def test_a_strategy_wants_devices_that_divide() -> None:
    side = JaxSide()
    with pytest.raises(UserError, match="12 anchors cannot be split evenly among 8 devices"):
        side.shape(dataclasses.replace(TINY, strategy="ring"))


def test_a_strategy_wants_more_than_one_device() -> None:
    problem = dataclasses.replace(TINY, strategy="ring")
    with (
        bench.side("jaxmlcl.bench", "JaxSide") as call,
        pytest.raises(UserError, match='strategy "ring" shares the work among devices'),
    ):
        call("shape", problem)


# -------------------------------------------------------------------------------- the figures


def test_figures_and_their_table() -> None:
    figures = bench_loss(TINY, repetitions=3, here=True, resident=False)
    assert [form.name for form in figures.forms] == list(bench.JAX_FORMS)
    ours, *others = figures.forms
    assert len(ours.seconds) == 3
    assert min(ours.seconds) > 0
    for form in others:
        expected = [theirs / mine for theirs, mine in zip(form.seconds, ours.seconds, strict=True)]
        assert form.ratios == expected
    assert set(figures.deviations) == {WEIGHTS, CLASS_SUMS}
    assert figures.disagreements == []
    assert set(figures.floor) == set(bench.FLOOR_TERMS)
    floor = sum(figures.floor[term][1] for term in ("scores", "weighted sum", "exponentials"))
    assert figures.floor_ratios()[1] == ours.seconds[1] / floor
    table = [bench.HEADER, *bench.rows(figures)]
    assert [line[0] for line in table[1:]] == [
        *bench.JAX_FORMS,
        "floor, exponentials of an array",
        "floor, exponentials in cache",
    ]
    assert len({len(line) for line in table}) == 1
    lines = bench.aligned(table)
    assert lines[1].startswith("jaxmlcl  ")
    assert lines[1].index(f"{bench.short(1e3 * bench.median(ours.seconds))} (") > 0


@pytest.mark.parametrize("term", ["scores", "weighted sum"])
def test_the_floor_multiplies_again_in_every_turn_of_its_loop(term: str) -> None:
    problem = LossProblem(anchors=16, keys=64)
    side = JaxSide()
    side.open(problem)
    # A product that the compiler takes out of the loop would run at 100 TFLOP/s here.
    rate = 2 * 16 * 64 * 256 / min(side.floor(term) for _ in range(3))
    assert 1e7 < rate < 2e13


def test_resident_memory_of_a_matrix_of_pairs() -> None:
    # [B, K] has 67 MB here and the inputs 11 MB.
    problem = LossProblem(anchors=2048, keys=8192, labels=80, dim=256)
    [peak] = bench.resident_peaks(WEIGHTS, [problem])
    planned = bench.temporaries(problem, [WEIGHTS])[WEIGHTS]
    assert planned is not None
    assert 0.8 * planned < peak < 1.5 * planned + 2e7


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere an earlier maximum hides this one")
def test_resident_peak_is_of_the_call() -> None:
    np.ones(1 << 24)  # 134 MB that are given back before
    assert 6.2e7 < resident_peak(lambda: np.ones(8_000_000)) < 8e7
    assert resident_peak(lambda: None) < 1e7


def test_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = LossProblem(anchors=64, keys=4096, labels=10, dim=16, chunk_size=256)
    needed = bench.temporaries(problem, list(bench.JAX_FORMS))
    left = (1 << 29) + min(needed[WEIGHTS], needed[CLASS_SUMS]) - 1  # the margin, and too little
    monkeypatch.setattr(JaxSide, "available", lambda self: left)
    figures = bench_loss(problem, repetitions=1, here=True, resident=False)
    ours, *others = figures.forms
    assert ours.seconds
    for form in others:
        assert (form.seconds, form.note, form.counted) == ([], "does not fit", needed[form.name])
    assert "does not fit: " in bench.rows(figures)[1][-1]
    monkeypatch.setattr(JaxSide, "available", lambda self: (1 << 29) + 8 * problem.input_bytes)
    monkeypatch.setattr(JaxSide, "compile", lambda self, form: 10**10)
    with pytest.raises(UserError, match="jaxmlcl needs 10000 MB beside its inputs"):
        bench_loss(problem, here=True)
    monkeypatch.setattr(JaxSide, "available", lambda self: 1 << 29)
    with pytest.raises(UserError, match=r"inputs of .* need \d"):
        bench_loss(problem, here=True)


def test_memory_is_not_measured_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxmlcl.bench._measure.available_memory", lambda: 1 << 29)
    assert bench.resident_peaks(WEIGHTS, [TINY, TINY]) == [None, None]


def test_forms_that_are_not_asked_for_are_counted() -> None:
    figures = bench_loss(TINY, repetitions=1, run=(OURS,), here=True, resident=False, floor=False)
    assert [bool(form.seconds) for form in figures.forms] == [True, False, False]
    assert [form.note for form in figures.forms] == ["", "counted only", "counted only"]
    assert figures.floor_ratios() == []


def test_rows_per_pair_are_counted() -> None:
    problem = LossProblem(anchors=256, keys=65_536, labels=365, cardinality=10)
    # 2560 rows of 65 536 numbers, four times over, beside the scores.
    expected = 4 * 256 * 65_536 + 4 * 4 * 2560 * 65_536
    assert bench.counted_bytes(EAGER, problem) == expected


@pytest.mark.parametrize(
    ("off", "wrong"),
    [((1e-6, 9e-6), False), ((1.1e-5, 0.0), True), ((0.0, 1.1e-5), True), ((math.nan, 0.0), True)],
)
def test_a_disagreement_is_found(off: tuple[float, float], wrong: bool) -> None:
    figures = LossFigures(TINY, {}, [FormFigures(OURS)], {}, {WEIGHTS: off})
    assert bool(figures.disagreements) is wrong


def test_without_torch_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxmlcl.bench._measure.has_torch", lambda: False)
    told: list[str] = []
    options = {"repetitions": 1, "here": True, "resident": False, "floor": False}
    figures = bench_loss(TINY, torch=True, tell=told.append, **options)
    assert [form.name for form in figures.forms] == list(bench.JAX_FORMS)
    assert told[0] == bench.TORCH_MISSING
    assert 'pip install "jaxmlcl[benchmark]"' in told[0]


# -------------------------------------------------------------------------------- the processes


def test_a_side_answers_and_fails_in_its_own_process() -> None:
    with bench.side("collections", "Counter", "abb") as call:
        assert call("most_common", 1) == [("b", 2)]
        with pytest.raises(bench.SideError) as failed:
            call("least_common")
        assert failed.value.reason.startswith("AttributeError: 'Counter' object has no attribute")
        assert "Traceback" in str(failed.value)
        assert call("total") == 3


def test_a_side_that_ends_is_told() -> None:
    with bench.side("ctypes", "CDLL", None) as call, pytest.raises(bench.SideError) as failed:
        call("_exit", 3)
    assert failed.value.reason == "its process ended with 3 (out of memory?)"


def test_torch_is_not_imported_here() -> None:
    program = "import sys, jaxmlcl.bench; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n"
