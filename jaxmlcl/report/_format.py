"""How the report writes numbers; what is not a finite number becomes a dash."""

from __future__ import annotations

import math
from typing import Any

from jaxmlcl.report._read import number

DASH = "\N{EN DASH}"


def decimal(value: Any, digits: int = 3) -> str:
    """A number with a fixed number of decimals, or a dash where there is none.

    Example:
      >>> decimal(0.87654), decimal(None), decimal(float("nan"))
      ('0.877', '–', '–')
    """
    x = number(value)
    return f"{x:.{digits}f}" if math.isfinite(x) else DASH


def count(value: Any) -> str:
    """A count or an amount with thousands separated and at least three digits kept.

    Example:
      >>> count(24000), count(1234.5678), count(0.01234), count(None)
      ('24,000', '1,235', '0.0123', '–')
    """
    x = number(value)
    if not math.isfinite(x):
        return DASH
    if x == int(x) or abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.1f}" if abs(x) >= 100 else f"{x:.3g}"


def amount_of_bytes(value: Any) -> str:
    """A number of bytes in decimal units.

    Example:
      >>> amount_of_bytes(999), amount_of_bytes(1_250_000), amount_of_bytes(2e12)
      ('999 B', '1.25 MB', '2 TB')
    """
    x = number(value)
    for unit in ("B", "kB", "MB", "GB"):
        if not abs(x) >= 1000:
            return f"{x:.3g} {unit}" if math.isfinite(x) else DASH
        x /= 1000
    return f"{x:.3g} TB"


def duration(value: Any) -> str:
    """A time in seconds for people.

    Example:
      >>> duration(4.21), duration(83), duration(7260), duration(30)
      ('4.2 s', '1 min 23 s', '2 h 1 min', '30 s')
    """
    x = number(value)
    if not math.isfinite(x):
        return DASH
    if x < 10:
        return f"{x:.1f} s"
    minutes, seconds = divmod(round(x), 60)
    if minutes == 0:
        return f"{seconds} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min {seconds} s"
