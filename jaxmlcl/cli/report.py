"""`jaxmlcl report WORKDIR`: write a run's report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlcl.cli import Parser
from jaxmlcl.errors import UserError

_ABOUT = """\
Write WORKDIR/report.html, one page that needs nothing else: what was run, the table, curves,
per-label results, samples. Run `jaxmlcl evaluate WORKDIR` first for the table.
"""
_SAMPLES = 24  # images shown


def run(words: list[str]) -> None:
    """Write the report and print its path."""
    parser = Parser("jaxmlcl report", _ABOUT)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="FOLDER",
        help="folder that relative paths of data start from now (default: as in training)",
    )
    options = parser.read(words)
    from jaxmlcl.report import write_report

    try:
        samples = sample_images(options.workdir, options.root)
    except UserError as error:
        print(f"the report has no sample images: {error}", file=sys.stderr)
        samples = None
    print(f"report: {write_report(options.workdir, samples=samples)}")


def sample_images(workdir: Path, root: str | None = None) -> dict[str, np.ndarray] | None:
    """The first images of the split that the report shows: test, or else what was evaluated.

    Args:
      workdir: the run's folder.
      root: the folder that relative paths of data start from; the experiment's by default.

    Returns:
      "ids" [m] and "inputs" [m, H, W, C] uint8; None for data that are not images, or before the
      run was evaluated.

    Raises:
      UserError: the data are not there, or are others than those that were evaluated.
    """
    files = (workdir / "evaluation").glob("*.json")
    first = min(files, key=lambda file: (file.stem != "test", file.name), default=None)
    evaluation = _read(first) if first else {}
    experiment = _read(workdir / "experiment.json")
    try:
        uri, fingerprint = evaluation["data"]["source"], evaluation["data"]["fingerprint"]
        own = _own_data(experiment, evaluation)
        root = root or own.get("root") or experiment["data"]["root"]
    except (KeyError, TypeError):
        # Not evaluated yet, or damaged: the report itself says which.
        return None
    from jaxmlcl.data import open_source
    from jaxmlcl.data.images import EncodedSource, Photographs

    source = open_source(uri, root=root)
    if isinstance(source, EncodedSource):
        from jaxmlcl.config import from_json

        run = from_json((workdir / "experiment.json").read_text(encoding="utf-8"))
        stage = evaluation.get("run", {}).get("stage")
        data = run.data_of(stage) if stage in run.stages else run.data
        source = Photographs(source, data.images)
    if source.metadata.fingerprint != fingerprint:
        raise UserError(f"{uri}: the data are not those that were evaluated")
    records = [source[index] for index in range(min(_SAMPLES, len(source)))]
    inputs = np.stack([record["inputs"] for record in records])
    if (
        source.metadata.kind != "image"
        or inputs.dtype != np.uint8
        or inputs.shape[-1] not in (1, 3)
    ):
        return None
    return {"ids": np.array([record["id"] for record in records]), "inputs": inputs}


def _own_data(experiment: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """The main stage's own data, as they are written; empty where it has none."""
    try:
        data = experiment["stages"][evaluation["run"]["stage"]]["data"]
    except (KeyError, TypeError):
        return {}
    return data if isinstance(data, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
