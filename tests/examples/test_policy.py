"""The policy family of examples/extending/policy: a small CNN on pixels."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from pcm_rl.config import ConfigError, load_config
from pcm_rl.episodes import FEATURES, STATE
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.training.build import make_policy
from pcm_rl.training.grpo import GRPO

EXTENDING = Path(__file__).parents[2] / "examples" / "extending"


@pytest.fixture
def config(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENDING / "policy"))
    return lambda *overrides: load_config(EXTENDING / "policy" / "recipe.yaml", ["env.num_envs=2", *overrides])


@pytest.mark.slow
def test_it_trains_from_its_own_folder_and_goes_on_from_its_checkpoint(tmp_path, train_there):
    small = ["steps=2", "groups=4", "group_size=4", "eval_episodes=8", "eval_every=0", "sft.steps=100"]
    run = train_there("policy", tmp_path, *small, "demos.episodes=10", "record=false")
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
    assert (run / "checkpoint" / "policy.safetensors").is_file()


def test_the_family_gets_its_options_and_is_checked(config):
    chosen = config()
    env = make_vector_env(chosen.env)
    policy = make_policy(chosen, env)
    assert (policy.chunk_size, policy.action_dim, policy.in_keys) == (4, 3, [("observation", "image")])
    with pytest.raises(ConfigError, match=r"policy.family=pixels:cnn: .*breadth"):
        make_policy(config("policy.options={breadth: 3}"), env)
    with pytest.raises(ConfigError, match="micro_tokens: pixels:cnn does not count tokens"):
        make_policy(config("update.micro_tokens=100"), env)
    with pytest.raises(ConfigError, match="checkpointing=always: pixels:cnn cannot"):
        make_policy(config("policy.checkpointing=always"), env)


def test_a_critic_that_sees_images_only(config):
    chosen = config("advantage.name=critic", "advantage.features=policy", "sft.steps=0", "threads=1")
    grpo = GRPO(chosen, make_vector_env(chosen.env))
    torch.manual_seed(0)
    rows = collect_episodes(make_vector_env(chosen.env), grpo.policy, torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert STATE not in rows.keys(True) and rows[FEATURES].shape == (len(rows), 256)
    first = rows[rows["chunk_id"] == 0]
    assert torch.equal(first[FEATURES], grpo.policy.features(first))
    rows["success"] = rows["episode_id"] == 1
    grpo.credit.observe(rows)
    grpo.credit.fit(rows)
    grpo.write_advantage(rows)
    assert len(rows["advantage"].unique()) > 2, "each chunk has a credit of its own"


def test_what_is_no_family_is_refused(config):
    with pytest.raises(ConfigError, match=r"family must be one of state, .*openvla.*, got 'cnn'"):
        config("policy.family=cnn")
    with pytest.raises(ConfigError, match=r"policy.state is set and means nothing"):
        config("policy.state.width=8")
    with pytest.raises(ConfigError, match=r"policy.family=json:dumps"):
        make_policy(config("policy.family=json:dumps", "policy.options={}"), make_vector_env(config().env))
    chosen = config("policy.family=pixels:Expert", "policy.options={}")
    with pytest.raises(ConfigError, match=r"policy.family=pixels:Expert"):
        make_policy(chosen, make_vector_env(chosen.env))
