"""A scripted expert for FetchPickAndPlace (gymnasium-robotics) and PandaPickAndPlace (panda-gym).

Both are a hand that moves by small steps and a gripper that a negative command closes; a block is to be brought to a
goal. Recipes: fetch.yaml, panda.yaml.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np

STEP = 0.05  # metres that the hand moves at a command of 1, at most
ABOVE = np.array([0.0, 0.0, 0.08])
SQUEEZE = 4  # steps until the fingers hold the block


class Expert:
    """Goes above the block, down, closes the gripper, and carries the block to the goal.

    It sees the vector of the recipe's ``env.observation``: the robot's observation, then the goal.
    """

    def __init__(self, env: gym.Env, block: int) -> None:
        self.block = slice(block, block + 3)  # where the block's position stands in the observation
        self.reset(0)

    def reset(self, init_state: int) -> None:
        """A new episode: nothing is held."""
        self.closed = 0

    def action(self, observation: np.ndarray) -> np.ndarray:
        """The next command ``[4]``."""
        hand, block, goal = observation[:3], observation[self.block], observation[-3:]
        way = block - hand
        if self.closed or np.abs(way).max() < 0.012:
            self.closed += 1
            target = goal - block if self.closed > SQUEEZE else np.zeros(3)
            return self._command(target, -1.0)
        beside = np.abs(way[:2]).max() > 0.012
        return self._command(way + ABOVE if beside else way, 1.0)

    @staticmethod
    def _command(way: np.ndarray, gripper: float) -> np.ndarray:
        return np.append(np.clip(way / STEP, -1.0, 1.0), gripper).astype(np.float32)


def fetch_expert(env: gym.Env) -> Expert:
    """For gymnasium-robotics: hand 0 to 2, block 3 to 5."""
    return Expert(env, 3)


def panda_expert(env: gym.Env) -> Expert:
    """For panda-gym: hand 0 to 2, its velocity, the fingers, block 7 to 9."""
    return Expert(env, 7)
