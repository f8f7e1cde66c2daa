"""`jaxmlcl bench loss` and `jaxmlcl bench input`: what this machine does in a second, and why."""

from __future__ import annotations

import importlib

from jaxmlcl.cli import near
from jaxmlcl.errors import UserError

ACTIONS = ("loss", "input")

_HELP = """\
usage: jaxmlcl bench loss [--FIELD VALUE ...]
       jaxmlcl bench input CONFIG|SOURCE [--FIELD VALUE ...]

Measure this machine: time and memory of the loss beside its peers, or images per second of each
stage of the input pipeline and what bounds a run. jaxmlcl bench ACTION --help says more;
--debug shows the traceback of an error.
"""


def run(words: list[str]) -> None:
    """Measure what the first word names."""
    if not words:
        raise UserError("bench: name what is measured, loss or input; see jaxmlcl bench --help")
    if words[0] in ("-h", "--help"):
        print(_HELP, end="")
    elif words[0] in ACTIONS:
        importlib.import_module(f"jaxmlcl.cli.bench_{words[0]}").run(words[1:])
    else:
        raise UserError(
            f'bench: unknown action "{words[0]}"{near(words[0], ACTIONS)}; see jaxmlcl bench --help'
        )
