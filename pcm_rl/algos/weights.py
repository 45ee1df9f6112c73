"""Weights of rows from several selections that one update uses together."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.envs.transforms import Transform

from pcm_rl.episodes import EPISODE, IS_PAD, TRAJECTORIES, WEIGHT, column_of
from pcm_rl.rules import Rule
from pcm_rl.selection import Selection


def trajectories_per_row(batch: TensorDictBase, selection: Selection, rule: Rule) -> float:
    """``I / R`` of a selection: the trajectories that its mean counts, over the rows that it kept.

    A row's weight is ``R / I * steps(row) / steps(trajectory)``, of which all but I is known. A budget for the batch
    counts the steps of all rows of a trajectory, another those of its kept rows.
    """
    weight = selection.weight
    if not weight.numel() or not bool(weight.any()):
        return 0.0
    steps, episode = (~batch.get(IS_PAD)).sum(-1), column_of(batch, EPISODE)
    heaviest = int(weight.argmax())
    row = selection.index[heaviest]
    if rule.budget != "batch":
        total = steps[selection.index][episode[selection.index] == episode[row]].sum()
    else:
        total = steps[episode == episode[row]].sum()
    return float(steps[row]) / (float(total) * float(weight[heaviest]))


def over_the_batch(rows: TensorDictBase, key: NestedKey = WEIGHT) -> TensorDictBase:
    """Rows ``[R]`` of one or several selections, weighted for a mean over the trajectories of all of them.

    A selection has weights for a mean over its own rows: concatenated with another, one that kept few rows a trajectory
    would weigh too little. ``weight * t / mean(t)``, with ``t`` the trajectories over the rows of each row's selection,
    is right for the union.

    Args:
        rows: ``[R]``, the batch of one update.
        key: Of the weights.

    Returns:
        ``rows`` itself where they are of one selection.
    """
    own = rows.get(TRAJECTORIES, None)
    return rows if own is None or rows.get(key, None) is None else _reweighted(rows, own, key)


def over_the_buffer(rows: TensorDictBase, buffer: ReplayBuffer, transform: Transform) -> TensorDictBase:
    """Rows read from ``buffer`` through ``transform``, weighted for a mean over all trajectories that it holds."""
    if TRAJECTORIES not in rows.keys():
        return rows
    members = (buffer, *getattr(buffer, "_rbs", ()))
    holder = next((member for member in members if transform in member.transform.modules()), buffer)
    return _reweighted(rows, _column(holder, TRAJECTORIES))


def _reweighted(rows: TensorDictBase, union: Tensor, key: NestedKey = WEIGHT) -> TensorDictBase:
    """``weight * t / mean of t over the union``; then ``t`` is that mean, since these are weights of one selection."""
    if not union.numel() or bool((union == union[0]).all()):
        return rows
    mean = union.double().mean()
    own = rows.get(TRAJECTORIES)
    weight = rows.get(key) * (own.double() / mean.to(own.device))
    return rows.copy().update({key: weight.float(), TRAJECTORIES: torch.full_like(own, float(mean))})


def _column(buffer: ReplayBuffer, key: str) -> Tensor:
    """An entry of all rows that a buffer holds, ``[R]``."""
    stored = buffer.storage[:]
    if isinstance(stored, list):  # of a ListStorage
        return torch.stack([row.get(key) for row in stored if key in row.keys()])
    column: Tensor = stored.get(key)
    return column
