"""Choosing chunks with one budget for the whole batch, by how much each weighs in the objective."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pcm_rl.advantage import group_advantage
from pcm_rl.episodes import EpisodeIndex


def outcome_advantage(success: Tensor, group: Tensor, rows: EpisodeIndex) -> Tensor:
    """Equation 1 for every row: the advantage of its trajectory.

    Args:
        success: ``[M]`` binary, constant within an episode.
        group: ``[M]`` int64, constant within an episode.
        rows: Which rows are one episode.

    Returns:
        ``[M]`` float32.
    """
    number = rows.shape[0]
    outcome, groups = success.new_zeros(number), group.new_zeros(number)
    outcome[rows.row], groups[rows.row] = success, group
    return group_advantage(outcome, groups)[rows.row]


def has_signal(advantage: Tensor, valid: Tensor, rows: EpisodeIndex) -> Tensor:
    """Rows of the trajectories that have an advantage other than 0 at an executed chunk, ``[M]`` bool."""
    counts = torch.zeros(rows.shape[0], dtype=torch.int64, device=advantage.device)
    counts.index_add_(0, rows.row, ((advantage != 0) & valid.any(-1)).long())
    return counts[rows.row] > 0


def keep_largest(
    score: Tensor, executed: Tensor, rows: EpisodeIndex, budget: int, generator: Generator | None
) -> Tensor:
    """Spend on the whole batch what ``budget`` chunks a trajectory would cost, on the largest scores.

    A trajectory without any score has its share of the budget too: the others get it.

    Args:
        score: ``[M]`` non-negative; rows of score 0 are never kept, ties are broken at random.
        executed: ``[M]`` bool, the chunks that a trajectory has.
        rows: Which rows are one episode.
        budget: B.
        generator: Source of randomness; it draws on its own device.

    Returns:
        ``[M]`` bool with ``sum_i min(B, chunks of i)`` True, or as many as score more than 0.
    """
    total = int(torch.bincount(rows.row[executed]).clamp_max(budget).sum())
    index = ((score > 0) & executed).nonzero().squeeze(-1)
    source = generator.device if generator is not None else score.device
    index = index[torch.randperm(len(index), generator=generator, device=source).to(score.device)]
    order = score[index].sort(descending=True, stable=True).indices
    kept = torch.zeros_like(executed)
    kept[index[order[:total]]] = True
    return kept
