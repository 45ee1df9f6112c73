"""The family ``state_flow``: a flow policy that fits an environment whose observation is a vector."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces

from pcm_rl.policies.bins import action_range
from pcm_rl.policies.state_flow.policy import StateFlowPolicy
from pcm_rl.policies.vector_space import sizes


def make_policy(
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Box,
    *,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> StateFlowPolicy:
    """A fresh policy.

    Args:
        observation_space: ``Box [S]``.
        action_space: ``Box [L, D]``, which is [-1, 1] to the network.
        device: Of its weights.
        settings: Further arguments of :class:`StateFlowPolicy`.

    Raises:
        ValueError: If the observation is not a vector or the actions are unbounded; the message says what to do.
    """
    state_dim, chunk_length, action_dim = sizes(observation_space, action_space)
    low, high = action_range(action_space)
    return StateFlowPolicy(state_dim, action_dim, chunk_length, low=low, high=high, **settings).to(device)
