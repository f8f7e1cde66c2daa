"""The report: one self-contained HTML page about a run, from the files in its directory.

`critical_difference_plot` and `curves_plot` are pictures by themselves, for studies.
"""

from __future__ import annotations

from jaxmlcl.report._critical import critical_difference_plot
from jaxmlcl.report._curves import Panel, curves_plot
from jaxmlcl.report._page import build_report, write_report

__all__ = ["Panel", "build_report", "critical_difference_plot", "curves_plot", "write_report"]
