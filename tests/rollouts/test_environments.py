"""A benchmark of somebody else's, by configuration alone: wrappers, success, reward and what closes the gripper."""

from __future__ import annotations

import contextlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pcm_rl.config import ConfigError, EnvConfig
from pcm_rl.envs.tabletop.env import TabletopVectorEnv
from pcm_rl.episodes import label_episodes
from pcm_rl.rollouts import environments as module
from pcm_rl.rollouts.environments import _vector_env, make_env, make_vector_env, phase_rule

FLATTEN, RESCALE = "gymnasium.wrappers:FlattenObservation", "gymnasium.wrappers:RescaleAction"


class Goal(gym.Env):
    """As gymnasium-robotics has them: a `Dict` observation, `is_success` in the info, -1 a step, no end at success."""

    def __init__(self, high: float = 1.0) -> None:
        vector = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = spaces.Dict({"achieved_goal": vector, "desired_goal": vector})
        self.action_space = spaces.Box(-high, high, (3,), np.float32)

    def _observed(self):
        return {"achieved_goal": self.place.copy(), "desired_goal": self.goal}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert not options
        self.place, self.goal, self.steps = np.zeros(2), self.np_random.uniform(-1, 1, 2), 0
        return self._observed(), {}

    def step(self, action):
        self.place += 0.2 * action[:2] / self.action_space.high[:2]
        self.steps += 1
        near = bool(np.abs(self.place - self.goal).max() < 0.1)
        return self._observed(), -1.0, False, self.steps >= 12, {"is_success": near, "steps": self.steps}


if "Goal-v0" not in gym.registry:
    gym.register("Goal-v0", Goal)
GOAL = {"id": "Goal-v0", "init_state": "seed", "num_envs": 2, "chunk_length": 4, "wrappers": [FLATTEN]}


def third_step(env, info):
    return info["steps"] == 3


def two_grippers(actions):
    return (actions[..., -1] > 0) | (actions[..., 0] > 0)


number = 3


def step_once(config):
    """Rewards and infos of a chunk of zeros in both environments of a vector."""
    with contextlib.closing(make_vector_env(config)) as env:
        env.reset(options={"init_state": np.array([1, 2])})
        _, reward, _, _, info = env.step(np.zeros((2, 4, 3), np.float32))
        return reward.tolist(), info


def test_wrappers_are_applied_in_order_and_get_their_arguments():
    rescaled = {"name": RESCALE, "kwargs": {"min_action": -1, "max_action": 1}}
    env = make_env(EnvConfig(**{**GOAL, "kwargs": {"high": 5.0}, "wrappers": [FLATTEN, rescaled]}))
    assert env.observation_space.shape == (4,)
    assert env.action_space == spaces.Box(-1, 1, (3,), np.float32)
    start, _ = env.reset(options={"init_state": 3})
    env.step(np.ones(3, np.float32))
    np.testing.assert_allclose(env.unwrapped.place, 0.2)
    again, _ = env.reset(options={"init_state": 3})
    np.testing.assert_array_equal(start, again)


def test_wrappers_also_lie_between_the_toy_and_its_chunks():
    wrappers, kwargs = ["gymnasium.wrappers:TimeAwareObservation"], {"max_episode_steps": 9}
    config = EnvConfig(id="pcm_rl/Reach-v0", num_envs=2, wrappers=wrappers, kwargs=kwargs)
    with contextlib.closing(make_vector_env(config)) as env:
        assert not isinstance(env.unwrapped, TabletopVectorEnv) and env.single_observation_space.shape == (27,)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("gymnasium.wrappers:NoSuchWrapper", "NoSuchWrapper"),
        ("no_such_module:Wrapper", "no_such_module:Wrapper.*where pcm-rl was started"),
        ({"name": RESCALE, "kwargs": {"min_action": 0}}, "RescaleAction with {'min_action': 0}: .*max_action"),
        ({"name": RESCALE, "kwargs": {"min_action": 1, "max_action": -1}}, "RescaleAction with"),
        (f"{__name__}:number", "is 3, which cannot be called"),
        ({"name": f"{__name__}:third_step", "kwargs": {"info": {"steps": 3}}}, "expected a wrapped environment"),
    ],
)
def test_a_wrapper_that_does_not_fit_is_named(entry, text):
    with pytest.raises(ConfigError, match=f"env.wrappers: .*{text}"):
        make_env(EnvConfig(**{**GOAL, "wrappers": [entry]}))


@pytest.mark.parametrize(
    "entry", ["FlattenObservation", 3, {"kwargs": {}}, {"name": FLATTEN, "kw": {}}, {"name": FLATTEN, "kwargs": 3}]
)
def test_a_wrapper_is_a_name_or_a_name_with_arguments(entry):
    with pytest.raises(ConfigError, match="wrappers"):
        EnvConfig(wrappers=[entry])


