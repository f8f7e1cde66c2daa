"""Studies: named comparisons that are run, aggregated over seeds and written as tables."""

from jaxmlcl.studies._curves import ConvergenceStudy, SensitivityStudy
from jaxmlcl.studies._enhancement import DistributionSet, EnhancementStudy, Recovery
from jaxmlcl.studies._files import find_study, list_studies, load_study, study_name
from jaxmlcl.studies._processes import run_in_processes
from jaxmlcl.studies._runner import Cell, cells, run_study
from jaxmlcl.studies._study import DataSet, Fitted, Method, Networks, Reference, Study, Table
from jaxmlcl.studies._tables import write_tables
from jaxmlcl.studies._work import finished, plan, run, write

__all__ = [
    "Cell",
    "ConvergenceStudy",
    "DataSet",
    "DistributionSet",
    "EnhancementStudy",
    "Fitted",
    "Method",
    "Networks",
    "Recovery",
    "Reference",
    "SensitivityStudy",
    "Study",
    "Table",
    "cells",
    "find_study",
    "finished",
    "list_studies",
    "load_study",
    "plan",
    "run",
    "run_in_processes",
    "run_study",
    "study_name",
    "write",
    "write_tables",
]
