"""Rows of another trainer's batch: each one's share in that trainer's objective, and what a choice leaves of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl.algos.sampler import PCMSampler
from pcm_rl.episodes import EPISODE, WEIGHT, column_of, numbered
from pcm_rl.inputs import entry, number_per_row

SHARE = "objective_share"  # [M] float64, the objective is the sum over rows of it times the row's mean over its tokens


def choose_rows(rows: TensorDictBase, sampler: PCMSampler) -> TensorDictBase:
    """Kept rows ``[R]`` of ``rows [M]``, with the weights of the objective that the rows came with.

    A rule with a budget for the batch keeps shares as they are. Where each trajectory has a budget, its kept rows share
    what the whole trajectory had, each in proportion to its own; a trajectory that keeps nothing leaves its share to
    the others. ``PCMSampler(selection="none")`` keeps all rows: then the gradient is the other trainer's.

    Args:
        rows: Whole episodes with ``"phase"`` and :data:`SHARE`, of ``rlinf_rows`` or ``simplevla_rows``.
        sampler: Chooses; its ``stats`` are filled, and this is one step of its keep probabilities.

    Returns:
        ``[R]`` rows with ``"weight" [R]`` float32: the mean over rows of the weight times the mean over the row's
        tokens is the objective. :data:`SHARE` is ``weight / R``.

    Raises:
        KeyError: If an entry is missing.
        ValueError: What :func:`~pcm_rl.select_chunks` raises.
    """
    share = number_per_row(SHARE, entry(rows, SHARE), len(rows)).double()
    index = sampler.select(rows).index
    kept = share[index]
    if sampler.rule.budget == "trajectory":
        trajectory, count = numbered(column_of(rows, EPISODE))
        whole, left = (
            share.new_zeros(count).index_add_(0, number, part)
            for number, part in ((trajectory, share), (trajectory[index], kept))
        )
        rest = whole.sum() / whole[left > 0].sum()  # 1, where each trajectory keeps something
        kept = kept * (rest * whole / left)[trajectory[index]]
    return rows[index].set(SHARE, kept).set(WEIGHT, (kept * len(index)).float())


def one_advantage(advantages: Tensor, counted: Tensor) -> Tensor:
    """The advantage of each row, ``[M]``, of ``advantages [M, E]`` that must be the same wherever ``counted [M, E]``.

    Raises:
        ValueError: If a row has several.
    """
    least = advantages.masked_fill(~counted, torch.inf).amin(-1)
    most = advantages.masked_fill(~counted, -torch.inf).amax(-1)
    if bool((least != most).any()):
        row = int((least != most).nonzero()[0])
        raise ValueError(
            f"a chunk has advantages from {float(least[row]):g} to {float(most[row]):g} (counted row {row}): expected "
            "one for each chunk, as of GRPO or of values for each chunk"
        )
    return most


def tensor_of(batch: Mapping[str, Any], key: str) -> Tensor:
    """A tensor of another trainer's batch.

    Raises:
        KeyError: If it is missing or None.
    """
    value = batch.get(key, None)
    if not isinstance(value, Tensor):
        raise KeyError(f"the batch lacks the tensor {key!r}; it has {sorted(map(str, batch.keys()))}")
    return value
