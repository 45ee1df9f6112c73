"""The next actions of every step, which a row of demonstrations has as its chunk; where its episodes begin."""

from __future__ import annotations

import torch
from torch import Tensor


def next_actions(actions: Tensor, lengths: Tensor, chunk_length: int) -> tuple[Tensor, Tensor]:
    """The chunk of each step: its own action and those after it; behind the episode's end the last one is repeated.

    Args:
        actions: ``[M, D]``, episodes one after the other.
        lengths: Steps of each episode, int64 of sum M.
        chunk_length: L.

    Returns:
        Chunks ``[M, L, D]``, and ``[M, L]`` bool: True behind the end.
    """
    last = (lengths.cumsum(0) - 1).repeat_interleave(lengths)
    index = torch.arange(len(actions)).unsqueeze(1) + torch.arange(chunk_length)
    is_pad = index > last.unsqueeze(1)
    return actions[torch.minimum(index, last.unsqueeze(1))], is_pad


def episode_lengths(step: Tensor) -> Tensor:
    """Steps of each episode, by the number of each row's step in its episode, ``[M]`` from 0: int64 of sum M."""
    starts = (step == 0).nonzero().flatten()
    return torch.diff(starts, append=torch.tensor([len(step)]))
