"""Checks of configuration values, with messages that say what would fit."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which key and what would fit."""


def _key(config: Any, name: str) -> str:
    """The key as it stands in a recipe, such as ``update.lr``."""
    return f"{getattr(config, 'SECTION', '')}{name}"


def at_least(least: float, config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` if one of the fields ``names`` is below ``least``, or no int64 and no finite float."""
    for name, value in _given(config, names):
        if not least <= value < math.inf:
            raise ConfigError(f"{_key(config, name)} must be at least {least:g}, got {value}")
        if isinstance(value, int) and value >= 2**63:
            raise ConfigError(f"{_key(config, name)} must be below 2**63, got {value}")


def finite(config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` unless each of the fields ``names`` is finite."""
    for name, value in _given(config, names):
        if not math.isfinite(value):
            raise ConfigError(f"{_key(config, name)} must be a finite number, got {value}")


def positive(config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` unless the fields ``names`` are finite and above 0."""
    for name, value in _given(config, names):
        if not 0.0 < value < math.inf:
            raise ConfigError(f"{_key(config, name)} must be above 0, got {value}")


def within(low: float, high: float, config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` if one of the fields ``names`` is outside of ``[low, high]``."""
    for name, value in _given(config, names):
        if not low <= value <= high:
            raise ConfigError(f"{_key(config, name)} must be in [{low:g}, {high:g}], got {value}")


def _given(config: Any, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The fields ``names`` and their values; null, where a field may be null, passes every check of a number."""
    for name in names:
        if (value := getattr(config, name)) is not None:
            yield name, value


def one_of(config: Any, name: str, known: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if field ``name`` is none of ``known``."""
    value = getattr(config, name)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{_key(config, name)} must be one of {', '.join(known)}, got {value!r}{hint}")
