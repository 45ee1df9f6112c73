"""Figures of a plan from what a run has measured: ``metrics.csv`` and ``config.yaml`` of its folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcm_rl.config import Config, ConfigError, UpdateConfig, load_run_config
from pcm_rl.plan.costs import Costs
from pcm_rl.plan.figures import Episodes, Simulators
from pcm_rl.plan.recipe import slots_of
from pcm_rl.plan.rollout import play
from pcm_rl.reports.numbers import mapping, number
from pcm_rl.reports.run_files import RunFiles

NARROW = 0.2  # chunks of a run's updates that differ by less say nothing about what an update takes beside its chunks
MAX_ROWS = 2**31  # of a micro-batch that is a whole minibatch
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What a run says.

    Attributes:
        config: Of the run, with changes.
        simulators: Its environments; the seconds of the rollout, decisions included, are theirs.
        costs: Of its update and, where environments are in one process, of a call for a decision.
        episodes: Success rate, lengths, and share of groups with both outcomes, over all steps.
        steps: Training steps that they are from.
        trajectories: Rollouts of each.
    """

    config: Config
    simulators: Simulators
    costs: Costs
    episodes: Episodes
    steps: int
    trajectories: int


def read_run(folder: Path, overrides: Sequence[str] = ()) -> Measured:
    """Figures of a run that one process has made.

    Args:
        folder: Its folder.
        overrides: ``key=value`` changes of its configuration, such as ``groups=16``; its measured seconds stay. More
            workers than the run had wait for its cores: what they would take together was not measured.

    Raises:
        ConfigError: It has made no step with an update yet, or several processes have made it.
        FileNotFoundError: The folder holds no run.
    """
    made, config = load_run_config(folder), load_run_config(folder, overrides)
    files = RunFiles(folder)
    if "processes" in str(files.summary.get("hardware", "")):
        raise ConfigError(f"{folder} was made by several processes; a plan starts from a run of one process")
    played = _where(files.metrics, files.metrics["env_steps"] > 0)
    updated = _where(played, np.isfinite(played["update_s"]) & (played["chunks_kept"] > 0))
    if not len(updated["step"]):
        raise ConfigError(f"{folder} has no step with an update in metrics.csv, and a plan needs what an update takes")
    row_s, step_s = _update_line(updated, files.summary.get("profile"), made.update)
    costs = Costs(update_row_s=row_s, update_step_s=step_s, micro_rows=made.update.micro_rows or MAX_ROWS)
    episodes = _episodes(played, made)
    trajectories = round(float(played["trajectories"].mean()))
    lengths = episodes.lengths(trajectories)
    simulators, call_s = rollout_fit(made, lengths, _chunks(played, made), played["rollout_s"])
    simulators = dataclasses.replace(simulators, workers=config.env.num_envs)
    costs = dataclasses.replace(costs, decision_call_s=call_s)
    return Measured(config, simulators, costs, episodes, len(played["step"]), trajectories)


def _where(table: dict[str, Array], rows: NDArray[np.bool_]) -> dict[str, Array]:
    return {name: values[rows] for name, values in table.items()}


def rollout_fit(config: Config, lengths: Sequence[int], chunks: Array, seconds: Array) -> tuple[Simulators, float]:
    """Environments that play as fast as those of a run, decisions included, and the seconds of a call for a decision.

    Workers have a core each, and their decisions are not told apart. Environments in one process are stepped one after
    the other, then all are decided for: a line through the steps tells calls and chunks apart, as that of the update.

    Args:
        config: The run.
        lengths: Chunks of the episodes of a step.
        chunks: ``[N]``, executed in each step.
        seconds: ``[N]``, of each rollout.
    """
    envs = config.env.num_envs
    if config.env.workers:
        unit = Simulators(chunk_s=1.0, reset_s=0.0, spread=0.0, workers=envs, cores=envs)
        rollout_s = float(np.median(seconds / chunks)) * sum(lengths)
        return dataclasses.replace(unit, chunk_s=rollout_s / play(lengths, unit, Costs()).seconds), 0.0
    unit = Simulators(chunk_s=1.0, reset_s=0.0, spread=0.0, workers=envs, cores=1, in_step=True)
    chunk_s, call_s = line(chunks, seconds, play(lengths, unit, Costs()).calls)
    return dataclasses.replace(unit, chunk_s=chunk_s), call_s


def _update_line(updated: dict[str, Array], profile: object, update: UpdateConfig) -> tuple[float, float]:
    """Seconds of a chunk and of an optimiser step.

    Where a run's updates are too alike, as with a budget for the batch, the methods that were measured at its end tell
    the two apart. They are scaled to the run's own updates, since other work may have run beside them.
    """
    chunks, seconds = updated["chunks_kept"], updated["update_s"] / update.epochs
    row_s, step_s = line(chunks, seconds, update.minibatches)
    costs = [mapping(cost) for cost in profile] if isinstance(profile, list) else []
    points = [(number(cost, "rows"), number(cost, "update_s")) for cost in costs]
    points = [point for point in points if min(point) > 0]
    if step_s > 0 or len({point[0] for point in points}) < 2:
        return row_s, step_s
    rows, taken = np.array(points).T
    row_s, step_s = line(rows, taken / update.epochs, update.minibatches)
    scale = float(np.median(seconds / (row_s * chunks + update.minibatches * step_s)))
    return scale * row_s, scale * step_s


def line(chunks: Array, seconds: Array, calls: int) -> tuple[float, float]:
    """Seconds of a chunk, and of each of ``calls`` calls beside its chunks.

    The line is that of Theil and Sen: the median slope over all pairs, so that steps beside other work do not count.
    Where the chunks hardly differ, or the line falls or begins below 0, seconds are proportional to chunks.

    Args:
        chunks: ``[N]``.
        seconds: ``[N]``.
        calls: Optimiser steps of an update, or decisions of a rollout.
    """
    proportional = float(np.median(seconds / chunks)), 0.0
    if chunks.max() - chunks.min() < NARROW * np.median(chunks):
        return proportional
    first, second = np.triu_indices(len(chunks), 1)
    differ = chunks[first] != chunks[second]
    first, second = first[differ], second[differ]
    slope = float(np.median((seconds[second] - seconds[first]) / (chunks[second] - chunks[first])))
    beside = float(np.median(seconds - slope * chunks))
    return (slope, beside / calls) if slope > 0 and beside >= 0 else proportional


def _chunks(table: dict[str, Array], config: Config) -> Array:
    """Chunks that were executed in each step: a success ends in the middle of its last one, on average."""
    length = config.env.chunk_length
    unfinished = table["success"] * table["trajectories"] * (length - 1) / 2
    return (table["env_steps"] + unfinished) / length


def _episodes(table: dict[str, Array], config: Config) -> Episodes:
    """A failure has all slots, unless that contradicts the mean; then successes and failures have the mean."""
    trajectories = table["trajectories"].sum()
    mean = float(_chunks(table, config).sum() / trajectories)
    rate = float((table["success"] * table["trajectories"]).sum() / trajectories)
    slots = slots_of(config)
    success = (mean - (1.0 - rate) * slots) / rate if rate > 0 else math.nan
    fits = config.rollouts.cut is None and 1.0 <= success <= slots
    lengths = (success, float(slots)) if fits else (max(mean, 1.0), max(mean, 1.0))
    mixed = float(table["groups_mixed"].sum() / table["groups"].sum())
    return Episodes(min(rate, 1.0), *lengths, mixed=min(mixed, 1.0))
