"""What is shown while training."""

from __future__ import annotations

import io
import os
import pty
import re
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxmlcl.cli.console import Bar, Lines, make_console


class Clock:
    """A clock that goes on by a fixed time with every step."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(seconds_per_step: float, total: int, first: int = 0) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    console = Lines(stream, clock)
    console.start("pretrain", first, total, batch_size=10)
    for step in range(first + 1, total + 1):
        clock.now += seconds_per_step
        console.progress(step, 1.5 if step % 5 == 0 else None)
    console.stop()
    console.stop()
    return stream.getvalue().splitlines()


def test_a_slow_stage_gets_a_line_for_every_tenth() -> None:
    lines = lines_of(seconds_per_step=1.0, total=100)
    assert len(lines) == 10
    assert lines[1] == "pretrain: step 20/100 (20 %), loss 1.5, 10 samples/s, 1 min 20 s left"
    assert lines[-1] == "pretrain: step 100/100 (100 %), loss 1.5, 10 samples/s, 1 min 40 s in all"


def test_a_fast_stage_gets_a_line_every_few_seconds_and_a_last_one() -> None:
    lines = lines_of(seconds_per_step=1 / 64, total=640)
    assert [re.search(r"step (\d+)", line)[1] for line in lines] == ["320", "640"]
    assert lines_of(seconds_per_step=1 / 64, total=3) == [
        "pretrain: step 3/3 (100 %), 640 samples/s, 0 s in all"
    ]


def test_a_very_slow_stage_gets_a_line_every_minute() -> None:
    lines = lines_of(seconds_per_step=30.0, total=40)
    assert len(lines) == 20
    assert "step 2/40 (5 %)" in lines[0]


def test_a_continued_stage_counts_its_own_steps_for_the_rate() -> None:
    lines = lines_of(seconds_per_step=1.0, total=100, first=90)
    assert lines[-1].startswith("pretrain: step 100/100 (100 %), loss 1.5, 10 samples/s")


def test_stop_tells_where_a_stage_was_left() -> None:
    stream = io.StringIO()
    console = Lines(stream, Clock())
    console.stop()
    console.start("bce", 0, 100, 10)
    console.stop()
    assert stream.getvalue() == ""
    console.start("bce", 0, 100, 10)
    console.progress(7, None)
    console.stop()
    assert stream.getvalue() == "bce: step 7/100 (7 %)\n"


def test_a_reader_that_went_away_does_not_stop_training(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        for console in (Lines(stream), Bar(stream)):
            console.line("nobody reads this")
            console.start("bce", 0, 2, 10)
            console.line("nor this")
            console.progress(2, 1.0)
            console.stop()
        stream_closed = stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
    Lines(stream_closed).line("closed")


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        assert isinstance(make_console(file), Lines)
    assert isinstance(make_console(io.StringIO()), Lines)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    leader, follower = pty.openpty()
    yield leader, follower
    os.close(leader)


def test_a_terminal_gets_a_bar(terminal: tuple[int, int]) -> None:
    leader, follower = terminal
    with open(follower, "w") as stream:
        # A terminal of no size cannot show a bar.
        assert isinstance(make_console(stream), Lines)
        termios.tcsetwinsize(follower, (24, 120))
        console = make_console(stream)
        assert isinstance(console, Bar)
        console.line("before")
        console.start("pretrain", 100, 200, batch_size=64)
        console.progress(150, 3.25)
        console.line("between")
        console.progress(200, None)
        console.stop()
        console.stop()
        console.progress(201, None)
        console.line("after")
        received = b""
        while b"after" not in received:
            received += os.read(leader, 65536)
        shown = received.decode().replace("\r", "\n")
    lines = [line for line in shown.split("\n") if line.strip()]
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "between" in lines
    last = lines[-2]
    assert re.match(
        r"pretrain 100%\|.*\| step 200/200, loss 3\.25, \S+ samples/s, 00:00 left", last
    )
