"""Binary outcomes -> group-relative advantage of every trajectory (equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from pcm_rl.episodes import EpisodeIndex


def group_advantage(success: Tensor, group: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Advantage ``A_i = (r_i - mean(r)) / (std(r) + eps)`` within a group (equation 1).

    The standard deviation is the unbiased one (n - 1), as in SimpleVLA-RL and TorchRL's ``MCAdvantage``; the paper
    does not say which.

    Args:
        success: Outcome of each trajectory, ``[M]`` bool or numbers that are exactly 0 or 1. One entry a
            *trajectory*: an entry a chunk would weigh long trajectories more.
        group: Group of each trajectory, ``[M]`` int64, any ids in any order.
        eps: Added to the standard deviation.

    Returns:
        ``[M]`` float32; exactly 0 in groups without a mixed outcome (all succeed, all fail, or one trajectory).

    Raises:
        ValueError: If shapes differ, ``success`` is not binary, or ``group`` is not integer.
    """
    reward = as_binary(success).double()
    check_ids("group", group, success)
    if reward.numel() == 0:
        return reward.float()
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1
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
    counts.index_add_(0, rows.row, ((advantage != 0) & executed).long())
    return counts[rows.row] > 0


def as_binary(success: Tensor) -> Tensor:
    """``success [M]`` as bool.

    Raises:
        ValueError: If it is not one-dimensional or holds anything but 0 and 1.
    """
    if success.ndim != 1:
        raise ValueError(f"success must have shape [M], got {tuple(success.shape)}")
    if success.dtype == torch.bool:
        return success
    if not bool(((success == 0) | (success == 1)).all()):
        raise ValueError("success must be binary (0 or 1): successes are compared with failures; threshold returns")
    return success.bool()


def check_ids(name: str, ids: Tensor, like: Tensor) -> None:
    """Raise ``ValueError`` unless ``ids`` is an integer tensor with the shape of ``like``."""
    if ids.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be an integer tensor, got {ids.dtype}")
