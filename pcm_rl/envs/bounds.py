"""Bounds for actions that have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs


class ActionBounds(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """States which part of an environment's action box is used; actions are passed on as they are.

    A policy that cuts actions into bins needs bounds, and an environment with `Box(-inf, inf)` names none. Gymnasium's
    `RescaleAction` needs bounds too, and `ClipAction` takes them away.

    Args:
        env: Environment with a `Box [D]` of actions.
        low: Lowest action, a number or one for each of the D dimensions, in the environment's units.
        high: Highest action.

    Raises:
        ValueError: The actions are no `Box`, or the bounds are not finite, have no width, or lie outside of the box.
    """

    def __init__(self, env: gymnasium.Env, low: float | Sequence[float], high: float | Sequence[float]) -> None:
        RecordConstructorArgs.__init__(self, low=low, high=high)
        super().__init__(env)
        box = env.action_space
        if not isinstance(box, spaces.Box):
            raise ValueError(f"ActionBounds needs an action space Box [D], got {box}")
        least, most = (np.broadcast_to(np.asarray(bound, box.dtype), box.shape) for bound in (low, high))
        if not (np.isfinite(most - least).all() and (least < most).all()):
            raise ValueError(f"low={low} and high={high}; expected finite numbers, low below high")
        if (least < box.low).any() or (most > box.high).any():
            raise ValueError(f"low={low} and high={high} lie outside of the environment's {box}")
        self.action_space = spaces.Box(least, most, dtype=box.dtype.type)
