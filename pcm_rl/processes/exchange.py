"""A step's rows on several processes: all get what the selection needs; observations are sent for kept rows only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase

from pcm_rl.episodes import (
    CHUNK,
    CHUNK_ID,
    CUT,
    CUT_EXEMPT,
    DONE,
    EPISODE,
    GROUP,
    IS_PAD,
    OUTCOME,
    PHASE,
    REWARD,
    SUCCESS,
    WEIGHT,
)
from pcm_rl.processes.messages import take_rows

if TYPE_CHECKING:
    from pcm_rl.processes.ranks import Ranks

# What advantage, padding and selection read or write: some hundred bytes per row; an image has 150 kB.
LIGHT = (CHUNK, IS_PAD, PHASE, SUCCESS, GROUP, EPISODE, CHUNK_ID, REWARD, DONE, OUTCOME, CUT, CUT_EXEMPT)
SOURCE = "source_row"  # [M] int64, number of a row among those of all processes
Complete = Callable[[TensorDictBase], TensorDictBase]


def exchange(ranks: Ranks, rows: TensorDict, also: tuple[NestedKey, ...] = ()) -> tuple[TensorDict, Complete]:
    """Send the light part of all rows to every process; the images of rows that are not kept are never sent.

    With one process nothing is sent; the result is the same pair.

    Args:
        ranks: The processes.
        rows: ``[m]`` rows of the whole groups that this process has collected, phases labelled, episodes numbered from
            0 without gaps; none, without any entry, where all its groups were dropped.
        also: Further entries of the light part, such as what a critic reads.

    Returns:
        The light rows ``[M]`` of all processes, in the order of ranks, with episodes numbered over all processes; and a
        function that adds all other entries to rows taken from them, in any order and also repeated. All processes call
        it with the same rows.

    Raises:
        RuntimeError: No process has a row.
    """
    number_episodes(ranks, rows)
    light_keys = (*LIGHT, *also)
    light = ranks.gather_rows(rows.select(*light_keys, strict=False))
    refuse_nothing(light)
    light.set(SOURCE, torch.arange(len(light)))
    first = sum(ranks.gather_json(len(rows))[: ranks.rank])
    return light, functools.partial(_complete, ranks, rows.exclude(*light_keys), first)


def number_episodes(ranks: Ranks, rows: TensorDict) -> TensorDict:
    """Number the episodes of ``rows [m]`` over all processes, in the order of ranks; in place."""
    if ranks.size > 1:
        episodes = ranks.gather_json(int(rows.get(EPISODE).max()) + 1 if len(rows) else 0)
        if len(rows):
            rows.set(EPISODE, rows.get(EPISODE) + sum(episodes[: ranks.rank]))
    return rows


def refuse_nothing(rows: TensorDictBase) -> None:
    """Raise ``RuntimeError`` if there is no row: every group of every process was dropped."""
    if not len(rows):
        raise RuntimeError("no process has an episode left: every group was given up; the warnings say why")


def _complete(ranks: Ranks, observations: TensorDict, first: int, light: TensorDictBase) -> TensorDictBase:
    """Add the observations to each row of ``light [R]``; a repeated row is sent once."""
    selection = [light.get(SOURCE)] + ([light.get(WEIGHT)] if WEIGHT in light.keys() else [])
    ranks.check_same("selections", selection)
    source, place = light.get(SOURCE).unique(return_inverse=True)
    local_rows = source[(source >= first) & (source < first + len(observations))] - first
    # sources ascend, and so do their ranks: the gathered rows have the order of `source`
    gathered = ranks.gather_rows(take_rows(observations, local_rows))
    return light.exclude(SOURCE).update(take_rows(gathered, place))
