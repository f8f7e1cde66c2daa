"""The data of an experiment, or of one of its stages, as a configuration names them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxmlcl.data.images import Images


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits, as URIs or paths, and what is done to inputs before anything else."""

    train: str
    """Training split (URI or path)."""
    validation: str | None = None
    """Validation split (URI or path); thresholds and the best step are chosen on it."""
    test: str | None = None
    """Test split (URI or path); read by `evaluate` only."""
    root: str | None = None
    """Folder that relative paths start from; the environment's JAXMLCL_DATA if absent."""
    inputs: Literal["standardize", "unit", "raw", "inherit"] = "standardize"
    """Zero mean and unit variance per feature (fitted on train; of photographs, per channel as
    `images` says); 0..255 to 0..1; as they are; or, for a stage's own data, as in the stage that it
    starts from."""
    images: Images = dataclasses.field(default_factory=Images)
    """What photographs become; of no effect on other data."""
