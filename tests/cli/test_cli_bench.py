"""`jaxmlcl bench loss`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]

TINY = ("--anchors", 4, "--keys", 32, "--labels", 5, "--dim", 8, "--cardinality", 1.5)


def test_a_table(run: Run) -> None:
    code, out, err = run("bench", "loss", *TINY, "--repetitions", 2)
    assert code == 0, err
    first, work, empty, head, *rows = out.splitlines()
    assert first.startswith("(B, K, L) = (4, 32, 5), 1.5 labels a row, D = 8, float32, mulsupcon; ")
    assert work.startswith("gradient of anchors: products ")
    assert empty == ""
    assert head.split() == ["form", "ms", "times", "ours", "temporaries", "MB", "peak", "MB"]
    assert [row.partition("  ")[0] for row in rows] == [
        "jaxmlcl",
        "plain jnp, weight matrix",
        "plain jnp, class sums",
        "floor, exponentials of an array",
        "floor, exponentials in cache",
    ]
    assert "repetition 2 of 2" in err


def test_json_of_another_weighting(run: Run) -> None:
    words = ("--weighting", "jaccard", "--with-keys-gradient", "--dtype", "float64", "--json")
    code, out, err = run("bench", "loss", *TINY, *words, "--repetitions", 1, "--chunk-size", 8)
    assert code == 0, err
    figures = json.loads(out)
    assert [form["name"] for form in figures["forms"]] == ["jaxmlcl", "plain jnp, weight matrix"]
    assert figures["problem"]["chunk_size"] == 8
    assert max(figures["deviations"]["plain jnp, weight matrix"]) < 1e-12
    # The process of the keys' gradient has a memory of its own.
    assert all(form["peak"] >= 0 for form in figures["forms"])


def test_several_devices(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Read by the process that computes.
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    words = ("--strategy", "ring", "--repetitions", 1)
    code, out, err = run("bench", "loss", *TINY, *words)
    assert code == 0, err
    head, *rows = out.splitlines()
    assert head.endswith(", 2 devices, ring")
    # The floor is one device's.
    assert not any(row.startswith("floor") for row in rows)
    code, _, err = run("bench", "loss", *TINY, "--anchors", 3, *words)
    assert code == 2
    assert "3 anchors cannot be split evenly among 2 devices; give a multiple" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "bench has one action, loss"),
        (("los",), "bench has one action, loss"),
        (("loss", "--anchors", "0"), "anchors must be at least 1, not 0"),
        (("loss", "--keys", "-3"), "keys must be at least 1, not -3"),
        (("loss", "--keys", "many"), "argument --keys: invalid int value: 'many'"),
        (("loss", "--cardinality", "81"), "at most the 80 labels there are, not 81"),
        (("loss", "--dtype", "flaot32"), 'unknown dtype "flaot32"; did you mean float32?'),
        (("loss", "--strategy", "gather_key"), "did you mean gather_keys?"),
        (("loss", "--weighting", "jacard"), "did you mean jaccard?"),
        (("loss", "--chunk-size", "0"), "chunk size must be at least 1, not 0"),
        (("loss", "--repetitions", "0"), "--repetitions: 0 is less than 1"),
        (("loss", "--peer", "tf"), "--peer"),
        (("loss", "--keys", "100000000000"), "give smaller sizes"),
        (("loss", "--strategy", "ring"), "shares the work among devices and there is one"),
        (("loss", "--anchor", "3"), "did you mean --anchors?"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = run("bench", *words)
    assert (code, out) == (2, "")
    *progress, line = err.splitlines()
    assert line.startswith("jaxmlcl: ")
    assert message in line
    assert all("busy" in text for text in progress)
