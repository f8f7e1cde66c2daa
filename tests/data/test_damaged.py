"""Damaged files: each either opens as a valid source or is refused in one line."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from jaxmlcl.data import ArraySource, open_source
from jaxmlcl.errors import DataError

DENSE = """% a comment
@relation 'tiny set'

@attribute length numeric
@attribute "dark sky" {0,1}
@attribute colour {red, 'dark blue', green, grey}
@attribute sea {0,1}
@attribute weight real
@attribute 'it\\'s night' {0,1}
@data
1.5,0,red,1,-2e3,0
% between the rows
0.25,1,'dark blue',0,7,1
-3,1,green,1,0.125,1
"""

SPARSE = """@relation tiny
@attribute length numeric
@attribute lit {0,1}
@attribute colour {red,blue}
@attribute sea {0,1}
@attribute sky {0,1}
@data
{0 1.5,3 1}
{1 1,2 blue,4 1}
{}
{0 -4, 3 1, 4 1}
"""

DENSE_XML = """<?xml version="1.0" encoding="utf-8"?>
<labels xmlns="http://mulan.sourceforge.net/labels">
<label name="sea"><label name="it's night"></label></label>
</labels>
"""

SPARSE_XML = """<labels><label name="sky"/><label name="sea"/></labels>"""


def damage(content: bytes, seed: int, *, flips: int, every: int) -> Iterator[bytes]:
    """Copies of a file: cut off, with bytes flipped, or with lines left out, doubled, swapped."""
    yield from (content[:end] for end in range(0, len(content), every))
    rng = random.Random(seed)
    for _ in range(flips):
        copy = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
        yield bytes(copy)
    for _ in range(flips):
        copy = bytearray(content)
        start = rng.randrange(len(copy))
        copy[start : start + rng.randrange(4)] = rng.choice(
            (b"", b"\0", b"'", b'"', b"{", b"}", b",", b"?", b"nan", b"1e999", b"\\", b"\xff", b"2")
        )
        yield bytes(copy)
    lines = content.split(b"\n")
    for position, line in enumerate(lines):
        yield b"\n".join(lines[:position] + lines[position + 1 :])
        yield b"\n".join([*lines[:position], line, *lines[position:]])
        other = rng.randrange(len(lines))
        yield b"\n".join([*lines[:position], lines[other], *lines[position + 1 :]])


def opens_or_is_refused(path: Path, options: str = "") -> bool:
    """Whether the file opened; any other outcome than a one-line refusal fails the test."""
    refusal = None
    try:
        source = open_source(f"{path}{options}")
    except DataError as error:
        refusal = str(error)
    if refusal is not None:
        assert len(refusal.splitlines()) == 1
        assert refusal.startswith(str(path.parent))
        return False
    assert isinstance(source, ArraySource)
    arrays = source.arrays()
    assert len(source) >= 1
    assert np.isfinite(arrays["inputs"]).all()
    assert set(np.unique(arrays["labels"])) <= {0, 1}
    assert arrays["labels"].shape == (len(source), source.metadata.num_labels)
    return True


def run_all(path: Path, cases: Iterator[bytes], at_least: int, options: str = "") -> None:
    opened = []
    for case in cases:
        path.unlink(missing_ok=True)  # a new file: HDF5 keeps files it could not close
        path.write_bytes(case)
        opened.append(opens_or_is_refused(path, options))
    assert len(opened) >= at_least
    assert 0 < sum(opened) < len(opened)


def test_the_undamaged_files_open(tmp_path: Path) -> None:
    for name, rows, names in (("dense", DENSE, DENSE_XML), ("sparse", SPARSE, SPARSE_XML)):
        (tmp_path / f"{name}.arff").write_text(rows)
        (tmp_path / f"{name}.xml").write_text(names)
        assert opens_or_is_refused(tmp_path / f"{name}.arff")


@pytest.mark.parametrize(
    ("rows", "names"), [(DENSE, DENSE_XML), (SPARSE, SPARSE_XML)], ids=["dense", "sparse"]
)
def test_damaged_arff(tmp_path: Path, rows: str, names: str) -> None:
    (tmp_path / "tiny.xml").write_text(names)
    run_all(tmp_path / "tiny.arff", damage(rows.encode(), 0, flips=400, every=1), at_least=1000)


def test_damaged_xml(tmp_path: Path) -> None:
    (tmp_path / "tiny.arff").write_text(DENSE)
    opened = []
    for case in damage(DENSE_XML.encode(), 1, flips=300, every=1):
        (tmp_path / "tiny.xml").write_bytes(case)
        opened.append(opens_or_is_refused(tmp_path / "tiny.arff"))
    assert len(opened) >= 750
    assert 0 < sum(opened) < len(opened)


@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_damaged_hdf5(tmp_path: Path, version: str, compression: str | None) -> None:
    whole = tmp_path / "whole.h5"
    rng = np.random.default_rng(0)
    with h5py.File(whole, "w", libver=version) as file:
        file.create_dataset("feature", data=rng.normal(size=(20, 5)), compression=compression)
        file.create_dataset("target", data=rng.integers(0, 2, (20, 3)), compression=compression)
        file["target"].attrs["label_names"] = np.array([b"sea", b"sky", b"sun"])
    run_all(tmp_path / "tiny.h5", damage(whole.read_bytes(), 2, flips=250, every=53), at_least=500)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path: Path, save: Callable[..., None]) -> None:
    whole = tmp_path / "whole.npz"
    rng = np.random.default_rng(0)
    names = np.array(["sea", "sky", "sun"])
    save(whole, x=rng.normal(size=(20, 5)), y=rng.integers(0, 2, (20, 3)), label_names=names)
    run_all(tmp_path / "tiny.npz", damage(whole.read_bytes(), 3, flips=300, every=7), at_least=600)


def test_damaged_npy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = np.hstack([rng.integers(0, 2, (9, 2)), rng.normal(size=(9, 2))])
    np.save(tmp_path / "whole.npy", table)
    content = (tmp_path / "whole.npy").read_bytes()
    cases = damage(content, 4, flips=400, every=1)
    run_all(tmp_path / "tiny.npy", cases, at_least=800, options="?labels=2")
    np.save(tmp_path / "table.npy", table)
    np.save(tmp_path / "whole.npy", np.arange(6))
    indices = tmp_path / "index.npy"
    for case in damage((tmp_path / "whole.npy").read_bytes(), 5, flips=200, every=1):
        indices.unlink(missing_ok=True)
        indices.write_bytes(case)
        opens_or_is_refused(tmp_path / "table.npy", "?labels=2&indices=index.npy")


def test_damaged_csv(tmp_path: Path) -> None:
    text = b'depth,"is sea",width,is sky\n0.5,1,1e1,0\n-2,1,20,1\n7,0,0,0\n'
    (tmp_path / "tiny.labels.json").write_text('["is sea", "is sky"]')
    run_all(tmp_path / "tiny.csv", damage(text, 6, flips=400, every=1), at_least=800)
