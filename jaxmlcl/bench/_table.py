"""The figures for a person."""

from __future__ import annotations

from collections.abc import Sequence

from jaxmlcl.bench._forms import OURS
from jaxmlcl.bench._measure import FLOOR_TERMS, FormFigures, LossFigures, median

HEADER = ("form", "ms", "times ours", "temporaries MB", "peak MB", "")
FLOORS = {
    "exponentials": "floor, exponentials of an array",
    "exponentials in cache": "floor, exponentials in cache",
}


def rows(figures: LossFigures) -> list[tuple[str, ...]]:
    """A row of cells for every form, and one for each floor; HEADER says what they are."""
    table = [_row(form) for form in figures.forms]
    for kind, name in FLOORS.items():
        if seconds := figures.floors(kind):
            ratio = spread([1 / ratio for ratio in figures.floor_ratios(kind)])
            terms = ", ".join(
                f"{term} {short(1e3 * median(figures.floor[term]))}"
                for term in (*FLOOR_TERMS[:2], kind)
            )
            table.append((name, spread([1e3 * x for x in seconds]), ratio, "", "", terms))
    return table


def _row(form: FormFigures) -> tuple[str, ...]:
    if not form.seconds:
        counted = f": {_megabytes(form.counted)} MB counted" if form.counted else ""
        return form.name, "-", "-", _megabytes(form.temporaries), "-", form.note + counted
    milliseconds = spread([1e3 * seconds for seconds in form.seconds])
    ratio = "1" if form.name == OURS else spread(form.ratios)
    memory = (_megabytes(form.temporaries), _megabytes(form.peak))
    return form.name, milliseconds, ratio, *memory, form.note


def summary(figures: LossFigures) -> list[str]:
    """Lines about a problem: what it must compute and read."""
    problem = figures.problem
    wanted = "anchors and keys" if problem.keys_gradient else "anchors"
    work = f"products {short(problem.walk_flop / 1e9)} GFLOP"
    if problem.class_sum_flop:
        work += f", class sums {short(problem.class_sum_flop / 1e9)} GFLOP"
    exponentials = problem.anchors * problem.keys * problem.walks[2]
    return [
        f"gradient of {wanted}: {work}, exponentials {short(exponentials / 1e6)} M; inputs "
        f"{_megabytes(problem.input_bytes)} MB"
    ]


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the columns under each other, the first and the last to the left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *middle, last in table:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    return lines


def spread(values: Sequence[float]) -> str:
    """Median, least and most.

    Example:
      >>> spread([1.0, 4.0, 2.0]), spread([0.5])
      ('2 (1-4)', '0.5')
    """
    if len(values) < 2:
        return short(median(values))
    return f"{short(median(values))} ({short(min(values))}-{short(max(values))})"


def short(value: float) -> str:
    """Three digits, without an exponent.

    Example:
      >>> [short(x) for x in (0.01234, 1.0, 159.4, 5452.3)]
      ['0.0123', '1', '159', '5452']
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else short(count / 1e6)
