"""A step's rows on several processes: all see what the selection needs, and only kept rows bring their observations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase

from pcm_rl.episodes import CHUNK, CHUNK_ID, DONE, EPISODE, GROUP, IS_PAD, PHASE, REWARD, SUCCESS, WEIGHT
from pcm_rl.processes.messages import take_rows

if TYPE_CHECKING:
    from pcm_rl.processes.ranks import Ranks

# What advantage, padding and selection read or write: some hundred bytes a row, against 150 kB of an image.
LIGHT = (CHUNK, IS_PAD, PHASE, SUCCESS, GROUP, EPISODE, CHUNK_ID, REWARD, DONE)
SOURCE = "source_row"  # [M] int64, number of a row among those of all processes
Complete = Callable[[TensorDictBase], TensorDictBase]


def exchange(ranks: Ranks, rows: TensorDict, also: tuple[NestedKey, ...] = ()) -> tuple[TensorDict, Complete]:
    """Show every process the light part of all rows; the images of rows that are not kept are never touched.

    Alone, nothing is sent: the rows without what they saw, and a function that gives rows their observations again.

    Args:
        ranks: The processes.
        rows: ``[m]`` rows of the whole groups that this process has collected, phases labelled, episodes numbered from
            0 without gaps.
        also: Further entries that all processes get of all rows, such as what a critic reads.

    Returns:
        The rows ``[M]`` of all processes without what they saw, in the order of ranks, episodes numbered over all of
        them; and a function that all processes call with the same rows taken from those (in any order, also several
        times) and that gives these rows with everything.
    """
    number_episodes(ranks, rows)
    shared = (*LIGHT, *also)
    light = ranks.gather_rows(rows.select(*shared, strict=False))
    light.set(SOURCE, torch.arange(len(light)))
    first = sum(ranks.gather_json(len(rows))[: ranks.rank])
    return light, functools.partial(_complete, ranks, rows.exclude(*shared), first)


def number_episodes(ranks: Ranks, rows: TensorDict) -> TensorDict:
    """Number the episodes of ``rows [m]`` over all processes, those of lower ranks first; in place."""
    if ranks.size > 1:
        episodes = ranks.gather_json(int(rows.get(EPISODE).max()) + 1)
        rows.set(EPISODE, rows.get(EPISODE) + sum(episodes[: ranks.rank]))
    return rows


def _complete(ranks: Ranks, heavy: TensorDict, first: int, light: TensorDictBase) -> TensorDictBase:
    """Bring the heavy part of each row in ``light [R]`` from where it is; a row that is there twice travels once."""
    drawn = [light.get(SOURCE)] + ([light.get(WEIGHT)] if WEIGHT in light.keys() else [])
    ranks.check_same("selections", drawn)
    source, place = light.get(SOURCE).unique(return_inverse=True)
    mine = source[(source >= first) & (source < first + len(heavy))] - first
    # sources ascend, and so do the ranks that they are on: what is gathered has the order of `source`
    brought = ranks.gather_rows(take_rows(heavy, mine))
    return light.exclude(SOURCE).update(take_rows(brought, place))
