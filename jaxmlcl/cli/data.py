"""`jaxmlcl data inspect SOURCE ...`: what a data set is like; `data pack`: images into shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxmlcl.cli import Parser

_ABOUT = """\
Describe the splits of a data set, training first: counts, labels, rows that occur twice within a
split or across splits, and problems. Every row is read, nothing is changed. Image files are read
with --check-images only; whether they are there is always looked at.
"""


_ROOT = "folder that relative paths start from (default: JAXMLCL_DATA, then here)"
_PACK = """\
Write the images of SOURCE, with their labels, into ArrayRecord shards in DIR: larger images
reduced, all others as they are. A shard appears whole or not at all, and the same command goes on
where it was stopped. The set is then opened as shards:DIR.
"""


def run(words: list[str]) -> None:
    """Inspect or pack."""
    actions = {"inspect": _inspect, "pack": _pack}
    action, rest = (words[0], words[1:]) if words else ("", [])
    if action in actions:
        actions[action](rest)
        return
    parser = Parser("jaxmlcl data", "Look at data sets, and pack images.")
    parser.add_argument(
        "action",
        metavar="ACTION",
        nargs="?",
        help="inspect SOURCE ..., or pack SOURCE -o DIR; both take --data.root FOLDER, and --help "
        "with more",
    )
    if {"-h", "--help"} & set(words):
        parser.read(words)
    parser.error("data has two actions, inspect and pack: jaxmlcl data inspect SOURCE ...")


def _pack(words: list[str]) -> None:
    parser = Parser("jaxmlcl data pack", _PACK)
    parser.add_argument(
        "source", metavar="SOURCE", help="image files, such as coco:FILE or voc:DIR"
    )
    parser.add_argument(
        "-o", dest="output", metavar="DIR", type=Path, required=True, help="folder to write to"
    )
    parser.add_argument(
        "--short-side",
        type=int,
        default=256,
        metavar="PIXELS",
        help="what the short side of larger images is reduced to; 0: nothing (default: 256)",
    )
    parser.add_argument(
        "--quality", type=int, default=90, metavar="Q", help="of reduced JPEGs (default: 90)"
    )
    parser.add_argument(
        "--shards", type=int, metavar="N", help="files (default: one for every 10 000 images)"
    )
    parser.add_argument(
        "--unreadable",
        choices=("error", "skip"),
        default="error",
        help="images that are missing or cannot be decoded: stop, or leave out and count them",
    )
    parser.add_argument("--data.root", dest="root", metavar="FOLDER", help=_ROOT)
    options = parser.read(words)
    from jaxmlcl.cli.console import make_console
    from jaxmlcl.data import open_source
    from jaxmlcl.data.images.pack import Packing, pack

    packing = Packing(
        options.short_side or None, options.quality, options.shards, options.unreadable
    )
    source: Any = open_source(options.source, root=options.root)
    console = make_console()
    console.start("pack", 0, len(source), 1)
    try:
        manifest = pack(
            source,
            options.output,
            packing,
            origin=options.source,
            report=lambda done, _: console.progress(done, None),
        )
    finally:
        console.stop()
    size = sum(shard["bytes"] for shard in manifest["shards"])
    skipped = manifest["made"]["skipped"]
    print(
        f"{manifest['rows']} images, {len(manifest['label_names'])} labels, "
        f"{len(manifest['shards'])} shards, {size / 1e6:.1f} MB"
        + (f"; {skipped} unreadable images left out" if skipped else "")
    )
    print(f"next: jaxmlcl data inspect shards:{options.output}")


def _inspect(words: list[str]) -> None:
    parser = Parser("jaxmlcl data inspect", _ABOUT)
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a split, as URI or path; labels are compared with those of the first",
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="FOLDER",
        help=_ROOT,
    )
    parser.add_argument(
        "--labels",
        type=int,
        default=20,
        metavar="COUNT",
        help="labels in the table, the most frequent first; 0 for all (default: 20)",
    )
    parser.add_argument(
        "--check-images",
        action="store_true",
        help="decode every image file, on all cores, and compare their contents",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.read(words)
    if options.labels < 0:
        parser.error(f"argument --labels: {options.labels} is negative")
    # Imported here, so that help and mistakes are told at once.
    from jaxmlcl.data import open_source
    from jaxmlcl.data.inspect import inspect_sources

    document = inspect_sources(
        [(uri, open_source(uri, root=options.root)) for uri in options.sources],
        check_images=options.check_images,
    )
    if options.json:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    for line in tables(document, options.labels):
        print(line)


def tables(document: dict[str, Any], most: int) -> Iterator[str]:
    """The lines for a person, `most` labels at most (0: all)."""
    sources = document["sources"]
    keys = [f"[{number}]" for number in range(1, len(sources) + 1)]
    for key, source in zip(keys, sources, strict=True):
        yield f"{key} {source['source']}"
    yield ""
    columns = (
        "rows",
        "inputs",
        "labels",
        "labels/row",
        "density",
        "label sets",
        "no label",
        "twice",
    )
    masked = any("unknown_labels" in source for source in sources)
    rows = [["", *columns, *(["unknown"] if masked else [])]]
    for key, source in zip(keys, sources, strict=True):
        rows.append(
            [
                key,
                str(source["num_rows"]),
                "x".join(map(str, source["input_shape"])) or "files",
                str(source["num_labels"]),
                f"{source['cardinality']:.2f}",
                f"{source['density']:.4f}",
                str(source["label_sets"]),
                str(source["unlabelled_rows"]),
                str(source["duplicate_rows"]),
                *([str(source.get("unknown_labels", 0))] if masked else []),
            ]
        )
    yield from _aligned(rows)
    yield from _of_images(keys, sources)
    labels = sorted(document["labels"], key=lambda label: -label["positives"][0])
    shown = labels[: most or None]
    yield ""
    words = ("share", "unknown") if masked else ("share",)
    rows = [["label", *(word for key in keys for word in (key, *words))]]
    for label in shown:
        cells = [label["label"]]
        unknown = label.get("unknown", [0] * len(sources))
        for count, hidden, source in zip(label["positives"], unknown, sources, strict=True):
            known = source["num_rows"] - hidden
            cells += [str(count), f"{count / known:.3f}" if known else "-"]
            cells += [str(hidden)] if masked else []
        rows.append(cells)
    yield from _aligned(rows)
    if len(shown) < len(labels):
        yield f"and {len(labels) - len(shown)} less frequent labels: --labels 0 shows all"
    if document["co_occurrences"]:
        yield ""
        rows = [["labels that occur together", "rows of [1]", "Jaccard"]]
        for pair in document["co_occurrences"]:
            rows.append([" + ".join(pair["labels"]), str(pair["rows"]), f"{pair['jaccard']:.3f}"])
        yield from _aligned(rows)
    yield ""
    yield "problems:" if document["problems"] else "no problem found"
    titles = {source["source"]: key for key, source in zip(keys, sources, strict=True)}
    for problem in document["problems"]:
        # The longest first: one URI may begin another.
        for title in sorted(titles, key=len, reverse=True):
            problem = problem.replace(title, titles[title])
        yield f"  {problem}"


def _of_images(keys: Sequence[str], sources: Sequence[dict[str, Any]]) -> Iterator[str]:
    described = [
        (key, one["images"]) for key, one in zip(keys, sources, strict=True) if "images" in one
    ]
    if not described:
        return
    rows = [["image files", "missing", "undecodable", "smallest", "largest"]]
    for key, images in described:
        sizes = ["x".join(map(str, size)) for size in images.get("sizes", [])] or ["-", "-"]
        checked = str(images.get("undecodable", "not checked"))
        rows.append([key, str(images["missing"]), checked, *sizes])
    yield ""
    yield from _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])
