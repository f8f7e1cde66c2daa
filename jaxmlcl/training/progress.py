"""What the host remembers of a stage beside the arrays, and how it judges a validation."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass
class Progress:
    """Where a stage stands and which validation was the best; saved in every checkpoint."""

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    validations_since_best: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    replaced: int = 0
    """Samples of this process that stood in for images that could not be decoded."""

    def judge(self, select: str, measured: dict[str, float]) -> bool:
        """Whether this validation is the best so far, which is noted; ties and NaN are not.

        Example:
          >>> progress = Progress(step=5)
          >>> progress.judge("loss", {"loss": 0.5}), progress.judge("loss", {"loss": 0.5})
          (True, False)
        """
        if select == "last":
            return False
        value = -measured["loss"] if select == "loss" else measured[select]
        if not math.isnan(value) and (self.best_value is None or value > self.best_value):
            self.best_value, self.best_step = value, self.step
            self.validations_since_best = 0
            return True
        self.validations_since_best += 1
        return False
