"""A Markdown file with one part for every study, and how its figures are written."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmlcl.io import write_atomic


def replace_section(document: Path, name: str, text: str) -> None:
    """Put `text` in place of a study's part of the document, or at its end.

    Args:
      document: the Markdown file; made if there is none.
      name: the study's name, which marks its part.
      text: the part, without the marks.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "results.md"
      >>> for text in ("one", "two"):
      ...     replace_section(path, "birds", text + "\\n")
      >>> print(path.read_text())
      # Results
      <BLANKLINE>
      <!-- begin birds -->
      two
      <!-- end birds -->
      <BLANKLINE>
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    section = begin + text + end
    if document.exists():
        whole = document.read_text(encoding="utf-8")
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        whole = pattern.sub(lambda _: section, whole) if begin in whole else f"{whole}\n{section}"
    else:
        whole = f"# Results\n\n{section}"
    write_atomic(document, whole)


def figure(values: Sequence[float] | None) -> str:
    """Mean and, of several, the sample standard deviation.

    Example:
      >>> figure([0.5, 0.51]), figure([0.25]), figure(None)
      ('.505 ± .007', '.250', '-')
    """
    values = [value for value in values or () if not math.isnan(value)]
    if not values:
        return "-"
    text = short(float(np.mean(values)))
    return text if len(values) == 1 else f"{text} ± {short(float(np.std(values, ddof=1)))}"


def short(value: float) -> str:
    """Three decimals, without the zero before the point.

    Example:
      >>> short(0.25), short(-0.25), short(1.5)
      ('.250', '-0.250', '1.500')
    """
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text
