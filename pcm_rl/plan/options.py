"""``key=value`` of a plan: figures in five sections, and all options of a recipe."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from pcm_rl.config import ConfigError
from pcm_rl.plan.costs import Costs
from pcm_rl.plan.figures import Card, Episodes, Network, Simulators

SECTIONS: dict[str, type] = {"card": Card, "network": Network, "simulators": Simulators, "episodes": Episodes}
SECTIONS["costs"] = Costs
Given = Mapping[str, Mapping[str, Any]]
Section = TypeVar("Section", Card, Network, Simulators, Episodes, Costs)


def split_options(overrides: Sequence[str]) -> tuple[Given, list[str]]:
    """Figures by section and field, and the overrides that are a recipe's.

    Args:
        overrides: ``key=value``; the last one of a key counts.

    Raises:
        ConfigError: A key of a plan's section is unknown (with the nearest known one), or its value is no number.
    """
    given: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    others = []
    for override in overrides:
        key, _, text = override.partition("=")
        section, _, name = key.partition(".")
        if section in SECTIONS:
            given[section][name] = _value(section, name, text)
        else:
            others.append(override)
    return given, others


def changed(section: Section, given: Given) -> Section:
    """A section of figures with those that are given."""
    return dataclasses.replace(section, **given[section.SECTION.rstrip(".")])


def _value(section: str, name: str, text: str) -> float | int | bool | None:
    kinds = {key: kind for key, kind in get_type_hints(SECTIONS[section]).items() if key != "SECTION"}
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.3)
        hint = f"; did you mean {f'{section}.{near[0]}'!r}?" if near else f"; it has {', '.join(kinds)}"
        raise ConfigError(f"unknown key {f'{section}.{name}'!r}{hint}")
    kind = kinds[name]
    if kind is bool:
        if text in ("true", "false"):
            return text == "true"
        raise ConfigError(f"{section}.{name} must be true or false, got {text!r}")
    if kind not in (int, float) and text == "null":
        return None
    whole = int in (kind, *get_args(kind))
    try:
        return int(text) if whole else float(text)
    except ValueError:
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{section}.{name} must be {what}, got {text!r}") from None
