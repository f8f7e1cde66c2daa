"""The report: one self-contained HTML page about a run, from the files in its directory.

`critical_difference_plot`, `curves_plot` and `heat_map` are pictures by themselves.
"""

from __future__ import annotations

from jaxmlcl.report._critical import critical_difference_plot
from jaxmlcl.report._curves import Panel, curves_plot
from jaxmlcl.report._heat import heat_map
from jaxmlcl.report._page import build_report, write_report

__all__ = [
    "Panel",
    "build_report",
    "critical_difference_plot",
    "curves_plot",
    "heat_map",
    "write_report",
]
