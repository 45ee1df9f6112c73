"""Choosing chunks with one budget for the whole batch, by how much each weighs in the objective."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pcm_rl.advantage import group_advantage
from pcm_rl.episodes import EpisodeIndex

BATCHWIDE = ("top-advantage", "open")


def advantage_score(success: Tensor, group: Tensor, rows: EpisodeIndex, weight: Tensor) -> Tensor:
    """``|A_i| * weight``: the factor on a row's mean token gradient in the objective, up to one common factor.

    A trajectory's weight is shared among its chunks, so a chunk of a short success weighs several times what one of a
    failure that ran to the horizon does. Rows of groups with one outcome only, and rows without an executed step,
    score 0: they add nothing to the policy gradient. A is worked out from the outcomes, whatever advantage the batch
    carries.

    Args:
        success: ``[M]`` binary, constant within an episode.
        group: ``[M]`` int64, constant within an episode.
        rows: Which rows are one episode.
        weight: ``[M]`` weights of all rows: full GRPO's (:func:`pcm_rl.selection.trajectory_weights`) or
            :func:`open_weights`.

    Returns:
        ``[M]`` float64.
    """
    number = rows.shape[0]
    outcome, groups = success.new_zeros(number), group.new_zeros(number)
    outcome[rows.row], groups[rows.row] = success, group
    return group_advantage(outcome, groups).double().abs()[rows.row] * weight.double()


def open_weights(success: Tensor, group: Tensor, chunk: Tensor, valid: Tensor) -> Tensor:
    """Weights of GRPO with a baseline in time: ``(tokens(row) / mean tokens) * |r - p_k| / |r - p_0|``.

    ``p_k`` is the share of successes among the group's trajectories that still run at chunk k, so ``p_0`` is the mean
    in equation 1. A failure's chunks count less and less as the group's successes end, and nothing once only failures
    run; those of the slowest success count most. With the advantage of equation 1 the weight puts ``p_k`` in the place
    of ``p_0``: a baseline that knows the time and that the trajectory still runs, both of them fixed before the action
    is drawn. (Like the group's mean, it contains the trajectory's own outcome.) All tokens of the batch count alike,
    not all trajectories: divided by its length, a failure's few open chunks would drown.

    Args:
        success: ``[M]`` bool, constant within an episode.
        group: ``[M]`` int64, constant within an episode.
        chunk: Number of the chunk in its episode from 0 on, ``[M]`` int64; all chunks of an episode must be there.
        valid: ``[M, L]`` bool.

    Returns:
        ``[M]`` float64, not negative; 0 in groups with one outcome and for chunks never executed.
    """
    won, steps = success.double(), valid.sum(-1).double()
    executed = steps > 0
    _, index = torch.unique(group, return_inverse=True)
    slots = int(chunk.max()) + 1 if len(won) else 0
    cell = index * slots + chunk
    cells = (int(index.max()) + 1) * slots if len(won) else 0
    running = torch.zeros(cells, dtype=torch.float64, device=won.device).index_add_(0, cell, executed.double())
    wins = torch.zeros_like(running).index_add_(0, cell, won * executed)
    rate = wins / running.clamp_min(1)
    surprise = (won - rate[index * slots]).abs()
    share = (won - rate[cell]).abs() / torch.where(surprise > 0, surprise, 1.0)
    return torch.where(surprise > 0, share, 0.0) * steps * len(steps) / steps.sum().clamp_min(1)


def keep_largest(
    score: Tensor, candidate: Tensor, rows: EpisodeIndex, budget: int, generator: Generator | None
) -> Tensor:
    """Spend on the whole batch what ``budget`` chunks a trajectory would cost, on the largest scores.

    Args:
        score: ``[M]`` non-negative; ties are broken at random.
        candidate: ``[M]`` bool.
        rows: Which rows are one episode.
        budget: B.
        generator: Source of randomness; it draws on its own device.

    Returns:
        ``[M]`` bool with exactly ``sum_i min(B, candidates of i)`` True.
    """
    total = int(torch.bincount(rows.row[candidate]).clamp_max(budget).sum())
    index = candidate.nonzero().squeeze(-1)
    source = generator.device if generator is not None else score.device
    index = index[torch.randperm(len(index), generator=generator, device=source).to(score.device)]
    order = score[index].sort(descending=True, stable=True).indices
    kept = torch.zeros_like(candidate)
    kept[index[order[:total]]] = True
    return kept
