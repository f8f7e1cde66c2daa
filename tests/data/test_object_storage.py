"""Data in a bucket are refused in one line, before anything looks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxmlcl.data import open_source
from jaxmlcl.data.features import Expected, open_features
from jaxmlcl.data.source import row_origin
from jaxmlcl.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
PLACES = [
    "gs://bucket/train.array_record",
    "s3://bucket/train.array_record",
    "gs://bucket/yeast.arff?xml=yeast.xml",
    "S3://bucket/new.csv",
    "s3://bucket/folder",
    "hdfs://host/features.npz",
]


def refused(caught: pytest.ExceptionInfo[DataError], place: str) -> None:
    line = str(caught.value)
    assert line.startswith(f"{place}: data are not read from object storage")
    assert "gcsfuse" in line
    assert "mountpoint-s3" in line
    assert line.endswith("see docs/scale.md")
    assert "\n" not in line


@pytest.mark.parametrize("place", PLACES)
def test_refused_as_source_and_as_input(place: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(place)
    refused(caught, place)
    with pytest.raises(DataError) as caught:
        row_origin(place)
    refused(caught, place)
    with pytest.raises(DataError) as caught:
        open_features(place, Expected((3,)))
    refused(caught, place)


def test_refused_as_root_and_in_options(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_source("yeast.npz", root="gs://bucket/data")
    refused(caught, "gs://bucket/data")
    # What needs no folder does not mind the name of one.
    assert len(open_source("digits:test?size=3", root="gs://bucket/data")) == 3
    (tmp_path / "a.arff").write_text("@relation a\n@attribute x numeric\n@data\n1\n")
    with pytest.raises(DataError) as caught:
        open_source("a.arff?xml=s3://bucket/a.xml", root=tmp_path)
    refused(caught, "s3://bucket/a.xml")


def test_training_on_a_bucket_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxmlcl.cli import main

    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs" / "quickstart.py"
    run = tmp_path / "run"
    code = main(["train", str(config), "--data.train", PLACES[0], "--workdir", str(run)])
    assert code == 2
    told = capsys.readouterr().err.strip()
    assert f"{PLACES[0]}: data are not read from object storage" in told
    assert "\n" not in told
    assert not (run / "metrics.jsonl").exists()
