"""`jaxmlcl bench loss` and `jaxmlcl bench input`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


def test_input_tells_each_stage_and_what_bounds(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV (extra images) is not installed")
    pytest.importorskip("simplejpeg", reason="simplejpeg (extra images) is not installed")
    lines = ["file,a"]
    for number in range(12):
        pixels = np.full((30 + number, 40, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
        lines.append(f"{number}.jpg,{number % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    config = tmp_path / "photos.py"
    config.write_text(
        "from jaxmlcl.config import *\n"
        f'data = Data("folder:{tmp_path}", images=Images(size=8))\n'
        "encoder = ResNet(depths=(1,), channels=4, stem='small')\n"
        "bce = Stage(Classification(encoder), steps(2), batch_size=8)\n"
        "experiment = Experiment('photos', data, {'bce': bce})\n"
    )
    code, _, err = run("bench", "input", config, "--stages.bce.batch-size", "12")
    assert code == 2
    assert "12 samples do not divide over 8 devices" in err
    code, out, err = run("bench", "input", config, "--seconds", "0.1")
    assert code == 0, err
    for title in ("read", "decode", "crop", "batch", "transfer", "pipeline", "step of bce"):
        assert re.search(rf"^  {title} +[\d,]+ images/s$", out, re.MULTILINE), out
    assert "a run is bound by the " in out
    words = [
        "--data.images.size",
        "8",
        "--stages.pretrain.batch-size",
        "8",
        "--loading.workers",
        "1",
    ]
    code, out, err = run(
        "bench", "input", f"folder:{tmp_path}", *words, "--seconds", ".1", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert (found["images"], found["size"], found["workers"], found["step"]) == (12, 8, 1, None)
    assert all(rate > 0 for rate in found["stages"].values())
    # The stages one after the other are as fast as their times together.
    together = 1 / sum(1 / rate for rate in found["stages"].values())
    assert found["core"] == pytest.approx(together, rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "bench: name what is measured, loss or input"),
        (("los",), 'bench: unknown action "los"; did you mean loss?'),
        (("input",), "CONFIG or SOURCE comes first"),
        (("input", "--json"), "CONFIG or SOURCE comes first"),
        (("input", "digits:train"), "is in memory and is not read by workers"),
        (("input", "digits:train", "--seconds", "0"), "--seconds must be a number above 0, not 0"),
        (("input", "digits:train", "--seconds"), "--seconds needs a value"),
        (("input", "digits:train", "--stage", "probe"), 'no stage "probe"; there are pretrain'),
        (("input", "digits:train", "--data.image.size", "3"), "did you mean --data.images.size"),
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
