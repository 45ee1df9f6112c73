"""Numbers as readable text, and numbers from files with any content."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


def percent(share: float) -> str:
    """0.934 -> ``93.4 %``."""
    return f"{100 * share:.1f} %".replace(".0 %", " %") if math.isfinite(share) else DASH


def duration(seconds: float) -> str:
    """7500 -> ``2 h 05 min``."""
    if not math.isfinite(seconds) or seconds < 0:
        return DASH
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def amount(size: float) -> str:
    """Bytes in decimal units: 4.1e9 -> ``4.1 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def plain(value: float) -> str:
    """A number short enough for a table; a dash for nan."""
    if not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e12 else f"{value:.4g}"


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def to_float(value: Any) -> float:
    """A cell or a JSON value as a number, nan if it is none."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return result if math.isfinite(result) else math.nan  # an axis cannot show infinity


def number(row: dict[str, Any], key: str) -> float:
    """A key of a mapping as a number, nan if it is absent."""
    return to_float(row.get(key))


def mean(values: NDArray[np.float64]) -> float:
    """Mean of the entries that are not nan; nan if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def last(values: NDArray[np.float64]) -> float:
    """The last entry that is not nan; nan if there is none."""
    known = values[~np.isnan(values)]
    return float(known[-1]) if known.size else math.nan
