"""The experts by id; those of the toy tasks and of LIBERO have tests of their own."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.envs.experts import EXPERTS, make_expert


def test_every_id_with_an_expert_is_registered():
    assert set(EXPERTS) <= set(gymnasium.registry)


def test_an_environment_without_an_expert_names_those_with_one():
    with pytest.raises(
        ValueError, match=r"'CartPole-v1'; those with one: pcm_rl/PickPlace-v0.*demos.expert=module:function"
    ):
        make_expert("CartPole-v1", gymnasium.make("CartPole-v1"))


class Idle:
    def __init__(self, env, mistakes=None):
        self.env, self.mistakes = env, mistakes

    def reset(self, init_state):
        pass

    def action(self, observation):
        return np.zeros(7, np.float32)


def only_env(env):
    return Idle(env)


def nothing(env):
    return None


def test_an_expert_is_named_by_module_and_function():
    env = gymnasium.make("CartPole-v1")
    made = make_expert("CartPole-v1", env, mistakes=0.4, expert=f"{__name__}:Idle")
    assert isinstance(made, Idle) and made.env is env and made.mistakes == 0.4
    assert make_expert("pcm_rl/Reach-v0", env, mistakes=0.4, expert=f"{__name__}:only_env").mistakes is None
    for name, text in (
        ("no_such", "has no 'no_such'"),
        ("np", "expected a function"),
        ("nothing", r"gave None; expected an object with reset\(init_state\) and action"),
    ):
        with pytest.raises(ValueError, match=text):
            make_expert("CartPole-v1", env, expert=f"{__name__}:{name}")


@pytest.mark.metaworld
@pytest.mark.parametrize("task", ["pick-place-v3", "push-v3", "drawer-open-v3", "button-press-v3", "hammer-v3"])
def test_metaworlds_expert_recovers_from_noise(task):
    pytest.importorskip("metaworld")
    env = gymnasium.make("pcm_rl/MetaWorld-v0", task=task, horizon=250)
    expert, rng = make_expert("pcm_rl/MetaWorld-v0", env), np.random.default_rng(0)
    observation, info = env.reset(options={"init_state": 1})
    expert.reset(1)
    ended = False
    while not ended:
        action = expert.action(observation)
        assert action.shape == (4,) and action.dtype == np.float32 and np.abs(action).max() <= 1
        action[:3] += 0.2 * rng.standard_normal(3).astype(np.float32)
        observation, _, terminated, truncated, info = env.step(action.clip(-1, 1))
        ended = terminated or truncated
    env.close()
    assert info["success"]


@pytest.mark.metaworld
def test_metaworlds_expert_refuses_another_environment():
    pytest.importorskip("metaworld")
    with pytest.raises(TypeError, match="need a MetaWorldEnv, got CartPoleEnv"):
        make_expert("pcm_rl/MetaWorld-v0", gymnasium.make("CartPole-v1"))
