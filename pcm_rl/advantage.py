"""Binary outcomes -> group-relative advantage of every trajectory (equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from pcm_rl.episodes import EpisodeIndex, numbered
from pcm_rl.inputs import binary, ids, number_per_row


def group_advantage(success: Tensor, group: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Advantage ``A_i = (r_i - mean(r)) / (std(r) + eps)`` within a group (equation 1).

    The standard deviation is the unbiased one (n - 1), as in SimpleVLA-RL and TorchRL's ``MCAdvantage``; the paper
    does not say which.

    Args:
        success: Outcome of each trajectory, ``[M]`` or ``[M, 1]``, bool or numbers that are exactly 0 or 1. One entry a
            *trajectory*: an entry a chunk would weigh long trajectories more.
        group: Group of each trajectory, ``[M]`` or ``[M, 1]``, any integer type, any ids in any order.
        eps: Added to the standard deviation.

    Returns:
        ``[M]`` float32; exactly 0 in groups without a mixed outcome (all succeed, all fail, or one trajectory).

    Raises:
        ValueError: If shapes differ, ``success`` is not binary, or ``group`` is not integer.
    """
    reward = binary("success", success).double()
    index, groups = numbered(ids("group", group, len(reward)))
    count = torch.zeros(groups, dtype=torch.float64, device=reward.device).index_add_(0, index, torch.ones_like(reward))
    wins = torch.zeros_like(count).index_add_(0, index, reward)
    mean = wins / count
    # sum (r - mean)^2 = wins * losses / count for binary r: no cancellation, and exactly 0 for a group of one kind
    std = (wins * (count - wins) / count / (count - 1).clamp_min(1)).sqrt()
    mixed = std > 0
    advantage = (reward - mean[index]) / (std[index] + eps)
    return torch.where(mixed[index], advantage, 0.0).float()


def outcome_advantage(success: Tensor, group: Tensor, rows: EpisodeIndex) -> Tensor:
    """Equation 1 for every row: the advantage of its trajectory.

    Args:
        success: ``[M]`` or ``[M, 1]`` binary, constant within an episode.
        group: ``[M]`` or ``[M, 1]`` integer, constant within an episode.
        rows: Which rows are one episode.

    Returns:
        ``[M]`` float32.
    """
    return group_advantage(success[rows.first], group[rows.first])[rows.row]


def has_signal(advantage: Tensor, executed: Tensor, rows: EpisodeIndex) -> Tensor:
    """Rows of the trajectories that have an advantage other than 0 at an executed chunk.

    Args:
        advantage: ``[M]``.
        executed: ``[M]`` bool.
        rows: Which rows are one episode.

    Returns:
        ``[M]`` bool.
    """
    counts = torch.zeros(rows.shape[0], dtype=torch.int64, device=advantage.device)
    counts.index_add_(0, rows.row, ((number_per_row("advantage", advantage, len(executed)) != 0) & executed).long())
    return counts[rows.row] > 0
