"""A pipeline of TorchRL's own parts (environment, collector, MCAdvantage, replay buffer) with our trim and loss."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.utils import check_env_specs
from torchrl.objectives.llm import MCAdvantage

from pcm_rl.algos import ChunkGRPOLoss, EpisodeKeys, LabelPhases, PCMSampler, torchrl_env
from pcm_rl.envs import ChunkedEnv
from pcm_rl.policies import StateTokenPolicy


def environment():
    return torchrl_env(ChunkedEnv(gym.make("pcm_rl/Reach-v0", horizon=44), record=False))


def actor():
    torch.manual_seed(0)
    policy = StateTokenPolicy(26, width=16)
    policy.set_keys(state="observation", action_chunk="action")
    return policy


def test_specs_and_pads():
    env = environment()
    check_env_specs(env)
    rollout = env.rollout(100, actor())
    assert (~rollout["next", "action_is_pad"]).sum(-1).tolist() == [8, 8, 8, 8, 8, 4]


def pipeline():
    sampler = PCMSampler(budget=3)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(200), batch_size=8)
    for transform in (
        sampler,
        LabelPhases(),
        MCAdvantage(grpo_size=4, prompt_key="group_id", trajectory_return="sum"),
        EpisodeKeys(),
    ):
        buffer.append_transform(transform)  # writing runs them from last to first
    return buffer, sampler


def test_rollouts_through_the_write_path_to_a_gradient():
    env, policy = environment(), actor()
    buffer, sampler = pipeline()
    for i in range(8):
        trajectory = env.rollout(100, policy)
        trajectory["group_id"] = torch.full((len(trajectory),), i // 4)
        trajectory["next", "reward"][-1] = float(i % 2)  # an outcome to work on
        trajectory["next", "success"][-1] = bool(i % 2)
        buffer.extend(trajectory)
    stored = buffer[:]
    assert len(stored) == 8 * 3
    assert sorted(stored["episode_id"].unique().tolist()) == list(range(8))
    assert stored["success"].tolist() == (stored["episode_id"] % 2 == 1).tolist()
    assert sampler.stats["chunks_valid"] == 4 * 6
    loss = ChunkGRPOLoss(policy)
    loss(buffer.sample())["loss_objective"].backward()
    assert sum(float(p.grad.abs().sum()) for p in policy.parameters()) > 0


def test_a_collectors_frames_are_cut_into_trajectories():
    policy = actor()
    collector = Collector(
        environment, policy, frames_per_batch=24, total_frames=24, auto_register_policy_transforms=False
    )
    (batch,) = [data.reshape(-1) for data in collector]
    collector.shutdown()
    assert batch["next", "done"].sum() == 4
    batch["group_id"] = torch.zeros(len(batch), dtype=torch.int64)
    done = EpisodeKeys()(batch)
    assert done["episode_id"].tolist() == [i for i in range(4) for _ in range(6)]
    assert done["chunk_id"].tolist() == list(range(6)) * 4
    assert torch.equal(done["vla_action", "chunk"], batch["action"])
    assert (~done["action_is_pad"]).sum(-1).tolist() == [8, 8, 8, 8, 8, 4] * 4
    again = EpisodeKeys()
    assert again(batch.exclude("episode_id"))["episode_id"].max() == 3
    assert again(batch.exclude("episode_id"))["episode_id"].min() == 4, "ids go on over calls"
    with pytest.raises(ValueError, match="not done"):
        EpisodeKeys()(batch[:-1].exclude("episode_id"))
