"""Studies: named comparisons that are run, aggregated over seeds and written as tables."""

from jaxmlcl.studies._files import find_study, list_studies, load_study, study_name
from jaxmlcl.studies._processes import run_in_processes
from jaxmlcl.studies._runner import Cell, cells, run_study
from jaxmlcl.studies._study import DataSet, Fitted, Method, Networks, Reference, Study, Table
from jaxmlcl.studies._tables import write_tables

__all__ = [
    "Cell",
    "DataSet",
    "Fitted",
    "Method",
    "Networks",
    "Reference",
    "Study",
    "Table",
    "cells",
    "find_study",
    "list_studies",
    "load_study",
    "run_in_processes",
    "run_study",
    "study_name",
    "write_tables",
]
