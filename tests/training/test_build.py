from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from pcm_rl.config import Config, ConfigError, EnvConfig, load_config
from pcm_rl.envs.experts import make_expert
from pcm_rl.envs.tabletop.env import TabletopVectorEnv
from pcm_rl.envs.workers import WorkerVectorEnv
from pcm_rl.episodes import FEATURES
from pcm_rl.labellers import IN_ORDER_OF_TIME
from pcm_rl.policies import StateTokenPolicy, calls_of
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.environments import make_env, make_vector_env, phase_rule
from pcm_rl.training.build import make_credit, make_policy


def test_the_toy_uses_its_vectorised_core_or_one_process_each():
    config = EnvConfig(id="pcm_rl/Reach-v0", num_envs=3, chunk_length=4, kwargs={"horizon": 24})
    core = make_vector_env(config)
    assert isinstance(core.unwrapped, TabletopVectorEnv) and core.single_action_space.shape == (4, 7)
    workers = make_vector_env(dataclasses.replace(config, workers=True, num_envs=2))
    try:
        assert isinstance(workers, WorkerVectorEnv) and workers.single_action_space.shape == (4, 7)
        options = {"init_state": np.array([3, 4])}
        got, _ = workers.reset(options=dict(options))
        expected, _ = make_vector_env(dataclasses.replace(config, num_envs=2)).reset(options=options)
        np.testing.assert_array_equal(got, expected)
    finally:
        workers.close()


def test_policy_fits_the_environment():
    config = Config(env=EnvConfig(id="pcm_rl/Reach-v0", num_envs=2, chunk_length=4))
    policy = make_policy(config, make_vector_env(config.env))
    assert (policy.chunk_size, policy.action_dim, policy.vocab_size) == (4, 7, 16)


@pytest.mark.parametrize(
    ("env", "text"),
    [
        (EnvConfig(id="pcm_rl/Nothing-v0"), "env.id=pcm_rl/Nothing-v0"),
        (EnvConfig(kwargs={"horizon": -1}), "horizon"),
        (EnvConfig(kwargs={"horizn": 3}), "with {'horizn': 3}"),
    ],
)
def test_what_the_environment_refuses_is_a_config_error(env, text):
    with pytest.raises(ConfigError, match=text):
        make_vector_env(env)
    with pytest.raises(ConfigError, match=text):
        make_env(env)


def by_time(close_fraction, valid):
    return torch.where(valid, torch.arange(valid.shape[-1]) % 5, -1)


def test_a_labeller_is_named_by_module_and_function():
    rule = phase_rule(EnvConfig(labeller=f"{__name__}:by_time"))
    assert rule["labeller"].func is by_time
    assert "labeller" not in phase_rule(EnvConfig())
    with pytest.raises(ConfigError, match="no_such_function"):
        phase_rule(EnvConfig(labeller="pcm_rl.phases:no_such_function"))
    with pytest.raises(ConfigError, match="module:function"):
        EnvConfig(labeller="by_time")


def test_a_labeller_gets_its_arguments():
    time = "pcm_rl.labellers:label_by_time"
    rule = phase_rule(EnvConfig(labeller=time, labeller_kwargs={"chunks": 1}))
    assert rule["labeller"](torch.zeros(3), torch.ones(3, dtype=torch.bool)).tolist() == list(IN_ORDER_OF_TIME[:3])
    with pytest.raises(ConfigError, match=r"labeller.*period"):
        phase_rule(EnvConfig(labeller=time, labeller_kwargs={"period": 1}))
    with pytest.raises(ConfigError, match="without a labeller"):
        EnvConfig(labeller_kwargs={"chunks": 1})


def test_seeds_can_name_initial_states():
    env = make_env(EnvConfig(id="CartPole-v1", init_state="seed"))
    first, _ = env.reset(options={"init_state": 7})
    env.reset(options={"init_state": 8})
    again, _ = env.reset(options={"init_state": 7})
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, gym.make("CartPole-v1").reset(seed=7)[0])


def test_somebody_elses_vectorised_core_is_not_taken_for_one_of_chunks():
    with pytest.raises(ConfigError, match=r"Box \[D\]") as error:
        make_vector_env(EnvConfig(id="CartPole-v1", num_envs=1))  # discrete actions: refused for what it is, once
    assert str(error.value).count("CartPole-v1 with") == 1


@pytest.mark.parametrize("task", ["PickPlace", "Reach"])
def test_toy_experts_solve_their_task(task):
    env = gym.make(f"pcm_rl/{task}-v0")
    expert = make_expert(f"pcm_rl/{task}-v0", env, mistakes=0.5)
    for state in range(5):
        observation, info = env.reset(options={"init_state": state})
        expert.reset(state)
        ended = False
        while not ended:
            observation, _, terminated, truncated, info = env.step(expert.action(observation))
            ended = terminated or truncated
        assert info["success"], state


def half_a_policy(observation_space, action_space, *, device):
    return torch.nn.Linear(1, 1)


def test_a_family_that_makes_no_token_policy_is_refused_with_what_is_lacking():
    config = load_config(None, ["env.num_envs=1", f"policy.family={__name__}:half_a_policy"])
    with pytest.raises(ConfigError, match=r"made a Linear without in_keys, out_keys, .*, get_dist; see"):
        make_policy(config, make_vector_env(config.env))


class OnlyGives(StateTokenPolicy):
    """A policy of a user, written before features could be recorded."""

    record_critic_features = None  # not callable: no such method


def only_gives(observation_space, action_space, *, device):
    chunk_length, action_dim = action_space.shape
    return OnlyGives(observation_space.shape[0], action_dim, chunk_length, width=24)


REACH = ["env.id=pcm_rl/Reach-v0", "env.num_envs=2", "env.kwargs.horizon=16", "advantage.name=critic"]


@pytest.mark.parametrize(("family", "forwards"), [("state", 0), (f"{__name__}:only_gives", 1)])
def test_a_critic_reads_what_was_recorded_or_asks_once_more(family, forwards):
    config = load_config(None, [*REACH, "advantage.features=policy", f"policy.family={family}"])
    env = make_vector_env(config.env)
    policy = make_policy(config, env)
    credit = make_credit(config, env, policy)
    rows = collect_episodes(env, policy, torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert (FEATURES in rows.keys()) == (FEATURES in policy.out_keys) == (forwards == 0)
    with calls_of(policy.model[0]) as calls:
        credit.observe(rows)
    assert len(calls) == forwards
    torch.testing.assert_close(rows[FEATURES], policy.features(rows), rtol=1e-5, atol=1e-6)


def test_a_critic_of_other_features_does_not_find_the_policys():
    config = load_config(None, [*REACH, "advantage.features=policy"])
    env = make_vector_env(config.env)
    policy = make_policy(config, env)
    make_credit(config, env, policy)
    credit = make_credit(load_config(None, REACH), env, policy)  # the same policy: it records no longer
    rows = collect_episodes(env, policy, torch.tensor([0]), torch.tensor([0]))
    assert torch.equal(credit.observe(rows)[FEATURES], rows["observation", "state"])
