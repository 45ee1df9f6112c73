from __future__ import annotations

import contextlib

import gymnasium as gym
import numpy as np
import pytest
import torch

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.algos.demos import demonstrations, load_demonstrations, record_demonstrations
from pcm_rl.algos.sft import supervise, token_cross_entropy
from pcm_rl.config import ConfigError, load_config
from pcm_rl.envs.experts import make_expert
from pcm_rl.policies import StateTokenPolicy


def record(**options):
    env = gym.make("pcm_rl/Reach-v0")
    with contextlib.closing(env):
        return record_demonstrations(env, make_expert("pcm_rl/Reach-v0", env), range(20), **options)


def test_labels_are_the_next_clean_actions():
    demos = record(episodes=3, noise=0.2)
    assert demos["episode_id"].unique().numel() == 3
    for episode in demos["episode_id"].unique():
        mine = demos[demos["episode_id"] == episode]
        first = mine["vla_action", "chunk"][:, 0]
        for t in range(len(mine)):
            executed = ~mine["action_is_pad"][t]
            assert executed.tolist() == [t + j < len(mine) for j in range(8)]
            assert torch.equal(mine["vla_action", "chunk"][t][executed], first[t : t + 8])
    expert = make_expert("pcm_rl/Reach-v0", gym.make("pcm_rl/Reach-v0"))
    expert.reset(int(demos["episode_id"][0]))
    clean = expert.action(demos["observation", "state"][0].numpy())
    np.testing.assert_array_equal(clean, demos["vla_action", "chunk"][0, 0].numpy())


def test_recording_is_deterministic_and_noise_moves_states_only():
    assert (record(episodes=2, noise=0.2) == record(episodes=2, noise=0.2)).all()
    clean, noisy = record(episodes=1, noise=0.0), record(episodes=1, noise=0.3)
    assert torch.equal(clean["observation", "state"][0], noisy["observation", "state"][0])
    assert not torch.equal(clean["observation", "state"][1], noisy["observation", "state"][1])


def test_running_out_of_initial_states_says_how_far_it_came():
    with pytest.raises(RuntimeError, match=r"succeeded in \d+ of 20"):
        record(episodes=21)


def test_dataset_file_is_written_once_and_read_back(tmp_path):
    path = tmp_path / "demos.safetensors"
    config = load_config(None, ["env.id=pcm_rl/Reach-v0", "demos.episodes=2", f"demos.path={path}"])
    lines: list[str] = []
    first = demonstrations(config, lines.append)
    assert path.is_file() and str(path) in lines[-1]
    assert (load_demonstrations(path) == first).all()
    assert (demonstrations(config, lines.append) == first).all() and len(lines) == 1
    with pytest.raises(FileNotFoundError, match="pcm-rl demos"):
        load_demonstrations(tmp_path / "none.safetensors")


def test_supervision_lowers_the_loss_and_ignores_padding():
    torch.manual_seed(0)
    policy = StateTokenPolicy(26, width=32)
    demos = record(episodes=3)
    before = token_cross_entropy(policy, demos).item()
    losses = supervise(policy, demos, steps=80, batch_size=64, generator=torch.Generator().manual_seed(0))
    assert len(losses) == 80
    after = token_cross_entropy(policy, demos).item()
    assert after < 0.5 * before
    demos["vla_action", "chunk"][demos["action_is_pad"]] = 0.9
    assert token_cross_entropy(policy, demos).item() == after
    with pytest.raises(ValueError, match="chunks"):
        supervise(StateTokenPolicy(26, chunk_length=4), demos, steps=1)


def test_a_dataset_of_something_else_or_of_held_out_states_is_refused(tmp_path):
    path = tmp_path / "demos.safetensors"
    common = ["env.id=pcm_rl/Reach-v0", "demos.episodes=4", f"demos.path={path}"]
    finite = [*common, "env.num_states=12", "env.eval_states=6"]
    demonstrations(load_config(None, finite), str)
    assert len(demonstrations(load_config(None, finite), str))
    for other, text in (
        ("env.id=pcm_rl/PickPlace-v0", "env=pcm_rl/Reach-v0"),
        ("env.kwargs.horizon=99", "horizon"),
        ("env.chunk_length=4", "chunk_length=8"),
        ("seed=1", "holds out for evaluation"),
    ):
        with pytest.raises(ConfigError, match=text):
            demonstrations(load_config(None, [*finite, other]), str)
