"""How long the loss takes and what memory it needs, beside the forms people write; the input.

- `LossProblem`: what is computed; `bench_loss`: its `LossFigures` on this machine
- `temporaries`: bytes that XLA plans, without running; `resident_peaks`: bytes measured
- `bench_input`: images per second of each stage of the input pipeline
- `rows`, `summary`, `aligned`: the figures as text

PyTorch is imported only by the processes of its own forms.
"""

from jaxmlcl.bench._forms import (
    CLASS_SUMS,
    COMPILED,
    EAGER,
    JAX_FORMS,
    OURS,
    TORCH_FORMS,
    WEIGHTS,
    counted_bytes,
    forms_of,
)
from jaxmlcl.bench._input import InputFigures, bench_input, step_rate
from jaxmlcl.bench._jax_side import JaxSide, temporaries
from jaxmlcl.bench._measure import (
    FLOOR_TERMS,
    TOLERANCE,
    TORCH_MISSING,
    FormFigures,
    LossFigures,
    bench_loss,
    has_torch,
    median,
    resident_peaks,
)
from jaxmlcl.bench._problem import DTYPES, STRATEGIES, LossProblem
from jaxmlcl.bench._process import SideError, available_memory, side
from jaxmlcl.bench._table import HEADER, aligned, rows, short, spread, summary

__all__ = [
    "CLASS_SUMS",
    "COMPILED",
    "DTYPES",
    "EAGER",
    "FLOOR_TERMS",
    "HEADER",
    "JAX_FORMS",
    "OURS",
    "STRATEGIES",
    "TOLERANCE",
    "TORCH_FORMS",
    "TORCH_MISSING",
    "WEIGHTS",
    "FormFigures",
    "InputFigures",
    "JaxSide",
    "LossFigures",
    "LossProblem",
    "SideError",
    "aligned",
    "available_memory",
    "bench_input",
    "bench_loss",
    "counted_bytes",
    "forms_of",
    "has_torch",
    "median",
    "resident_peaks",
    "rows",
    "short",
    "side",
    "spread",
    "step_rate",
    "summary",
    "temporaries",
]
