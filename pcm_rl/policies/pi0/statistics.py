"""Mean and standard deviation of states and actions: what a checkpoint's normalised numbers mean."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEROBOT = {"state": "observation.state", "actions": "action"}  # names in lerobot's statistics


@dataclass(frozen=True)
class Statistics:
    """As ``PI0Processor`` names them, in the environment's units.

    Attributes:
        state_mean: S numbers.
        state_std: S numbers, not negative.
        actions_mean: D numbers.
        actions_std: D numbers, not negative.

    Raises:
        ValueError: If a mean and its deviation have other lengths, or a number is not finite.
    """

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    actions_mean: tuple[float, ...]
    actions_std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("state", "actions"):
            mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
            if len(mean) != len(std) or not mean:
                raise ValueError(f"expected as many numbers in {name}_mean as in {name}_std, got {mean} and {std}")
            if not all(map(math.isfinite, (*mean, *std))) or min(std) < 0:
                raise ValueError(f"expected finite {name}_mean and {name}_std, not below 0, got {mean} and {std}")

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Statistics:
        """From ``state_mean``, ``state_std``, ``actions_mean`` and ``actions_std``, lists of numbers.

        Raises:
            ValueError: If one is missing, or is no list of numbers.
        """
        found = {}
        for name in cls.__dataclass_fields__:
            value = entries.get(name)
            try:
                found[name] = tuple(float(number) for number in value)  # type: ignore[union-attr]
            except (TypeError, ValueError):
                raise ValueError(f"expected {name} as a list of numbers, got {value!r}") from None
        return cls(**found)

    def as_dict(self) -> dict[str, list[float]]:
        """For a JSON file, which :meth:`of` reads again."""
        return {name: list(values) for name, values in asdict(self).items()}


def read_statistics(path: str | Path) -> Statistics:
    """From a JSON file: the four entries of :class:`Statistics`, or lerobot's ``meta/stats.json``.

    Raises:
        ValueError: If there is no such file, or it holds no statistics.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    try:
        return Statistics.of(_from_lerobot(content) if LEROBOT["actions"] in content else content)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _from_lerobot(content: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: content.get(key, {}) for name, key in LEROBOT.items()}
    return {f"{name}_{what}": part.get(what) for name, part in parts.items() for what in ("mean", "std")}
