"""Write the tables of docs/configuration.md from the fields' own docstrings.

    python docs/fields.py           rewrite the tables
    python docs/fields.py --check   exit with 1 if they are not up to date

A table stands between `<!-- fields: CLASS -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jaxmlcl import config
from jaxmlcl.training.duration import Duration

PAGE = Path(__file__).parent / "configuration.md"
_BLOCK = re.compile(r"(<!-- fields: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WORDS = {int: "whole number", float: "number", bool: "True or False", str: "text"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}


def specs() -> dict[str, type]:
    """Every class whose fields a configuration sets, by name."""
    named = {name: getattr(config, name) for name in config.__all__}
    return {
        name: value
        for name, value in named.items()
        if dataclasses.is_dataclass(value) and isinstance(value, type) and value is not Duration
    }


def meanings(spec: type) -> dict[str, str]:
    """What stands below each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(spec))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split()) if is_text else ""
    return found


def takes(kind: Any) -> str:
    """What a field of this type takes, in words."""
    items = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{item!r}`".replace("'", '"') for item in items)
    if get_origin(kind) is tuple:
        if items[-1] is Ellipsis:
            return f"tuple of {_MANY.get(items[0]) or takes(items[0])}"
        return f"({', '.join(map(takes, items))}) pairs"
    if get_origin(kind) is dict:
        return f"dictionary from {takes(items[0])} to {takes(items[1])}"
    if isinstance(kind, types.UnionType):
        return " or ".join(takes(item) for item in items)
    if kind is type(None):
        return "`None`"
    if kind is Duration:
        return "[duration](#durations)"
    if kind in _WORDS:
        return _WORDS[kind]
    # Every class has a section of its own, a family of classes one together.
    section = kind.__name__.lower() + ("s" if inspect.isabstract(kind) else "")
    return f"[{kind.__name__}](#{section})"


def default_of(field: dataclasses.Field[Any]) -> str:
    """A field's default as a configuration file would write it."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, Duration):
        return f"`{value.unit}({value.count:g})`"
    if dataclasses.is_dataclass(value):
        plain = type(value)()
        own = (
            f"{one.name}={getattr(value, one.name)!r}"
            for one in dataclasses.fields(value)
            if getattr(value, one.name) != getattr(plain, one.name)
        )
        return f"`{type(value).__name__}({', '.join(own)})`"
    return "`" + repr(value).replace("'", '"') + "`"


def table(spec: type) -> str:
    """What a class is, and the Markdown table of its fields."""
    summary = f"{(inspect.getdoc(spec) or '').splitlines()[0]}\n"
    fields = dataclasses.fields(spec)
    if not fields:
        return f"{summary}It has no fields.\n"
    kinds, texts = typing.get_type_hints(spec), meanings(spec)
    rows = [["field", "takes", "default", "meaning"], ["---"] * 4]
    for field in fields:
        row = [f"`{field.name}`", takes(kinds[field.name]), default_of(field), texts[field.name]]
        rows.append([cell.replace("|", "\\|") for cell in row])
    return summary + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def render(page: str) -> str:
    """The page with every table made anew."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{table(specs()[m[2]])}\n{m[3]}", page)


def main() -> int:
    """Rewrite the page, or check it."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = render(page)
    if "--check" in sys.argv[1:]:
        return int(page != fresh)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