def test_success_and_reward_are_the_configurations():
    reward, info = step_once(EnvConfig(**GOAL, success="is_success"))
    assert reward == [-4.0, -4.0] and not info["success"].any()
    reward, info = step_once(EnvConfig(**GOAL, success=f"{__name__}:third_step", reward="success"))
    assert reward == [1.0, 1.0] and info["success"].all() and info["action_is_pad"].sum() == 2
    for name in ("no_such", "number"):
        with pytest.raises(ConfigError, match=f"env.success: .*{name}"):
            make_vector_env(EnvConfig(**GOAL, success=f"{__name__}:{name}"))
    with pytest.raises(ConfigError, match="reward must be one of sum, success"):
        EnvConfig(reward="shaped")


def phases(config, actions):
    """Phases of one episode with these actions `[N, L, D]`."""
    from tensordict import TensorDict

    rows = {"vla_action": {"chunk": actions}, "action_is_pad": torch.zeros(actions.shape[:2], dtype=torch.bool)}
    batch = TensorDict({**rows, "episode_id": torch.zeros(len(actions), dtype=torch.int64)}, [len(actions)])
    return label_episodes(batch, **phase_rule(config)).tolist()


def test_what_closes_the_gripper():
    generator = torch.Generator().manual_seed(0)
    actions = torch.randn(9, 4, 3, generator=generator)
    actions[2:6, :, 1] = actions[2:6, :, 1].abs() + 0.6  # closed
    actions[:2, :, 1], actions[6:, :, 1] = 0.3, 0.3
    above = phases(EnvConfig(gripper_index=1, close_above=0.5), actions)
    assert len(set(above)) > 2
    flipped = actions.clone()
    flipped[..., 1] *= -1
    assert phases(EnvConfig(gripper_index=-2, close_below=-0.5), flipped) == above
    assert phases(EnvConfig(closed=f"{__name__}:two_grippers"), actions) == label_episodes_closed(actions)
    time = "pcm_rl.labellers:label_by_time"
    assert phases(EnvConfig(gripper_index=None, labeller=time), actions) == [3, 3, 1, 1, 0, 0, 2, 2, 4]


def label_episodes_closed(actions):
    command = two_grippers(actions).float().unsqueeze(-1)
    return phases(EnvConfig(close_above=0.5), command)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gripper_index": None}, "there is no gripper.*label_by_time.*label_by_distance"),
        ({"gripper_index": None, "close_below": 0.0, "labeller": "a:b"}, "close_below=0.0 is of a gripper"),
        ({"gripper_index": None, "close_above": 0.5, "labeller": "a:b"}, "close_above=0.5 is of a gripper"),
        ({"close_below": 0.0, "close_above": 0.5}, "close_below=0.0 and close_above=0.5; give one"),
        ({"close_below": 0.0, "closed": "a:b"}, "closed=a:b and close_below=0.0; give one"),
        ({"closed": "ab"}, "closed must be module:function"),
    ],
)
def test_gripper_rules_that_contradict_each_other_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        EnvConfig(**options)


def test_what_is_named_and_missing_is_said_before_an_environment_is_built():
    for option in ("closed", "labeller", "success"):
        with pytest.raises(ConfigError, match=rf"env\.{option}.*no_such"):
            make_vector_env(EnvConfig(**GOAL, **{option: f"{__name__}:no_such"}))
    with pytest.raises(ConfigError, match=r"env\.import_module=no_such_module"):
        make_env(EnvConfig(**GOAL, import_module="no_such_module"))


def test_a_gripper_rule_that_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"env\.closed: .*no_such"):
        phase_rule(EnvConfig(closed=f"{__name__}:no_such"))
    with pytest.raises(ConfigError, match=r"env\.closed: .*cannot be called"):
        phase_rule(EnvConfig(closed=f"{__name__}:number"))
    with pytest.raises(ValueError, match=r"gripper_index must lie in \[-3, 2\], got 7"):
        phases(EnvConfig(gripper_index=7, close_below=0.0), torch.zeros(2, 4, 3))


def test_a_worker_builds_all_of_its_environment(monkeypatch):
    """Also what prepares its images: nothing of it is left for the process of the policy."""
    built = []
    monkeypatch.setattr(module, "chunked_vector_env", lambda make, number, **options: built.append((make, options)))
    _vector_env(EnvConfig(**GOAL, workers=True, images={"size": 16}))
    ((make, options),) = built
    assert options["workers"] and options["timeout"] == 120.0
    with pytest.raises(ConfigError, match="expected a Dict with images"):  # Goal has none
        make()
