"""What a comparison runs: columns (methods and variants) x budgets x seeds, each with its whole configuration."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from pcm_rl.config import (
    METHODS,
    SET_BY_METHODS,
    Config,
    ConfigError,
    as_written,
    config_keys,
    load_config,
    save_config,
)
from pcm_rl.training.generations import generations

_SET_BY_COMPARE = {"seed": "--seeds", "name": "name=... for all columns", "run_dir": "run_dir=... for all columns"}
_TRAIN = (sys.executable, "-m", "pcm_rl.cli", "train")
_NOT_COMPARED = ("run_dir", "name", "patience")  # where a run lies, and when it is given up


@dataclass(frozen=True)
class Comparison:
    """What is asked for.

    Attributes:
        recipe: YAML file; None for the defaults.
        overrides: ``key=value`` changes for all columns.
        methods: Names in :data:`~pcm_rl.config.methods.METHODS`, a column each.
        variants: Further columns: name -> overrides; ``method=NAME`` among them sets what a method sets.
        budgets: A run for each, of every column whose selection has a budget and that does not set it itself; empty
            takes the recipe's.
        seeds: A run of every column for each.
    """

    recipe: str | Path | None = None
    overrides: Sequence[str] = ()
    methods: Sequence[str] = ("full-valid", "pcm", "random-valid")
    variants: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    budgets: Sequence[int] = ()
    seeds: Sequence[int] = (0,)

    @property
    def folder(self) -> Path:
        """Folder of the comparison, which holds its runs and tables."""
        base = load_config(self.recipe, self.overrides)
        return Path(base.run_dir) / (base.name or "compare")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        method: Name of the column: a method or a variant.
        budget: B, None where the selection has none.
        overrides: What the column changes in the recipe.
        config: The whole configuration.
    """

    method: str
    budget: int | None
    overrides: tuple[str, ...]
    config: Config

    @property
    def column(self) -> str:
        """Method and budget."""
        return column_name(self.method, self.budget)

    @property
    def name(self) -> str:
        """Method, budget and seed: the name of the run's folder."""
        return f"{self.column}-seed{self.config.seed}"


def column_name(method: str, budget: int | str | None) -> str:
    """``pcm-b12``, or ``full-valid`` where there is no budget."""
    return method if budget in (None, "") else f"{method}-b{budget}"


