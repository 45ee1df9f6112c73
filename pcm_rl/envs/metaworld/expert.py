"""MetaWorld's own scripted policies, as experts."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pcm_rl.envs.metaworld.env import MetaWorldEnv


class MetaWorldExpert:
    """MetaWorld's policy for a task, a function of MetaWorld's observation alone.

    Args:
        env: A :class:`~pcm_rl.envs.metaworld.env.MetaWorldEnv`, possibly wrapped.

    Raises:
        TypeError: There is no `MetaWorldEnv` below the wrappers.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        inner = env.unwrapped
        if not isinstance(inner, MetaWorldEnv):
            raise TypeError(f"MetaWorld's experts need a MetaWorldEnv, got {type(inner).__name__}")
        self._native = inner.native_observation
        self._policy = importlib.import_module("metaworld.policies").ENV_POLICY_MAP[inner.task]()

    def reset(self, init_state: int) -> None:
        """Begins an episode; nothing is remembered between actions."""

    def action(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """The policy's action `[4]` in [-1, 1] at an observation `[39]`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its actions exceed 1, and it warns at every step
            action = self._policy.get_action(self._native(observation))
        return np.asarray(action, dtype=np.float32).clip(-1.0, 1.0)
