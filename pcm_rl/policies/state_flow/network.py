"""The velocity of a chunk of actions, given a state: an encoder that is run once a decision, and a head a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TIMES = 16  # frequencies that tell the network the time
SHORTEST, LONGEST = 4e-3, 4.0  # their periods, in the time of the chain; those of pi0


class VelocityNetwork(nn.Module):
    """Two networks of linear layers with SiLU between them.

    Args:
        state_dim: S.
        chunk_length: L.
        action_dim: D.
        width: Hidden width.
        depth: Hidden layers of each of the two.
    """

    periods: Tensor

    def __init__(self, state_dim: int, chunk_length: int, action_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.encoder = _layers(state_dim, width, depth)
        self.hidden = _layers(width + chunk_length * action_dim + 2 * TIMES, width, depth)
        self.head = nn.Linear(width, chunk_length * action_dim)
        nn.init.zeros_(self.head.bias)
        steps = torch.linspace(0.0, 1.0, TIMES, dtype=torch.float64)
        self.register_buffer("periods", (SHORTEST * (LONGEST / SHORTEST) ** steps).float(), persistent=False)

    def encode(self, state: Tensor) -> Tensor:
        """``[M, S]`` -> ``[M, width]``: all that the velocity knows of the state."""
        encoded: Tensor = self.encoder(state)
        return encoded

    def velocity(self, encoded: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """Velocity at ``x [M, L, D]`` and ``time [M]``, ``[M, L, D]``, of states encoded as ``[M, width]``."""
        angle = 2.0 * math.pi * time.to(encoded).unsqueeze(-1) / self.periods
        known = torch.cat([encoded, x.flatten(1), angle.sin(), angle.cos()], -1)
        velocity: Tensor = self.head(self.hidden(known))
        return velocity.view_as(x)


def _layers(inputs: int, width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), nn.SiLU()]
    return nn.Sequential(*layers)
