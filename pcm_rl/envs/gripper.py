"""What closes the gripper, checked against the actions that an environment takes."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


def no_gripper(actions: Tensor) -> Tensor:
    """`[..., D]` actions -> `[...]` bool, which of them close the gripper: none."""
    return torch.zeros(actions.shape[:-1], dtype=torch.bool, device=actions.device)


def check_gripper_index(index: int, dimensions: int) -> None:
    """Raise `ValueError` unless `index` is one of D action dimensions."""
    if not -dimensions <= index < dimensions:
        raise ValueError(f"gripper_index is {index}; expected {-dimensions} to {dimensions - 1}")


def check_threshold(space: spaces.Box, index: int, name: str, value: float) -> None:
    """Whether commands lie on both sides of a threshold, so that it tells closed from open.

    Args:
        space: `Box [D]` or `Box [L, D]`, in the units of the threshold.
        index: Action dimension that commands the gripper.
        name: `close_above` or `close_below`, for the error.
        value: The threshold.

    Raises:
        ValueError: There is no such dimension, or no command lies above, or none below.
    """
    check_gripper_index(index, space.shape[-1])
    low, high = float(np.min(space.low[..., index])), float(np.max(space.high[..., index]))
    if not low < value < high:
        raise ValueError(
            f"{name}={value:g} is not between {low:g} and {high:g}, which dimension {index} takes, so "
            f"the gripper is always closed or never. Give {name} in the environment's units, another gripper_index, or "
            "None (null) where there is no gripper"
        )
