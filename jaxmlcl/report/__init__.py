"""The report: one self-contained HTML page about a run, from the files in its directory.

`critical_difference_plot` is a picture by itself, for tables of methods over data sets.
"""

from __future__ import annotations

from jaxmlcl.report._critical import critical_difference_plot
from jaxmlcl.report._page import build_report, write_report

__all__ = ["build_report", "critical_difference_plot", "write_report"]
