"""What a run's stages were trained on, kept so that they can be applied without those data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

from jaxmlcl.data.features import Expected
from jaxmlcl.data.source import Source, SourceMetadata
from jaxmlcl.errors import UserError
from jaxmlcl.training.workdir import write_file

FILE = "data.json"
_FORMAT = 1


@dataclass(frozen=True)
class TrainedOn:
    """A training split without its records."""

    metadata: SourceMetadata
    rows: int
    feature_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        raise IndexError(f"record {index}: only the description of {self.metadata.name} is here")

    @property
    def expected(self) -> Expected:
        """What inputs of the network must be like."""
        metadata = self.metadata
        return Expected(
            metadata.input_shape, metadata.input_dtype, self.feature_names, metadata.label_names
        )


def describe(source: Source) -> TrainedOn:
    """A source without its records."""
    return TrainedOn(source.metadata, len(source), getattr(source, "feature_names", None))


def save_trained_on(workdir: Path, sources: Mapping[str, Source]) -> None:
    """Write WORKDIR/data.json: for each stage the training split it learns from.

    Raises:
      UserError: the file cannot be written.
    """
    described = {}
    for source in sources.values():
        found = describe(source)
        metadata = found.metadata
        described[metadata.fingerprint] = {
            "name": metadata.name,
            "rows": found.rows,
            "kind": metadata.kind,
            "input_shape": list(metadata.input_shape),
            "input_dtype": metadata.input_dtype,
            "label_names": list(metadata.label_names),
            "unknown_labels": metadata.unknown_labels,
            "soft_labels": metadata.soft_labels,
            "feature_names": None if found.feature_names is None else list(found.feature_names),
        }
    document = {
        "format": _FORMAT,
        "stages": {stage: source.metadata.fingerprint for stage, source in sources.items()},
        "sources": described,
    }
    write_file(workdir / FILE, json.dumps(document, indent=1) + "\n")


def load_trained_on(workdir: Path, stage: str) -> TrainedOn:
    """What a stage was trained on, as `save_trained_on` wrote it.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = workdir / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = document["stages"][stage]
        found = document["sources"][fingerprint]
        names = found["feature_names"]
        metadata = SourceMetadata(
            name=found["name"],
            label_names=tuple(found["label_names"]),
            input_shape=tuple(found["input_shape"]),
            input_dtype=found["input_dtype"],
            kind=found["kind"],
            fingerprint=fingerprint,
            unknown_labels=found["unknown_labels"],
            # Runs from before there were targets do not say.
            soft_labels=found.get("soft_labels", False),
        )
        return TrainedOn(metadata, int(found["rows"]), None if names is None else tuple(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}: missing or not readable; run the training command again to rewrite it"
        ) from None
