"""FetchReach of gymnasium-robotics, added to pcm_rl by this file and recipe.yaml alone.

    pip install gymnasium-robotics
    cd examples/extending/benchmark
    pcm-rl train --config recipe.yaml

The package is not touched: the recipe names what stands here as ``reach:Expert`` and ``reach:WayToGoal``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

UNIT = 0.1  # metres: a small network learns from numbers near 1


class WayToGoal(gym.ObservationWrapper):
    """Replaces the goal, a place in the world, by the way from the hand to it."""

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The same Dict with another ``desired_goal``."""
        way = (observation["desired_goal"] - observation["achieved_goal"]) / UNIT
        return {**observation, "desired_goal": way}


class Expert:
    """Moves the hand straight to the goal. It sees what the policy sees, and ``env.unwrapped`` if it wants more."""

    def __init__(self, env: gym.Env) -> None:
        self.parts = env.unwrapped.observation_space

    def reset(self, init_state: int) -> None:
        """Starts an episode; this expert remembers nothing."""

    def action(self, observation: np.ndarray) -> np.ndarray:
        """Clean action ``[4]``: dx, dy, dz and the gripper, which is blocked in this task."""
        way = gym.spaces.unflatten(self.parts, observation)["desired_goal"]
        return np.append(np.clip(0.5 * way, -1.0, 1.0), 0.0)
