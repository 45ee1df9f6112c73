"""The rows of the last rollouts, from which a critic learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcm_rl.episodes import EpisodeIndex


class RolloutMemory(nn.Module):
    """Inputs and targets of the newest rollouts; the oldest rollout leaves as a whole.

    An ``nn.Module`` without parameters: its ``state_dict`` holds the rows, however many there are.

    Args:
        rollouts: How many stay, at least; the newest batch stays whole.
        feature_dim: F.

    Attributes:
        features: ``[R, F]`` float32.
        time: Number of each row's chunk, ``[R]`` int64.
        target: What it stands for, ``[R]`` float32.
        length: Rows of each rollout, oldest first, ``[n]`` int64.
    """

    features: Tensor
    time: Tensor
    target: Tensor
    length: Tensor

    def __init__(self, rollouts: int, feature_dim: int) -> None:
        super().__init__()
        self.rollouts = rollouts
        self.register_buffer("features", torch.zeros(0, feature_dim))
        self.register_buffer("time", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("target", torch.zeros(0))
        self.register_buffer("length", torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        """The number of rows R."""
        return len(self.target)

    def add(self, features: Tensor, time: Tensor, target: Tensor, episode: Tensor) -> None:
        """Add the rows of a batch of whole rollouts, and let the oldest go.

        Args:
            features: ``[M, F]``.
            time: ``[M]``.
            target: ``[M]``.
            episode: ``[M]``, ids within the batch.
        """
        index = EpisodeIndex(episode)
        order = index.row.argsort(stable=True)  # one rollout after the other
        length = torch.cat([self.length, index.length])
        leave = max(0, len(length) - max(self.rollouts, len(index.length)))
        first = int(length[:leave].sum())
        self.length = length[leave:]
        for name, rows in (("features", features), ("time", time), ("target", target)):
            kept: Tensor = getattr(self, name)
            setattr(self, name, torch.cat([kept, rows[order].to(kept)])[first:].clone())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # as many rows as were saved
        for name in ("features", "time", "target", "length"):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(saved, Tensor) and saved.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
