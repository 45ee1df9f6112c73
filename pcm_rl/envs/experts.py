"""Scripted experts: ``reset(init_state)``, then ``action(observation)`` at each step.

An expert is named as ``module:function``, also a built-in one: the function takes the environment and returns it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from pcm_rl.support.plugins import load_callable

EXPERTS: dict[str, str] = {
    "pcm_rl/PickPlace-v0": "pcm_rl.envs.tabletop.expert:pick_place_expert",
    "pcm_rl/Reach-v0": "pcm_rl.envs.tabletop.expert:reach_expert",
    "pcm_rl/Libero-v0": "pcm_rl.envs.libero.expert:LiberoExpert",
    "pcm_rl/MetaWorld-v0": "pcm_rl.envs.metaworld.expert:MetaWorldExpert",
}


class Expert(Protocol):
    """A scripted policy, called once at each step."""

    def reset(self, init_state: int) -> None:
        """Start an episode."""

    def action(self, observation: Any) -> np.ndarray:
        """Clean action ``[D]`` at an observation."""


def find_expert(env_id: str, expert: str | None = None) -> Callable[..., Any]:
    """What makes the scripted expert of an environment.

    Args:
        env_id: Id of the environment, a key of ``EXPERTS`` where no ``expert`` is given.
        expert: ``module:function``.

    Raises:
        ValueError: If there is none.
    """
    if expert is None and env_id not in EXPERTS:
        raise ValueError(
            f"no scripted expert for {env_id!r}; those with one: {', '.join(EXPERTS)}. Give "
            "demos.expert=module:function, a function(env) -> object with reset(init_state) and action(observation)"
        )
    return load_callable(EXPERTS[env_id] if expert is None else expert)


def make_expert(env_id: str, env: gym.Env, *, mistakes: float = 0.0, expert: str | None = None) -> Expert:
    """The scripted expert of an environment.

    Args:
        env_id: Id of the environment, a key of ``EXPERTS`` where no ``expert`` is given.
        env: The environment that the expert will act in.
        mistakes: Share of episodes with a deliberate mis-grasp and recovery; passed to experts that have a parameter of
            this name.
        expert: ``module:function``, called as ``function(env)`` or ``function(env, mistakes=mistakes)``.

    Raises:
        TypeError: If ``env`` is not of the kind that the expert needs.
        ValueError: If there is no such expert, or it does not cover this task.
    """
    build = find_expert(env_id, expert)
    parameters = inspect.signature(build).parameters
    scripted: Expert = build(env, mistakes=mistakes) if "mistakes" in parameters else build(env)
    if not callable(getattr(scripted, "reset", None)) or not callable(getattr(scripted, "action", None)):
        raise ValueError(
            f"{expert or env_id} gave {scripted!r}; expected an object with reset(init_state) and action(observation)"
        )
    return scripted