def plan_runs(comparison: Comparison) -> list[PlannedRun]:
    """Every run, all columns of the first seed first, so that an interrupted comparison holds whole pairs.

    Runs use one thread where the recipe does not say how many. Unless an override says so, they make no films, and go
    on without a success: a table needs all its rows.

    Raises:
        ConfigError: A method is unknown, two columns have one name, or an override is the comparison's to set.
        FileNotFoundError: There is no such recipe.
    """
    _check_overrides(comparison.overrides, comparison.methods)
    for name, values in (("methods", comparison.methods), ("budgets", comparison.budgets), ("seeds", comparison.seeds)):
        if len(set(values)) < len(values):
            raise ConfigError(f"{name} must differ from one another, got {', '.join(map(str, values))}")
    columns = [
        column for method, changes in _columns(comparison) for column in _with_budgets(comparison, method, changes)
    ]
    if not columns or not comparison.seeds:
        raise ConfigError(f"nothing to run: got {len(columns)} columns and {len(comparison.seeds)} seeds")
    names = [column.column for column in columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two columns are named {', '.join(twice)}; give the variant another name")
    folder = comparison.folder
    return [_placed(column, seed, folder) for seed in comparison.seeds for column in columns]


def _check_overrides(overrides: Sequence[str], methods: Sequence[str]) -> None:
    keys = {override.partition("=")[0] for override in overrides}
    if "seed" in keys:
        raise ConfigError("a comparison takes its seeds from --seeds, got seed=")
    if methods and (wrong := sorted(keys & set(SET_BY_METHODS))):
        raise ConfigError(f"{wrong[0]} is set by --methods; name a method, or give a --variant")


def _columns(comparison: Comparison) -> list[tuple[str, tuple[str, ...]]]:
    """Name and overrides of every column."""
    columns = [(method, _overrides(method)) for method in comparison.methods]
    for name, overrides in comparison.variants.items():
        if name in METHODS:
            raise ConfigError(f"{name!r} is a method; name the variant otherwise, such as {name}-2:method={name},...")
        changes: list[str] = []
        for override in overrides:
            key, _, value = override.partition("=")
            if key in _SET_BY_COMPARE:
                raise ConfigError(f"variant {name!r} sets {key}, which a comparison sets; use {_SET_BY_COMPARE[key]}")
            changes += _overrides(value) if key == "method" else [override]
        columns.append((name, tuple(changes)))
    return columns


def _overrides(method: str) -> tuple[str, ...]:
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    return METHODS[method].overrides()


def _with_budgets(comparison: Comparison, method: str, changes: tuple[str, ...]) -> list[PlannedRun]:
    """The column at each budget; a single one where the selection has none or the column sets its own."""
    base = _load(comparison, changes)
    if base.selection.rule.budget == "none":
        return [PlannedRun(method, None, changes, base)]
    configs = [_load(comparison, (f"selection.budget={budget}", *changes)) for budget in comparison.budgets] or [base]
    found = {config.selection.budget: config for config in configs}
    return [PlannedRun(method, budget, changes, config) for budget, config in found.items()]


def _load(comparison: Comparison, changes: Sequence[str]) -> Config:
    config = load_config(comparison.recipe, ["record=false", "patience=0", *comparison.overrides, *changes])
    return config if config.threads is not None else dataclasses.replace(config, threads=1)


def _placed(column: PlannedRun, seed: int, folder: Path) -> PlannedRun:
    run = dataclasses.replace(column, config=dataclasses.replace(column.config, seed=seed))
    config = dataclasses.replace(run.config, run_dir=str(folder), name=run.name)
    return dataclasses.replace(run, config=config)


def run_state(run: PlannedRun) -> str:
    """``new``, ``unfinished`` (there is a checkpoint) or ``finished`` (there is a summary of the whole run).

    Raises:
        ConfigError: The folder holds a run of another configuration.
    """
    folder = run.config.folder
    finished = _has_summary(folder)
    if not finished and not generations(folder):
        return "new"
    if changed := changed_keys(load_config(folder / "config.yaml"), run.config):
        made, now = (", ".join(f"{key}={pair[i]}" for key, pair in changed.items()) for i in (0, 1))
        raise ConfigError(
            f"{folder} was made with {made}, now {now}; give this comparison another name=..., or delete the folder"
        )
    return "finished" if finished else "unfinished"


def _has_summary(folder: Path) -> bool:
    try:
        return "after" in json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # the run was cut while it wrote its summary
        return False


def changed_keys(made: Config, planned: Config) -> dict[str, tuple[object, object]]:
    """Dotted key -> (value that a run was made with, value now), for all but the place of its folder."""
    pairs = {key: (_value(made, key), _value(planned, key)) for key in config_keys() if key not in _NOT_COMPARED}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _value(config: Config, key: str) -> object:
    value: object = as_written(reduce(getattr, key.split("."), config))
    return value


def prepare_run(run: PlannedRun) -> list[str] | None:
    """Make the folder of a run ready, and give the ``pcm-rl train`` that begins or continues it.

    Returns:
        The command; None where the run has finished.

    Raises:
        ConfigError: The folder holds a run of another configuration.
    """
    folder, state = run.config.folder, run_state(run)
    if state == "finished":
        return None
    if state == "unfinished":
        return [*_TRAIN, "--resume", str(folder)]
    (folder / "metrics.csv").unlink(missing_ok=True)  # of a run that was cut before its first checkpoint
    save_config(run.config, folder / "config.yaml")
    return [*_TRAIN, "--config", str(folder / "config.yaml")]
