"""The horizon of an environment, wherever it is told."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.envs import MultiTaskEnv, chunked_vector_env
from pcm_rl.envs.horizon import horizon_of, vector_horizon


class Endless(gym.Env):
    def __init__(self, **told):
        vars(self).update(told)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize(
    ("env", "horizon"),
    [
        (Endless(), None),
        (Endless(horizon=30), 30),
        (Endless(max_path_length=500), 500),
        (Endless(horizon="short"), None),
        (Endless(horizon=0), None),
        (TimeLimit(Endless(), 20), 20),
        (TimeLimit(Endless(horizon=30), 20), 20),
        (TimeLimit(Endless(horizon=10), 20), 10),
        (MultiTaskEnv(lambda task: TimeLimit(Endless(), 20 + task), 2, 5), 20),
        (gym.make("pcm_rl/Reach-v0", horizon=96), 96),
        (gym.make("Pendulum-v1", max_episode_steps=7), 7),
    ],
)
def test_the_smallest_limit_that_is_told(env, horizon):
    assert horizon_of(env) == horizon
    assert vector_horizon(chunked_vector_env(lambda: env, 1, chunk_length=4, workers=False)) == horizon


def test_workers_and_vectorised_cores_tell_it():
    env = chunked_vector_env(lambda: TimeLimit(Endless(), 20), 1, chunk_length=4, context="fork")
    assert vector_horizon(env) == env.horizon == 20
    env.close()
    core = gym.make_vec("pcm_rl/Reach-v0", 2, vectorization_mode="vector_entry_point", horizon=40)
    assert vector_horizon(core) == 40
    assert vector_horizon(object()) is None
