"""`jaxmlcl config CONFIG`: the resolved experiment, and where each of its values comes from."""

from __future__ import annotations

from jaxmlcl.cli.train import resolve

_ABOUT = """\
Print the experiment of CONFIG as `jaxmlcl train` would run it, one line for each field: its path,
its value, and whether that is the default, the file's, a flag's or the environment's. With --json,
print it as JSON, which is a CONFIG too.

"""
_WIDEST = 44  # characters of a value up to which the next column stays aligned


def run(words: list[str]) -> None:
    """Print the table, or JSON."""
    as_json = "--json" in words
    resolved = resolve("config", [word for word in words if word != "--json"], _ABOUT)
    if resolved is None:
        return
    from jaxmlcl.config import provenance, to_json

    if as_json:
        print(to_json(resolved.experiment), end="")
        return
    rows = provenance(resolved.experiment, resolved.path, resolved.flags)
    path_width = max(len(row.path) for row in rows)
    value_width = min(_WIDEST, max(len(row.value) for row in rows))
    for row in rows:
        print(f"{row.path:<{path_width}} = {row.value:<{value_width}}  ({row.source})")
