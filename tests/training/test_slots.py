"""Slots follow from the horizon and the length of a chunk, and a failing measurement costs a run nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from pcm_rl.config import ConfigError, load_config
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.first_look import look_at_length
from pcm_rl.training.slots import pad_to_slots, with_slots
from pcm_rl.training.trainer import train

REACH = ["env.id=pcm_rl/Reach-v0", "env.num_envs=6", "env.eval_states=4", "groups=2", "group_size=3"]


def slots_of(recipe, *overrides):
    config = load_config(recipe, overrides)
    env = make_vector_env(config.env)
    try:
        return with_slots(config, env).env.slots
    finally:
        env.close()


@pytest.mark.parametrize(("recipe", "slots"), [("configs/pick_place.yaml", 64), ("configs/reach.yaml", 32)])
def test_slots_of_shipped_recipes_follow_from_horizon_and_chunk(recipe, slots, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert slots_of(recipe) == slots
    assert slots_of(recipe, "env.chunk_length=4") == 2 * slots
    assert slots_of(recipe, "env.chunk_length=7") == -(-8 * slots // 7)
    assert slots_of(recipe, "env.max_chunks=99") == 99  # more padding than needed, if one wants it
    with pytest.raises(ConfigError, match=rf"env.max_chunks={slots}: an episode of .* has {2 * slots} chunks of 4"):
        slots_of(recipe, "env.chunk_length=4", f"env.max_chunks={slots}")


def test_without_a_horizon_slots_are_those_given_and_a_longer_episode_is_refused():
    assert with_slots(load_config(), SimpleNamespace()).env.slots == 64
    assert with_slots(load_config(None, ["env.max_chunks=9"]), SimpleNamespace()).env.slots == 9
    rows = TensorDict(
        {"chunk_id": torch.tensor([0, 1, 2, 0]), "episode_id": torch.tensor([0, 0, 0, 1])}, batch_size=[4]
    )
    assert look_at_length(rows, 3).level == "ok"
    assert "an episode has 3 chunks, more than the 2 slots" in look_at_length(rows, 2).text
    with pytest.raises(ConfigError, match=r"give env\.max_chunks=3 or more"):
        pad_to_slots(rows, 2)


def test_the_longest_of_several_tasks_counts():
    overrides = ["env.id=pcm_rl/Reach-v0", "env.num_envs=1", "env.num_states=9", "env.eval_states=2"]
    assert slots_of(None, *overrides, "env.tasks={horizon: [16, 40, 24]}") == 5


def test_a_run_with_shorter_chunks_ends_with_its_summary_and_a_padded_baseline(half_trained, tmp_path):
    without = [override for override in half_trained if not override.startswith(("env.max_chunks", "policy.init"))]
    config = load_config(
        None, [*without, "env.chunk_length=4", "sft.steps=30", "steps=1", "eval_every=0", f"run_dir={tmp_path}"]
    )
    train(config, say=lambda line: None)
    summary = json.loads((config.folder / "summary.json").read_text())
    assert "after" in summary
    for cost in summary.get("profile", []):
        assert cost["method"] != "full-padded" or cost["rows"] % 24 == 0
    assert load_config(config.folder / "config.yaml") == config


def test_slots_too_few_are_refused_before_anything_is_made(tmp_path):
    config = load_config(None, [*REACH, "env.kwargs.horizon=96", "env.max_chunks=11", f"run_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="give at least 12"):
        train(config, say=lambda line: None)
    assert not config.folder.exists()


def test_a_failing_measurement_takes_neither_summary_nor_report(half_trained, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory left")

    monkeypatch.setattr("pcm_rl.training.finish.profile_update", fail)
    config = load_config(None, [*half_trained, "steps=1", "eval_every=0", f"run_dir={tmp_path}", "name=run"])
    lines: list[str] = []
    train(config, say=lines.append)
    assert any("the cost of an update was not measured: no memory left" in line for line in lines)
    summary = json.loads((config.folder / "summary.json").read_text())
    assert "after" in summary and "profile" not in summary
    assert (config.folder / "report.html").is_file() and "report:" in lines[-1]
