"""The report: one self-contained HTML page about a run, from the files in its directory."""

from __future__ import annotations

from jaxmlcl.report._page import build_report, write_report

__all__ = ["build_report", "write_report"]
