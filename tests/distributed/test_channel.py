"""The channel between processes, with every end in a thread of this one."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jaxmlcl.distributed import Lost
from jaxmlcl.distributed._channel import Channel, MissingError

FACTS = {"jaxmlcl": "1.0"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ends:
    """The ends of one channel, opened together, and what they heard of lost processes."""

    def __init__(self, count: int, silence: float = 30.0) -> None:
        self.port = free_port()
        self.lost: dict[int, list[Lost]] = {index: [] for index in range(count)}
        self.ends = [self.make(count, index, silence=silence) for index in range(count)]
        if self.ends:
            everywhere(Channel.open, self.ends)

    def make(self, count: int, index: int, **changes: Any) -> Channel:
        options = {"name": f"host{index}", "facts": FACTS, "start_timeout": 20.0, "silence": 30.0}
        heard = self.lost.setdefault(index, [])
        return Channel(
            "127.0.0.1", self.port, count, index, on_lost=heard.append, **{**options, **changes}
        )


def everywhere(call: Callable[..., Any], ends: list[Channel], *arguments: Any) -> list[Any]:
    """The same call at every end, each in a thread of its own; what they return, or raise."""
    with ThreadPoolExecutor(len(ends)) as pool:
        futures = [pool.submit(call, end, *arguments) for end in ends]
        return [future.exception(60) or future.result() for future in futures]


@pytest.fixture
def three() -> Iterator[Ends]:
    opened = Ends(3)
    yield opened
    everywhere(Channel.close, opened.ends)
    assert opened.lost == {0: [], 1: [], 2: []}


def test_everyone_knows_everyone(three: Ends) -> None:
    for end in three.ends:
        assert [end.who(i) for i in range(3)] == [f"process {i} (host{i})" for i in range(3)]


def test_what_process_0_gives_is_what_all_get_in_order(three: Ends) -> None:
    given = [{"step": 3, "name": "a" * 100_000}, None, ["ü", 1.5, True]]

    def take(end: Channel) -> list[Any]:
        return [end.share(value if end.index == 0 else "mine") for value in given]

    assert everywhere(take, three.ends) == [given] * 3


def test_nothing_stops_without_being_asked(three: Ends) -> None:
    assert (
        everywhere(lambda end: [end.reached() for _ in range(50)], three.ends) == [[None] * 50] * 3
    )


@pytest.mark.parametrize("seed", range(6))
def test_all_stop_at_the_same_place_wherever_they_are(three: Ends, seed: int) -> None:
    # Processes run ahead of each other, and one or two of them are asked at some moment.
    generator = random.Random(seed)
    asked = {generator.randrange(3): generator.randrange(40) for _ in range(2)}
    pauses = [generator.choice([0.0, 0.0005, 0.003]) for _ in range(3)]

    def walk(end: Channel) -> tuple[int, str | None]:
        for place in range(100_000):
            if asked.get(end.index) == place:
                end.ask_to_stop("signal SIGTERM")
            time.sleep(pauses[end.index])
            if (by := end.reached()) is not None:
                return place, by
        return -1, None

    places = everywhere(walk, three.ends)
    assert len(set(places)) == 1, places
    place, by = places[0]
    assert place >= min(asked.values())
    assert by in [f"signal SIGTERM to process {i} (host{i})" for i in asked]


def test_one_that_has_passed_every_place_does_not_hold_the_others_up() -> None:
    opened = Ends(2)

    def walk(end: Channel) -> str | None:
        if end.index == 1:
            return None  # it had no place to pass, and leaves
        time.sleep(0.2)
        end.ask_to_stop("signal SIGINT")
        for _ in range(1000):
            if (by := end.reached()) is not None:
                return by
            time.sleep(0.01)
        return None

    try:
        assert everywhere(walk, opened.ends) == ["signal SIGINT to process 0 (host0)", None]
    finally:
        everywhere(Channel.close, opened.ends)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, "it did not happen"
        time.sleep(0.01)
    return time.monotonic() - began


def cut(end: Channel) -> None:
    """What the death of a process does to its connections."""

    def abort() -> None:
        for writer in end._writers.values():
            writer.transport.abort()

    end._closing = True  # it does not notice anything itself
    end._call(abort)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_dies_is_named_to_all_others_at_once(dead: int) -> None:
    opened = Ends(3)
    cut(opened.ends[dead])
    others = [index for index in range(3) if index != dead]
    assert wait_for(lambda: all(opened.lost[index] for index in others)) < 5
    for index in others:
        (lost,) = opened.lost[index]
        assert lost.who == f"process {dead} (host{dead})"
        assert "its connection closed" in lost.how
        assert lost.code is None
    everywhere(Channel.close, [opened.ends[index] for index in others])


@pytest.mark.parametrize("silent", [0, 2])
def test_a_process_that_falls_silent_is_named_within_the_stated_time(silent: int) -> None:
    opened = Ends(3, silence=1.0)
    # As a stopped process, or one whose machine lost its network: connections stay open.
    asleep = threading.Event()
    opened.ends[silent]._call(asleep.wait, 30)
    others = [index for index in range(3) if index != silent]
    try:
        assert wait_for(lambda: all(opened.lost[index] for index in others)) < 4
        for index in others:
            assert opened.lost[index][0].who == f"process {silent} (host{silent})"
            assert opened.lost[index][0].how == "gave no sign of life for 1 s"
    finally:
        asleep.set()
        everywhere(Channel.close, [opened.ends[index] for index in others])


@pytest.mark.parametrize("index", [0, 1])
def test_an_error_of_one_is_told_to_all_with_its_exit_code(index: int) -> None:
    opened = Ends(3)
    opened.ends[index].end(2, "birds.arff: not found")
    others = [other for other in range(3) if other != index]
    wait_for(lambda: all(opened.lost[other] for other in others))
    for other in others:
        who = f"process {index} (host{index})"
        assert opened.lost[other] == [Lost(who, "ended: birds.arff: not found", 2)]
    assert opened.lost[index] == []
    everywhere(Channel.close, [opened.ends[other] for other in others])


def test_who_does_not_come_is_named() -> None:
    opened = Ends(0)
    present = [opened.make(4, index, start_timeout=1.0) for index in (0, 2)]
    for error in everywhere(Channel.open, present):
        assert isinstance(error, MissingError)
        assert str(error) == (
            "processes 1, 3 of 4 did not come within 1 s; there are: process 0 (host0), "
            "process 2 (host2)"
        )


def test_process_0_that_does_not_come_is_named() -> None:
    opened = Ends(0)
    with pytest.raises(MissingError, match=r"process 0 did not come within 0.5 s: nothing answers"):
        opened.make(2, 1, start_timeout=0.5).open()


@pytest.mark.parametrize(
    ("count", "index", "changes", "message"),
    [
        (3, 1, {}, "process 1 (host1) was started as one of 3 processes, process 0 (host0) as one"),
        (2, 1, {"facts": {"jaxmlcl": "0.9"}}, "process 1 (host1) has jaxmlcl 0.9, process 0 (host"),
    ],
)
def test_who_does_not_fit_is_refused(
    count: int, index: int, changes: dict[str, Any], message: str
) -> None:
    opened = Ends(0)
    first, second = opened.make(2, 0, start_timeout=5.0), opened.make(count, index, **changes)
    errors = everywhere(Channel.open, [first, second])
    assert all(isinstance(error, MissingError) for error in errors)
    assert all(message in str(error) for error in errors)


def test_two_that_say_they_are_the_first_are_told() -> None:
    opened = Ends(0)
    errors = everywhere(Channel.open, [opened.make(2, 0, start_timeout=1.0) for _ in range(2)])
    texts = sorted(str(error) for error in errors)
    assert texts[0].startswith(f"cannot listen at 127.0.0.1:{opened.port} (")
    assert "is another run using it?" in texts[0]
    assert texts[1].startswith("process 1 of 2 did not come within 1 s")


def test_one_that_comes_twice_is_refused() -> None:
    opened = Ends(0)
    ends = [opened.make(3, index, start_timeout=5.0) for index in (0, 1, 1)]
    errors = everywhere(Channel.open, ends)
    assert all(isinstance(error, MissingError) for error in errors)
    assert "process 1 was started twice, by host1 and by host1" in str(errors[0])


def test_the_relay_passes_bytes_both_ways_and_stays_open_when_process_0_dies() -> None:
    opened = Ends(2)
    home, away = opened.ends
    with socket.create_server(("127.0.0.1", 0)) as service:
        home.service_port = service.getsockname()[1]
        assert away.relay_port is not None
        with socket.create_connection(("127.0.0.1", away.relay_port), timeout=10) as client:
            client.sendall(b"question")
            accepted, _ = service.accept()
            with accepted:
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer" * 10_000)
                received = b""
                while len(received) < 60_000:
                    received += client.recv(2**16)
                assert received == b"answer" * 10_000
            # JAX's client ends the program as soon as it sees its connection closed.
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.recv(100)
    everywhere(Channel.close, opened.ends)


def test_strangers_at_the_port_do_no_harm(three: Ends) -> None:
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"process": 1}\n', b"\xff\xfe\n", b""):
        with socket.create_connection(("127.0.0.1", three.port), timeout=5) as stranger:
            stranger.sendall(said)
    assert everywhere(lambda end: end.share(end.index), three.ends) == [0, 0, 0]


def test_process_0_collects_what_all_give(three: Ends) -> None:
    def give(end: Channel) -> list[Any]:
        return [end.collect([end.index, round_]) for round_ in range(20)]

    first, *others = everywhere(give, three.ends)
    assert first == [[[index, round_] for index in range(3)] for round_ in range(20)]
    assert others == [[[]] * 20] * 2


def test_one_that_dies_while_others_are_awaited_is_named() -> None:
    opened = Ends(0)
    home, away = (opened.make(3, index, start_timeout=20.0) for index in (0, 1))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(end.open) for end in (home, away)]
        wait_for(lambda: 1 in home._writers)
        away._call(lambda: away._writers[0].transport.abort())
        text = str(waiting[0].exception(20))
    assert "process 1 (host1) is gone" in text
    assert "while others were awaited" in text


def test_a_process_that_came_early_was_not_silent() -> None:
    opened = Ends(0)
    ends = [opened.make(2, index, silence=1.0) for index in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ends[0].open)
        time.sleep(1.5)
        second = pool.submit(ends[1].open)
        assert first.result(20) is second.result(20) is None
    ends[0]._loop.call_soon_threadsafe(lambda: None)
    time.sleep(0.2)
    assert opened.lost == {0: [], 1: []}
    everywhere(Channel.close, ends)


def test_all_meet(three: Ends) -> None:
    arrived: list[int] = []

    def come(end: Channel) -> int:
        time.sleep(0.1 * end.index)
        arrived.append(end.index)
        end.meet()
        return len(arrived)

    assert everywhere(come, three.ends) == [3, 3, 3]


def test_one_process_alone_listens_nowhere() -> None:
    opened = Ends(0)
    with socket.create_server(("127.0.0.1", opened.port)):
        alone = opened.make(1, 0)
        alone.open()
        assert alone.share({"a": 1}) == {"a": 1}
        alone.meet()
        alone.close()
