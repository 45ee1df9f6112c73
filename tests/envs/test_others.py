"""Environments that others use, by the recipes of examples/environments: chunks, groups, two steps of training, eval.

gymnasium-robotics and gym-pusht are installed beside the rest; `make test-envs` has an environment with the others.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pcm_rl import episodes
from pcm_rl.cli import main
from pcm_rl.config import EnvConfig, load_config
from pcm_rl.envs import ChunkedEnv
from pcm_rl.envs.experts import make_expert
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.environments import make_env, make_vector_env, phase_rule
from pcm_rl.training.build import make_policy

FOLDER = Path(__file__).parents[2] / "examples" / "environments"
PACKAGES = {"fetch": "gymnasium-robotics", "pusht": "gym-pusht", "panda": "panda-gym", "lift": "robosuite"}
SMALL = [
    "env.num_envs=2", "env.workers=false", "env.eval_states=8", "groups=2", "group_size=4", "eval_episodes=4",
    "demos.episodes=2", "sft.steps=20", "policy.state.width=32", "steps=2", "eval_every=0", "logger=none",
    "selection.budget=2", "threads=1",
]  # fmt: skip

pytestmark = pytest.mark.others


@pytest.fixture(params=PACKAGES)
def recipe(request, monkeypatch):
    """Name of a recipe whose package is installed, with its folder as the working directory."""
    package = PACKAGES[request.param]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed; make test-envs installs it")
    if package == "robosuite" and tuple(map(int, version.split(".")[:2])) < (1, 5):
        pytest.skip(f"robosuite is {version}, for LIBERO; make test-envs installs 1.5")
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return request.param


def options(recipe, *overrides):
    """The options of a short run; PushT has no expert, and no success by chance in so few episodes."""
    own = ["sft.steps=0", "env.success=pusht:half"] if recipe == "pusht" else []
    return [*SMALL, *own, *overrides]


def config_of(recipe) -> EnvConfig:
    return load_config(FOLDER / f"{recipe}.yaml", options(recipe)).env


def expert_of(recipe, env):
    name = load_config(FOLDER / f"{recipe}.yaml").demos.expert
    return None if name is None else make_expert("none", env, expert=name)


def test_an_episode_of_chunks_is_a_tensordict_with_phases(recipe):
    config = config_of(recipe)
    with contextlib.closing(make_env(config)) as single:
        expert = expert_of(recipe, single)
        length = config.chunk_length if expert is None else 1
        env = ChunkedEnv(single, length, success=config.success, reward="success", **phase_rule(config))
        observation, _ = env.reset(options={"init_state": 0})
        env.action_space.seed(0)
        states, ended = [], False
        while not ended:
            states.append(observation)
            action = env.action_space.sample() if expert is None else expert.action(observation)[None]
            observation, reward, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
    rows = info["trajectory"]
    episodes.check_batch(rows)
    assert rows.batch_size == (len(states),)
    torch.testing.assert_close(rows["observation", "state"], torch.tensor(np.stack(states)).float())
    assert (rows["phase"] >= 0).all() and rows["phase"].unique().numel() > 1
    assert bool(rows["success"].all()) == info["success"] == (expert is not None) and reward == info["success"]


def test_a_group_starts_alike_on_every_instance(recipe):
    config = config_of(recipe)
    with contextlib.closing(make_env(config)) as one, contextlib.closing(make_env(config)) as other:
        first, _ = one.reset(options={"init_state": 3})
        other.reset(options={"init_state": 4})
        for action in np.random.default_rng(0).uniform(0, 1, (3, *one.action_space.shape)).astype(np.float32):
            other.step(other.action_space.low + action * (other.action_space.high - other.action_space.low))
        again, _ = other.reset(options={"init_state": 3})
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other.reset(options={"init_state": 4})[0])


def test_episodes_are_collected_in_groups(recipe):
    config = load_config(FOLDER / f"{recipe}.yaml", options(recipe))
    torch.manual_seed(0)
    with contextlib.closing(make_vector_env(config.env)) as env:
        policy = make_policy(config, env)
        box = env.single_action_space
        rows = collect_episodes(env, policy, torch.tensor([5, 5, 6]), torch.tensor([0, 0, 1]))
    starts = rows[rows["chunk_id"] == 0]["observation", "state"]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    chunk = rows["vla_action", "chunk"]
    low, high = torch.from_numpy(box.low), torch.from_numpy(box.high)
    assert (chunk > low).all() and (chunk < high).all() and ((chunk - low) / (high - low)).std() > 0.25


@pytest.mark.slow
def test_the_recipe_trains_and_is_evaluated(recipe, tmp_path, capsys):
    arguments = [f"run_dir={tmp_path}", "name=run", *options(recipe)]
    assert main(["train", "--config", f"{recipe}.yaml", *arguments]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"]["episodes"] == 4
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 3
    assert main(["eval", str(tmp_path / "run"), "--episodes", "2"]) == 0, capsys.readouterr().err
