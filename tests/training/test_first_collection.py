"""The first collection of a run: refused where it cannot be right, a line where it may be useless."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from pcm_rl.cli import main
from pcm_rl.config import load_config
from pcm_rl.episodes import IS_PAD, LOG_PROBS
from pcm_rl.policies.family import bins_of
from pcm_rl.rollouts.first_look import look_at_head
from pcm_rl.training.trainer import Trainer


class Line(gym.Env):
    """Says nothing about its horizon."""

    def __init__(self, *, ignores=False, start=None, length=8, success=None):
        self.ignores, self.start, self.length, self.success = ignores, start, length, success
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=None if self.ignores else options["init_state"])
        self.state = np.array([self.np_random.normal() if self.start is None else self.start, 0.0], np.float32)
        self.elapsed = 0
        return self.state.copy(), {}

    def step(self, action):
        self.state[1] += action[0]
        self.elapsed += 1
        success = self.state[1] > 1.0 if self.success is None else self.success
        return self.state.copy(), 0.0, False, self.elapsed >= self.length, {"success": bool(success)}


@pytest.fixture(scope="module", autouse=True)
def registered():
    gym.register("Track-v0", entry_point=Line)
    yield
    del gym.registry["Track-v0"]


def train(tmp_path, *overrides):
    return main([
        "train", "env.id=Track-v0", "env.num_envs=4", "env.chunk_length=2", "env.eval_states=4", "eval_episodes=4",
        "groups=4", "group_size=4", "steps=1", "eval_every=0", "logger=none", "record=false", "sft.steps=0",
        "policy.state.width=16", "threads=1", f"run_dir={tmp_path}", "name=run", *overrides,
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["env.kwargs.ignores=true"], "begin with different observations"),
        (["env.kwargs.length=12", "env.max_chunks=4"], "an episode has 6 chunks, more than the 4 slots"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(tmp_path, capsys, overrides, text):
    assert train(tmp_path, *overrides) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("pcm-rl: ") and error.count("\n") == 1


@pytest.mark.filterwarnings("ignore:all .* chunks are in phase")
@pytest.mark.parametrize(
    ("overrides", "looked_at"),
    [
        ([], None),
        (["env.kwargs.start=0.5"], "groups: 4 groups from different initial states begin with one and the same"),
        (["env.kwargs.success=true"], "success: 16 of 16 episodes succeeded"),
        (["env.kwargs.success=false"], "success: 0 of 16 episodes succeeded, and the policy chooses almost uniformly"),
        (["env.close_above=0.99"], "phases: all chunks are in one phase"),
    ],
)
def test_what_may_be_useless_is_said(tmp_path, capsys, overrides, looked_at):
    assert train(tmp_path, *overrides) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("first look at ")]
    assert said == [] if looked_at is None else [line for line in said if looked_at in line] == said != []


def head(policy, rows):
    return look_at_head(rows[LOG_PROBS], rows[IS_PAD], bins_of(policy)).level


def test_an_untrained_head_is_told_from_one_that_saw_a_single_demonstration():
    config = load_config(None, [
        "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=48", "env.max_chunks=6", "env.num_envs=6", "env.eval_states=6",
        "groups=2", "group_size=3", "eval_episodes=6", "logger=none", "record=false", "demos.episodes=1",
        "sft.steps=100", "policy.state.width=64", "threads=1",
    ])  # fmt: skip
    trainer = Trainer(config, lambda line: None)
    assert head(trainer.policy, trainer.collect()) == "warn"
    trainer.supervised_start()
    assert head(trainer.policy, trainer.collect()) == "ok"
    trainer.env.close()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_head_of_a_random_openvla_is_named(make_openvla, record_openvla, seed):
    policy = make_openvla()
    assert head(policy, record_openvla(policy, ["lift it", "go"] * 16, seed=seed)) == "warn"
