"""Scripted experts of the environments that have one: ``reset(init_state)``, then ``action(observation)`` a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np


class _Toy:
    def __init__(self, task: Any, mistakes: float) -> None:
        from pcm_rl.envs.tabletop_expert import TabletopExpert

        self._expert = TabletopExpert(1, task, misgrasp=mistakes)

    def reset(self, init_state: int) -> None:
        self._expert.reset([init_state])

    def action(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(self._expert.act(observation[None])[0])


class _Libero:
    def __init__(self, env: gym.Env) -> None:
        from pcm_rl.envs.libero_expert import LiberoExpert

        self._expert = LiberoExpert(env)

    def reset(self, init_state: int) -> None:
        self._expert.reset()

    def action(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(self._expert.action(observation))


EXPERTS: dict[str, Callable[[gym.Env, float], Any]] = {
    "pcm_rl/PickPlace-v0": lambda env, mistakes: _Toy("pick_place", mistakes),
    "pcm_rl/Reach-v0": lambda env, mistakes: _Toy("reach", mistakes),
    "pcm_rl/Libero-v0": lambda env, mistakes: _Libero(env),
}


def make_expert(env_id: str, env: gym.Env, *, mistakes: float = 0.0) -> Any:
    """The scripted expert of ``env_id``.

    Args:
        env_id: A key of ``EXPERTS``.
        env: The environment that the expert will act in.
        mistakes: Share of episodes with a deliberate mis-grasp and recovery, where the expert has them.

    Raises:
        ValueError: If the environment has no scripted expert.
    """
    if env_id not in EXPERTS:
        raise ValueError(f"no scripted expert for {env_id!r}; those with one: {', '.join(EXPERTS)}")
    return EXPERTS[env_id](env, mistakes)
