"""The report: one self-contained HTML page about a run, from the files in its directory.

`critical_difference_plot`, `curves_plot`, `heat_map` and `similarity_map` are pictures by
themselves; `class_similarity` is what the last one shows.
"""

from __future__ import annotations

from jaxmlcl.report._critical import critical_difference_plot
from jaxmlcl.report._curves import Panel, curves_plot
from jaxmlcl.report._heat import heat_map, similarity_map
from jaxmlcl.report._page import build_report, write_report
from jaxmlcl.report._representations import class_similarity

__all__ = [
    "Panel",
    "build_report",
    "class_similarity",
    "critical_difference_plot",
    "curves_plot",
    "heat_map",
    "similarity_map",
    "write_report",
]
