"""Checks of configuration values, with messages that say what would fit."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which key and what would fit."""


def at_least(least: float, config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` if one of the fields ``names`` is below ``least``."""
    for name in names:
        if getattr(config, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(config, name)}")


def one_of(config: Any, name: str, known: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if field ``name`` is none of ``known``."""
    value = getattr(config, name)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}{hint}")
