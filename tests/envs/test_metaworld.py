"""ChunkedEnv on MetaWorld's pick-place, driven by MetaWorld's own expert."""

import warnings

import gymnasium
import numpy as np
import pytest

from pcm_rl import Phase
from pcm_rl.envs.chunked import ChunkedEnv

pytestmark = pytest.mark.metaworld
metaworld = pytest.importorskip("metaworld")

L = 8


@pytest.fixture
def make():
    """Builds `make(**arguments)`: pick-place in chunks. The experts send 0 to open, 0.6 or 1 to close."""
    made = []

    def build(**arguments):
        base = gymnasium.make("Meta-World/MT1", env_name="pick-place-v3", seed=0, disable_env_checker=True)
        made.append(ChunkedEnv(base, gripper_index=3, close_above=0.5, success="success", **arguments))
        return made[-1]

    yield build
    for env in made:
        env.close()


@pytest.fixture
def demonstration(make):
    """The expert, asked at every step: its actions `[T, 4]` and the episode of T chunks of one step."""
    from metaworld.policies import ENV_POLICY_MAP

    env, expert = make(chunk_length=1, reward="success"), ENV_POLICY_MAP["pick-place-v3"]()
    observation, _ = env.reset(seed=0)
    actions, rewards, ended = [], [], False
    while not ended:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the expert asks for more than 1, and says so
            action = np.clip(expert.get_action(observation), -1, 1).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action[None])
        actions.append(action)
        rewards.append(reward)
        ended = terminated or truncated
    assert terminated and info["success"] and sum(rewards) == rewards[-1] == 1.0
    return np.stack(actions), info["episode"]


def test_the_expert_step_by_step(demonstration):
    actions, episode = demonstration
    assert episode.batch_size == (len(actions),) and len(actions) < 100
    assert episode["observation", "state"].shape == (len(actions), 39)
    assert {Phase.APPROACH, Phase.ACTIVE_GRIP} <= set(episode["phase"].tolist())


def test_the_expert_replayed_in_chunks(make, demonstration):
    actions, _ = demonstration
    env = make(chunk_length=L, reward="success", instruction="pick up the puck")
    env.reset(seed=0, options={"group_id": 2})
    padded = np.concatenate([actions, np.zeros((-len(actions) % L, 4), np.float32)])
    rewards = []
    for chunk in padded.reshape(-1, L, 4):
        _, reward, terminated, _, info = env.step(chunk)
        rewards.append(reward)
    assert terminated and rewards == [0.0] * (len(rewards) - 1) + [1.0]
    episode = info["episode"]
    assert (~episode["action_is_pad"]).sum() == len(actions)  # stopped at the very step of the demonstration
    assert {Phase.APPROACH, Phase.ACTIVE_GRIP} <= set(episode["phase"].tolist())
    assert episode["success"].all() and episode["group_id"].tolist() == [2] * len(rewards)


def test_random_chunks_fail_and_are_truncated(make):
    env = make(chunk_length=L)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(500 // L + 1):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
    assert truncated and not terminated and not info["success"]
    assert info["action_is_pad"].tolist() == [False] * 4 + [True] * 4  # 500 = 62 x 8 + 4
    assert info["episode"].batch_size == (63,)
