"""Stable-Baselines3's PPO on the kept chunks: its own where nothing is left out."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from pcm_rl.algos.sb3 import PCMCallback, PCMRolloutBuffer
from pcm_rl.envs import ChunkedEnv
from pcm_rl.episodes import label_episodes

STEPS, ENVS = 16, 3


def ppo(budget=None, **buffer):
    """PPO on the toy, with its own buffer where no budget is given."""
    env = DummyVecEnv([lambda: ChunkedEnv(gym.make("pcm_rl/Reach-v0", horizon=72), record=False)] * ENVS)
    ours = {} if budget is None else {"rollout_buffer_class": PCMRolloutBuffer}
    own = {} if budget is None else {"rollout_buffer_kwargs": {"budget": budget, **buffer}}
    return PPO("MlpPolicy", env, n_steps=STEPS, batch_size=20, n_epochs=2, seed=0, device="cpu", **ours, **own)


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def test_ppo_that_leaves_nothing_out_is_stable_baselines3s_own():
    own = ppo().learn(3 * STEPS * ENVS)
    ours = ppo(budget=STEPS).learn(3 * STEPS * ENVS, callback=PCMCallback())
    assert torch.equal(parameters(own), parameters(ours))
    trimmed = ppo(budget=2).learn(3 * STEPS * ENVS, callback=PCMCallback())
    assert not torch.equal(parameters(own), parameters(trimmed))


def test_minibatches_hold_the_kept_rows_and_no_other():
    model = ppo(budget=2)
    model.learn(STEPS * ENVS, callback=PCMCallback())
    buffer = model.rollout_buffer
    kept = buffer.selected.index.tolist()
    batches = list(buffer.get(5))
    assert [len(batch.actions) for batch in batches[:-1]] == [5] * (len(batches) - 1)
    seen = torch.cat([batch.advantages for batch in batches]).sort().values
    assert torch.equal(seen, torch.from_numpy(buffer.advantages[kept].flatten()).sort().values)
    assert len(next(buffer.get()).actions) == len(kept) < STEPS * ENVS
    episode = torch.from_numpy(buffer.swap_and_flatten(buffer.episode_starts).flatten()).long()
    first = torch.arange(STEPS * ENVS) % STEPS == 0
    parts = (episode.bool() | first).long().cumsum(0)[kept]
    assert parts.bincount().max() == 2


def filled(steps, dones, successes, groups=None, width=1.0, **more):
    """A rollout of one environment whose gripper closes now and then, without an algorithm."""
    space = spaces.Box(-width, width, (4, 2), np.float32)
    buffer = PCMRolloutBuffer(steps, spaces.Box(-1, 1, (3,), np.float32), space, "cpu", n_envs=1, **more)
    fill(buffer, steps, dones, successes, groups)
    return buffer


def fill(buffer, steps, dones, successes, groups=None, closed=lambda t: t % 4 < 2):
    buffer.reset()
    zero = torch.zeros(1)
    for t in range(steps):
        action = np.full((1, 4, 2), 5.0 if closed(t) else -5.0, np.float32)  # outside of the box, as a Gaussian's
        action[..., 0] = 5.0 if t < 4 else -5.0
        info = {"action_is_pad": np.zeros(4, bool), "success": t in successes}
        if groups is not None:
            info["group_id"] = groups[t]
        buffer.record([info], np.array([t in dones]))
        buffer.add(np.zeros((1, 3)), action, np.zeros(1), np.array([t - 1 in dones]), zero, zero)
    buffer.compute_returns_and_advantage(zero, np.array([steps - 1 in dones]))


def test_a_part_whose_episode_goes_on_is_no_evidence_and_keeps_its_past():
    buffer = filled(10, dones={3}, successes={3}, budget=2)
    rows, present = buffer._rows()
    assert rows["episode_id"].tolist() == [0] * 4 + [1] * 6 and present.all()
    assert rows["success"].tolist() == [True] * 4 + [False] * 6
    assert len(rows["group_id"].unique()) == 2  # the second has a group of its own, so that it is compared with none
    assert rows["vla_action", "chunk"].abs().max() == 1.0
    first = rows["vla_action", "chunk"][4:]

    fill(buffer, 10, dones={1}, successes=set())
    rows, present = buffer._rows()
    assert rows["episode_id"].tolist() == [0] * 8 + [1] * 8 and present.tolist() == [False] * 6 + [True] * 10
    assert torch.equal(rows["vla_action", "chunk"][:6], first)
    assert rows["chunk_id"].tolist() == [*range(8), *range(8)]
    assert rows["success"].sum() == 0
    fill(buffer, 10, dones={1}, successes=set())
    assert label_episodes(buffer._rows()[0]).shape == (18,)
    fill(buffer, 10, dones={1}, successes=set())
    buffer.episode_starts[0] = 1.0  # learn() was called again, which resets the environments
    assert buffer._rows()[0]["episode_id"].tolist() == [0] * 2 + [1] * 8


def test_groups_and_outcomes_make_the_score():
    buffer = filled(8, dones={3, 7}, successes={3}, budget=2)
    assert buffer.choose().score.isnan().logical_not().any()  # one group: a success and a failure part
    wide = filled(8, dones={3, 7}, successes={3}, width=3.0, budget=2).choose()
    score = filled(8, dones={3, 7}, successes={3}, budget=2).choose().score.nan_to_num()
    assert torch.equal(wide.score.nan_to_num(), score) and score.max() > 0  # half a box is the unit
    apart = filled(8, dones={3, 7}, successes={3}, groups=[0] * 4 + [1] * 4, budget=2)
    assert apart.choose().score.isnan().all()
    assert len(apart.selected.index) == 4


def test_misuse_is_refused_with_the_remedy():
    with pytest.raises(RuntimeError, match=r"needs its callback: model\.learn\(\.\.\., callback=PCMCallback\(\)\)"):
        ppo(budget=2).learn(STEPS * ENVS)
    with pytest.raises(TypeError, match="needs rollout_buffer_class=PCMRolloutBuffer, got RolloutBuffer"):
        ppo().learn(STEPS * ENVS, callback=PCMCallback())
    with pytest.raises(ValueError, match="budget must be at least 1"):
        ppo(budget=0)
    box = spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(ValueError, match="expected actions that are chunks"):
        PCMRolloutBuffer(4, box, box)
    with pytest.raises(ValueError, match="flatten it"):
        PCMRolloutBuffer(4, spaces.Dict({"a": box}), spaces.Box(-1, 1, (4, 2), np.float32))
    with pytest.raises(KeyError, match=r"infos lack \['success'\]: the environment must be a ChunkedEnv"):
        filled(4, set(), set()).record([{"action_is_pad": [False]}], np.zeros(1, bool))


def test_tokens_are_decoded_into_chunks():
    buffer = PCMRolloutBuffer(
        2, spaces.Box(-1, 1, (3,), np.float32), spaces.MultiDiscrete([5] * 8), "cpu", n_envs=1,
        decode=lambda tokens: tokens.reshape(-1, 4, 2) / 2 - 1, budget=1,
    )  # fmt: skip
    zero = torch.zeros(1)
    for t in range(2):
        buffer.record([{"action_is_pad": np.zeros(4, bool), "success": False}], np.array([t == 1]))
        buffer.add(np.zeros((1, 3)), np.full((1, 8), 4), np.zeros(1), np.zeros(1), zero, zero)
    buffer.compute_returns_and_advantage(zero, np.ones(1))
    assert torch.equal(buffer._rows()[0]["vla_action", "chunk"], torch.ones(2, 4, 2))
    assert len(buffer.choose().index) == 1
