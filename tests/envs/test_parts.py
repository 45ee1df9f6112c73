"""Observations in several parts: named, joined, recorded; and advice that fits them."""

from __future__ import annotations

import contextlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pcm_rl.config import ConfigError, EnvConfig, load_config
from pcm_rl.envs import ChunkedEnv, ObservationParts
from pcm_rl.rollouts.environments import make_env, make_vector_env
from pcm_rl.training.build import make_policy
from pcm_rl.training.trainer import Trainer

VECTOR, IMAGE = spaces.Box(-9, 9, (2,), np.float64), spaces.Box(0, 255, (4, 6, 3), np.uint8)
SPACES = {
    "goal": {"achieved_goal": VECTOR, "desired_goal": VECTOR, "observation": VECTOR},
    "nested": {"agent_pos": VECTOR, "pixels": spaces.Dict({"top": IMAGE}), "stage": spaces.Discrete(3)},
    "two cameras": {"pixels": spaces.Dict({"left": IMAGE, "right": IMAGE}), "agent_pos": VECTOR},
    "told": {"agent_pos": VECTOR, "told": spaces.Text(9)},
}


class Parts(gym.Env):
    """Shows samples of its observation space; every third step is a success."""

    def __init__(self, kind="goal"):
        self.observation_space = spaces.Dict(SPACES[kind])
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps, self.seen = 0, self.observation_space.sample()
        return self.seen, {}

    def step(self, action):
        self.steps += 1
        self.seen = self.observation_space.sample()
        there = bool(self.steps >= 3 and action[0] > 0)
        return self.seen, 0.0, False, self.steps >= 8, {"is_success": there}


if "Parts-v0" not in gym.registry:
    gym.register("Parts-v0", Parts)
PARTS = {"id": "Parts-v0", "init_state": "seed", "num_envs": 2, "chunk_length": 2, "max_chunks": 4, "eval_states": 2}


def test_a_list_of_parts_is_a_vector_in_their_order():
    env = ObservationParts(Parts(), ["observation", "desired_goal"])
    observation, _ = env.reset(seed=0)
    assert env.observation_space.shape == (4,) and env.observation_space.contains(observation)
    seen = env.unwrapped.seen
    np.testing.assert_array_equal(observation, np.concatenate([seen["observation"], seen["desired_goal"]]))
    env = ObservationParts(Parts("nested"), ["stage", "agent_pos"])
    observation, _ = env.reset(seed=0)
    assert env.observation_space.shape == observation.shape == (5,)  # one of three stages, then two numbers


def test_a_mapping_of_parts_gives_new_names():
    env = ObservationParts(Parts("two cameras"), {"image": "pixels.right", "state": ["agent_pos", "agent_pos"]})
    observation, _ = env.reset(seed=0)
    seen = env.unwrapped.seen
    assert list(observation) == ["image", "state"] and env.observation_space.contains(observation)
    assert np.array_equal(observation["image"], seen["pixels"]["right"])
    assert np.array_equal(observation["state"], np.tile(seen["agent_pos"], 2))


@pytest.mark.parametrize(
    ("kind", "parts", "text"),
    [
        ("goal", ["observation", "goal"], "no part 'goal'; it has achieved_goal, desired_goal, observation"),
        ("nested", {"image": "top"}, r"no part 'top'; it has agent_pos, pixels\.top, stage"),
        (
            "nested",
            ["agent_pos", "pixels.top"],
            r"'pixels.top' has no place in a vector, .*a name of its own: image=pix",
        ),
        ("told", ["told"], "'told' has no place in a vector"),
    ],
)
def test_parts_that_are_not_there_or_are_no_vector_are_refused(kind, parts, text):
    with pytest.raises(ConfigError, match=f"env.observation: .*{text}"):
        make_env(EnvConfig(**PARTS, kwargs={"kind": kind}, observation=parts))


def test_an_observation_without_parts_is_refused():
    with pytest.raises(ConfigError, match=r"env\.observation: .*name parts of a Dict observation, and this one is Box"):
        make_env(EnvConfig(observation=["state"]))


