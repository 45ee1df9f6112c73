"""Texts that a recipe takes from the environment, ``${oc.env:TOKEN}``: used as they are, written as in the recipe.

A token or a password is no part of a run's files. Each such text carries the recipe's own, so that whatever is written
can have that in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf

_MARK = "${oc.env:"
Path = tuple[str | int, ...]


class FromEnvironment(str):
    """A text with a part from the environment.

    Attributes:
        written: The text in the recipe.
    """

    written: str

    def __new__(cls, value: str, written: str) -> FromEnvironment:
        """``value``, which is ``written`` in the recipe."""
        text = super().__new__(cls, value)
        text.written = written
        return text

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.written


def mark(config: Any, given: Container) -> None:
    """Replace the texts in ``config``, an object made from ``given``, that are from the environment; in place."""
    for path, text in _interpolated(given, ()):
        *way, last = path
        place = config
        for step in way:
            place = getattr(place, step) if dataclasses.is_dataclass(place) else place[step]  # type: ignore[arg-type]
        if dataclasses.is_dataclass(place):
            value = getattr(place, str(last))
            marked = FromEnvironment(value, text) if isinstance(value, str) else value
            object.__setattr__(place, str(last), marked)  # frozen, and not seen by anyone yet
        elif isinstance(place[last], str):
            place[last] = FromEnvironment(place[last], text)


def as_written(value: Any) -> Any:
    """``value``, sections as mappings, with the recipe's text in place of what the environment gave."""
    if isinstance(value, FromEnvironment):
        return value.written
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: as_written(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_written(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_written(part) for part in value]
    return value


def differences(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configurations differ: dotted key -> value of each, as they are written."""
    first, second = _flat(as_written(one)), _flat(as_written(other))
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def _flat(entries: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(entries, dict):
        return {prefix.removesuffix("."): entries}
    return {name: value for key, part in entries.items() for name, value in _flat(part, f"{prefix}{key}.").items()}


def _interpolated(node: Container, path: Path) -> Iterator[tuple[Path, str]]:
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        child: Any = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig) and not (child._is_none() or child._is_interpolation()):
            yield from _interpolated(child, (*path, key))
        elif OmegaConf.is_interpolation(node, key) and _MARK in str(child._value()):
            yield (*path, key), str(child._value())
