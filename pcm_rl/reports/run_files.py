"""The content of the files in a run's folder, as far as they exist and can be read."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from pcm_rl.reports.columns import EVALUATION, METRICS, headers
from pcm_rl.reports.figures import Array
from pcm_rl.reports.numbers import DASH, mapping, mean, to_float

MAX_POINTS = 400  # more points are not visible on a page and only enlarge it


class RunFiles:
    """The files of a run.

    Args:
        folder: The run's folder.

    Attributes:
        problems: The reason why a file is missing or cannot be read, by its name.
        extra: Columns of ``metrics.csv`` that only this run has, from a user's rule or advantage.
        metrics: Columns of ``metrics.csv``, ``[N]`` each, ordered by step.
        evaluation: Columns of ``evaluation.csv``, likewise.
        config: ``config.yaml``.
        summary: ``summary.json``.
        budget: ``budget.json``.
        stride: Number of steps for each point of ``curves``.
        curves: ``metrics``, in at most :data:`MAX_POINTS` points.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: dict[str, str] = {}
        known = headers(METRICS)
        self.extra: list[str] = [name for name in self.read("metrics.csv", _header) or () if name not in known]
        self.metrics = self._columns("metrics.csv", [*known, *self.extra])
        self.evaluation = self._columns("evaluation.csv", headers(EVALUATION))
        self.config = mapping(self.read("config.yaml", _yaml))
        self.summary = mapping(self.read("summary.json", _json))
        self.budget = mapping(self.read("budget.json", _json))
        self.steps = self.metrics["step"].size
        self.stride = max(1, math.ceil(self.steps / MAX_POINTS))
        self.curves = _binned(self.metrics, self.stride) if self.stride > 1 else self.metrics

    def read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        """The result of ``reader`` for a file, or None with the reason in ``problems``."""
        path = self.folder / name
        if not path.is_file():
            self.problems[name] = f"{name} is missing: the run has not written it (yet)."
            return None
        try:
            return reader(path)
        except Exception as error:  # a half-written file can cause any error; the page is still written
            self.problems[name] = f"{name} cannot be read: {type(error).__name__}: {error}"
            return None

    def setting(self, key: str) -> str:
        """A dotted key of the configuration, a dash where absent."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return DASH if value is None else str(value)

    def _columns(self, name: str, columns: Sequence[str]) -> dict[str, Array]:
        table: dict[str, Array] | None = self.read(name, lambda path: _table(path, columns))
        return table or {column: np.zeros(0) for column in columns}


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [name for name in next(csv.reader(file), []) if name]


def _table(path: Path, columns: Sequence[str]) -> dict[str, Array]:
    """Columns of a CSV file, ordered by step; an absent column or an empty cell is nan."""
    with path.open(newline="", encoding="utf-8") as file:
        # a resumed run writes some steps again; the later row counts
        rows = {to_float(row.get("step")): row for row in csv.DictReader(file)}
    steps = sorted(step for step in rows if math.isfinite(step))
    return {name: np.array([to_float(rows[step].get(name)) for step in steps]) for name in columns}


def _binned(columns: dict[str, Array], size: int) -> dict[str, Array]:
    """Means over ``size`` rows at a time."""
    starts = np.arange(0, columns["step"].size, size)
    return {
        name: np.array([mean(values[start : start + size]) for start in starts]) for name, values in columns.items()
    }


def _yaml(path: Path) -> Any:
    # an interpolation may need values that are missing (environment variables); it is shown as written
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
