"""Scripted experts of the environments that have one: ``reset(init_state)``, then ``action(observation)`` a step."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np


class _Toy:
    def __init__(self, task: Any, mistakes: float) -> None:
        from pcm_rl.envs.tabletop.expert import TabletopExpert

        self._expert = TabletopExpert(1, task, misgrasp=mistakes)

    def reset(self, init_state: int) -> None:
        self._expert.reset([init_state])

    def action(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(self._expert.act(observation[None])[0])


class _Libero:
    def __init__(self, env: gym.Env) -> None:
        from pcm_rl.envs.libero.expert import LiberoExpert

        self._expert = LiberoExpert(env)

    def reset(self, init_state: int) -> None:
        self._expert.reset()

    def action(self, observation: Any) -> np.ndarray:
        seen = observation if isinstance(observation, np.ndarray) else None  # from images it asks the simulator itself
        return np.asarray(self._expert.action(seen))


class _MetaWorld:
    """MetaWorld's own scripted policy, a function of its own observation alone."""

    def __init__(self, env: gym.Env) -> None:
        from pcm_rl.envs.metaworld.env import MetaWorldEnv

        if not isinstance(env.unwrapped, MetaWorldEnv):
            raise TypeError(f"MetaWorld's experts need a MetaWorldEnv, got {type(env.unwrapped).__name__}")
        self._native = env.unwrapped.native_observation
        self._policy = importlib.import_module("metaworld.policies").ENV_POLICY_MAP[env.unwrapped.task]()

    def reset(self, init_state: int) -> None:
        pass  # it remembers nothing

    def action(self, observation: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for more than 1, and says so at every step
            action = self._policy.get_action(self._native(observation))
        return np.asarray(action, dtype=np.float32).clip(-1.0, 1.0)


EXPERTS: dict[str, Callable[[gym.Env, float], Any]] = {
    "pcm_rl/PickPlace-v0": lambda env, mistakes: _Toy("pick_place", mistakes),
    "pcm_rl/Reach-v0": lambda env, mistakes: _Toy("reach", mistakes),
    "pcm_rl/Libero-v0": lambda env, mistakes: _Libero(env),
    "pcm_rl/MetaWorld-v0": lambda env, mistakes: _MetaWorld(env),
}


def make_expert(env_id: str, env: gym.Env, *, mistakes: float = 0.0) -> Any:
    """The scripted expert of ``env_id``.

    Args:
        env_id: A key of ``EXPERTS``.
        env: The environment that the expert will act in.
        mistakes: Share of episodes with a deliberate mis-grasp and recovery, where the expert has them.

    Raises:
        TypeError: If ``env`` is not of the kind that ``env_id`` names.
        ValueError: If the environment has no scripted expert.
    """
    if env_id not in EXPERTS:
        raise ValueError(f"no scripted expert for {env_id!r}; those with one: {', '.join(EXPERTS)}")
    return EXPERTS[env_id](env, mistakes)
