"""Texts from the environment: used, and never written."""

from __future__ import annotations

import json
import pickle

import gymnasium as gym
import pytest

from pcm_rl.cli import main
from pcm_rl.config import Config, ConfigError, as_written, load_config, load_run_config, save_config
from pcm_rl.rollouts.dataset import recording_settings

SECRET = "hunter2"
RECIPE = """
env:
  id: pcm_rl/Reach-v0
  kwargs: {token: "${oc.env:PCM_TEST_TOKEN}", nested: {list: ["a", "Bearer ${oc.env:PCM_TEST_TOKEN}"]}}
  wrappers: [{name: "gymnasium.wrappers:FlattenObservation", kwargs: {key: "${oc.env:PCM_TEST_TOKEN}"}}]
policy: {init: "/models/${oc.env:PCM_TEST_TOKEN}"}
run_dir: runs-${seed}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("PCM_TEST_TOKEN", SECRET)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_a_value_from_the_environment_is_used_and_not_written(recipe, tmp_path):
    config = load_config(recipe, ["demos.path=${oc.env:PCM_TEST_TOKEN}.safetensors"])
    assert config.env.kwargs == {"token": SECRET, "nested": {"list": ["a", f"Bearer {SECRET}"]}}
    assert (config.policy.init, config.demos.path) == (f"/models/{SECRET}", f"{SECRET}.safetensors")
    assert config.env.wrapper_calls[0][1] == {"key": SECRET} and config.run_dir == "runs-0"
    folder = tmp_path / "run"
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    text = (folder / "config.yaml").read_text()
    assert SECRET not in text and text.count("${oc.env:PCM_TEST_TOKEN}") == 5
    assert load_config(folder / "config.yaml") == config
    assert load_run_config(folder).env == config.env
    assert SECRET not in json.dumps(as_written(pickle.loads(pickle.dumps(config))))


def test_settings_of_a_recording_do_not_hold_it_either(recipe):
    config = load_config(recipe, ["env.tasks={seat: ['${oc.env:PCM_TEST_TOKEN}']}"])
    settings = recording_settings(config)
    assert SECRET not in json.dumps(settings) and "PCM_TEST_TOKEN" in settings["kwargs"]


def test_a_run_and_its_files_hold_no_value_of_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PCM_TEST_TOKEN", "hunter2")
    gym.register("PCMSecret-v0", entry_point=lambda token, **kwargs: gym.make("pcm_rl/Reach-v0", **kwargs))
    secret = ["env.kwargs.token=${oc.env:PCM_TEST_TOKEN}", "env.id=PCMSecret-v0"]
    tiny = [
        "env.kwargs.horizon=16", "env.max_chunks=2", "env.num_envs=4", "env.eval_states=2", "groups=1", "group_size=2",
        "eval_episodes=2", "eval_every=0", "steps=1", "logger=tensorboard", "record=false", "sft.steps=0",
        "policy.state.width=8", f"run_dir={tmp_path}", "name=run",
    ]  # fmt: skip
    assert main(["train", *tiny, *secret]) == 0, capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run")]) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "report.html", "metrics.csv", "eval.json"} <= {path.name for path in files}
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
    monkeypatch.delenv("PCM_TEST_TOKEN")
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "Environment variable 'PCM_TEST_TOKEN' not found" in capsys.readouterr().err


BROKEN = [
    "", "- a\n", "5\n", "text\n", "\0", "steps: [1\n", "steps: 1\nsteps: 2\n", "name: ${nope}\n", "name: ${\n",
    "seed: ${steps}\nsteps: ${seed}\n", "env: null\n", "env: 5\n", "update: [1]\n", "env: {kwargs: 5}\n",
    "{1: 2}\n", "env: {wrappers: {a: 1}}\n", "steps: ???\n", "env: {kwargs: {1: 2}}\n",
    "a: !!python/object/apply:os.system ['echo']\n",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_recipe_is_one_line(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode())
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert "\n" not in str(raised.value)


def test_a_recipe_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        load_config(tmp_path / "recipe.yaml")


def test_a_configuration_that_was_cut_is_no_run(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(Config(name=tmp_path.name), path)
    lines = path.read_text().splitlines(keepends=True)
    for kept in (0, 1, 10, len(lines) // 2, len(lines) - 1):
        path.write_text("".join(lines[:kept]))
        with pytest.raises(ConfigError, match="is cut: a part of it is missing"):
            load_run_config(tmp_path)
    path.write_text("".join(lines))
    assert load_run_config(tmp_path) == Config(run_dir=str(tmp_path.parent), name=tmp_path.name)
    path.write_text("steps: 3\n")  # as an older version, or a person, wrote it
    assert load_run_config(tmp_path).steps == 3