@pytest.mark.parametrize("parts", ["observation", [], {}, [1], {"state": [2]}, {"state": []}])
def test_the_setting_is_a_list_or_a_mapping_of_names(parts):
    with pytest.raises(ConfigError, match="observation must be a list of parts"):
        EnvConfig(observation=parts)


def test_a_dict_in_the_dict_is_recorded():
    def recorded(kind):
        env = ChunkedEnv(Parts(kind), 8, success="is_success", gripper_index=None)
        env.reset(seed=0)
        first = env.unwrapped.seen
        *_, info = env.step(np.ones((8, 2), np.float32))
        return first, info["trajectory"]["observation"]

    first, seen = recorded("nested")
    assert set(seen.keys(True, True)) == {"state", "image", "stage"}
    assert torch.equal(seen["image"][0], torch.from_numpy(first["pixels"]["top"].transpose(2, 0, 1)))
    assert seen["state"].dtype == torch.float32 and seen["state"][0].tolist() == pytest.approx(first["agent_pos"])
    first, seen = recorded("two cameras")
    assert set(seen.keys(True, True)) == {"state", ("pixels", "left"), ("pixels", "right")}
    assert torch.equal(seen["pixels", "left"][0], torch.from_numpy(first["pixels"]["left"].transpose(2, 0, 1)))
    with pytest.raises(ValueError, match=r"cannot record 'told'.*name the parts to record \(ObservationParts"):
        ChunkedEnv(Parts("told"))


@pytest.mark.parametrize(
    ("kind", "advice", "warning"),
    [
        ("goal", "env.observation=[achieved_goal,desired_goal,observation]", ""),
        ("nested", "env.observation=[agent_pos]", "pixels.top, stage would not be seen"),
    ],
)
def test_a_policy_of_vectors_names_the_parts_it_can_read(kind, advice, warning):
    options = ["env.id=Parts-v0", "env.init_state=seed", "env.num_envs=1", f"env.kwargs.kind={kind}"]
    config = load_config(None, options)
    with contextlib.closing(make_vector_env(config.env)) as env, pytest.raises(ConfigError) as error:
        make_policy(config, env)
    assert advice in str(error.value) and warning in str(error.value)
    config = load_config(None, [*options, advice])
    with contextlib.closing(make_vector_env(config.env)) as env:
        assert make_policy(config, env).in_keys == [("observation", "state")]


class Forward:
    def __init__(self, env):
        self.size = env.observation_space.shape

    def reset(self, init_state):
        """Remembers nothing."""

    def action(self, observation):
        assert observation.shape == self.size == (4,)
        return np.array([1.0, -1.0], np.float32)


def test_named_parts_are_trained_on(tmp_path):
    config = load_config(
        None,
        [
            "env.id=Parts-v0", "env.init_state=seed", "env.num_envs=2", "env.chunk_length=2", "env.max_chunks=4",
            "env.eval_states=2", "env.observation=[observation,desired_goal]",
            "env.gripper_index=null", "env.labeller=pcm_rl.labellers:label_by_time", "env.import_module=" + __name__,
            f"demos.expert={__name__}:Forward", "demos.episodes=2", f"demos.path={tmp_path}/demos.safetensors",
            "sft.steps=2", "groups=2", "group_size=4", "selection.budget=2",
        ],
    )  # fmt: skip
    trainer = Trainer(config, lambda line: None)
    with contextlib.closing(trainer.env):
        trainer.supervised_start()
        rows = trainer.collect()
    assert rows["observation", "state"].shape == (len(rows), 4)
    with pytest.raises(ConfigError, match=r'recorded with observation=\["observation", "desired_goal"\]'):
        demonstrations_with(config, "achieved_goal")


def demonstrations_with(config, part):
    from dataclasses import replace

    from pcm_rl.rollouts.demonstrations import demonstrations

    return demonstrations(replace(config, env=replace(config.env, observation=["observation", part])), str)
