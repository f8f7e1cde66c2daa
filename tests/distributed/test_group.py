"""The processes of a run as the program sees them, with every process in a thread of this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jaxmlcl.distributed import Group, group
from jaxmlcl.errors import UserError
from tests.distributed.test_channel import Channel, Ends, everywhere


@pytest.fixture
def groups() -> Iterator[list[Any]]:
    opened = Ends(3)
    yield [Group(end) for end in opened.ends]
    everywhere(Channel.close, opened.ends)


def test_alone_everything_is_done_here() -> None:
    alone = Group()
    assert (alone.count, alone.index, alone.primary, alone.name) == (1, 0, True, "process 0")
    assert alone.reached() is None
    alone.ask_to_stop("nobody hears it")
    alone.compare(1, lambda first, own: "never asked", "")
    with pytest.raises(ZeroDivisionError):
        alone.once(lambda: 1 // 0)
    assert group().count == 1


def test_once_is_done_once_and_known_to_all(groups: list[Any]) -> None:
    done: list[int] = []

    def act(member: Group) -> Any:
        return member.once(lambda: done.append(member.index) or {"saved": [1, "two"]})

    assert everywhere(act, groups) == [{"saved": [1, "two"]}] * 3
    assert done == [0]


def test_what_process_0_refuses_all_refuse(groups: list[Any]) -> None:
    def refuse() -> None:
        raise UserError("disk full")

    found = everywhere(lambda member: member.once(refuse), groups)
    assert all(isinstance(error, UserError) and str(error) == "disk full" for error in found)


def test_values_that_differ_are_refused_by_all_with_the_process(groups: list[Any]) -> None:
    def difference(first: int, own: int) -> str:
        return "" if first == own else f"{first} is not {own}"

    def compare(member: Group, which: int) -> None:
        member.compare(7 + (member.index == which), difference, "give all the same")

    assert everywhere(compare, groups, -1) == [None] * 3
    for error in everywhere(compare, groups, 2):
        assert isinstance(error, UserError)
        text = "process 2 (host2) differs from process 0: 7 is not 8; give all the same"
        assert str(error) == text
