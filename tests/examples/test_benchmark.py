"""The benchmark of examples/extending/benchmark: somebody else's package, one recipe and one file beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pcm_rl.config import load_config
from pcm_rl.rollouts.environments import make_env

FOLDER = Path(__file__).parents[2] / "examples" / "extending" / "benchmark"

pytest.importorskip("gymnasium_robotics")


@pytest.mark.slow
def test_it_trains_from_its_own_folder(tmp_path, train_as_a_user):
    small = ["steps=2", "groups=6", "eval_episodes=20", "demos.episodes=8", "sft.steps=60"]
    run = train_as_a_user("benchmark", tmp_path, *small)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"] and any(float(row["groups_mixed"]) for row in rows)
    summary = json.loads((run / "summary.json").read_text())
    assert {"before", "after"} <= set(summary)


@pytest.mark.slow
def test_it_trains_in_worker_processes(tmp_path, train_there):
    small = ["steps=1", "groups=2", "group_size=4", "eval_episodes=2", "demos.episodes=2", "sft.steps=5"]
    assert train_there("benchmark", tmp_path, *small, "env.workers=true", "env.num_envs=1").is_dir()


def test_a_group_starts_alike_and_goes_on_alike(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    config = load_config(FOLDER / "recipe.yaml").env
    first, second = make_env(config), make_env(config)

    def play(env, init_state, seed=0):
        rng = np.random.default_rng(seed)
        seen = [env.reset(options={"init_state": init_state})[0]]
        return np.stack(seen + [env.step(env.action_space.low * rng.uniform(-1, 1, 4))[0] for _ in range(12)])

    expected = play(first, 3)
    play(second, 4, seed=1)
    np.testing.assert_array_equal(play(second, 3), expected)
    np.testing.assert_array_equal(play(first, 3), expected)
    assert not np.array_equal(play(first, 5)[0], expected[0])
