"""Lift of robosuite 1.5 as a registered id, with a scripted expert. Recipe: lift.yaml."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import robosuite
from robosuite.wrappers import GymWrapper

STEP = 0.05  # metres on which a command of 1 is spent
SQUEEZE = 10  # steps until the fingers hold the cube


class Lift(gym.Env):
    """A Panda is to lift a cube. 1 is paid at every step with the cube lifted; the episode goes on to its horizon.

    robosuite's own wrapper cannot be registered, and `reset(seed=...)` does not move its generator.
    """

    def __init__(self, horizon: int = 60) -> None:
        simulation = robosuite.make(
            "Lift",
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            reward_shaping=False,
            hard_reset=False,
            horizon=horizon,
            seed=0,  # of the cube's size, which is drawn once
        )
        self.robot = GymWrapper(simulation)
        self.observation_space, self.action_space = self.robot.observation_space, self.robot.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The same seed gives the same place of the cube and pose of the arm."""
        super().reset(seed=seed)
        if seed is not None:
            self.robot.env.rng.bit_generator.state = self.np_random.bit_generator.state
        observation, info = self.robot.reset()
        return observation.astype(np.float32), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One command; the end that robosuite reports is the horizon."""
        observation, reward, ended, _, info = self.robot.step(action)
        return observation.astype(np.float32), reward, False, ended, info

    def close(self) -> None:
        """Frees the simulation."""
        self.robot.close()


gym.register("Lift-v0", entry_point=Lift)


class Expert:
    """Goes to the cube, closes the gripper and lifts."""

    def __init__(self, env: gym.Env) -> None:
        self.reset(0)

    def reset(self, init_state: int) -> None:
        """A new episode: nothing is held."""
        self.closed = 0

    def action(self, observation: np.ndarray) -> np.ndarray:
        """The next command ``[7]``: a step of the hand, a rotation, the gripper (above 0 closes)."""
        way = observation[7:10]  # from the hand to the cube
        if self.closed or np.abs(way).max() < 0.008:
            self.closed += 1
            way = np.array([0.0, 0.0, STEP if self.closed > SQUEEZE else 0.0])
        elif np.abs(way[:2]).max() > 0.012:
            way = way + np.array([0.0, 0.0, 0.06])
        gripper = 1.0 if self.closed else -1.0
        return np.concatenate([np.clip(way / STEP, -1.0, 1.0), np.zeros(3), [gripper]]).astype(np.float32)
