from __future__ import annotations

from pathlib import Path

import pytest

from pcm_rl.config import Config, ConfigError
from pcm_rl.config_file import config_keys, load_config, load_run_config, save_config
from pcm_rl.methods import METHODS

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_round_trips(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_there_are_recipes():
    assert {"pick_place", "reach", "libero_object_state"} <= {path.stem for path in RECIPES}


def test_defaults_file_and_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nselection: {budget: 8, name: random}\n")
    config = load_config(path, ["seed=4", "env.kwargs.stop_on_success=false", "policy.init=null"])
    assert (config.seed, config.selection.budget, config.selection.name) == (4, 8, "random")
    assert config.env.kwargs == {"stop_on_success": False}
    assert config.steps == Config().steps
    assert config.method == "random-valid"
    assert {Config(selection=config.selection).method for _ in [0]} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_knows_its_method(name: str) -> None:
    config = load_config(None, METHODS[name].overrides())
    assert config.method == name
    assert (config.selection.name, config.selection.padding, config.advantage.name) == METHODS[name]


def test_a_method_without_a_name_says_what_it_is() -> None:
    assert load_config(None, ["selection.name=random", "advantage.name=critic"]).method == "random-drop-critic"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("sede=1", "did you mean 'seed'"),
        ("selection.buget=1", r"did you mean 'selection.budget'"),
        ("selection.name=pmc", "did you mean 'pcm'"),
        ("seed=abc", "^seed: "),
        ("selection.budget=0", "budget must be at least 1"),
        ("advantage.name=gae", "name must be one of group, critic, got 'gae'"),
        ("advantage.lam=1.5", r"lam must be in \[0, 1\], got 1.5"),
        ("advantage.steps=0", "steps must be at least 1"),
        ("group_size=1", "group_size must be at least 2"),
        ("steps", "key=value"),
        ("sft.target=1.5", r"target must be in \(0, 1\]"),
    ],
)
def test_errors_name_the_key_and_the_remedy(override, text):
    with pytest.raises(ConfigError, match=text):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["env.tasks.task_id=[0,1]"], "several tasks need num_states"),
        (["env.tasks.task_id=[0,1]", "env.tasks.suite=[a]", "env.num_states=5"], "as many values"),
        (["env.tasks.task_id=[]"], "at least one"),
        (["env.tasks.task_id=[0]", "env.kwargs.task_id=0"], "task_id stands in kwargs and in tasks"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(overrides, text):
    with pytest.raises(ConfigError, match=text):
        load_config(None, overrides)


def test_tasks_are_read_side_by_side():
    config = load_config(
        None, ["env.tasks.suite=[a,b]", "env.tasks.task_id=[4,7]", "env.kwargs.horizon=9", "env.num_states=5"]
    )
    assert config.env.num_tasks == 2
    assert config.env.task_kwargs(1) == {"horizon": 9, "suite": "b", "task_id": 7}
    assert Config().env.num_tasks == 1 and Config().env.task_kwargs(0) == {}


def test_missing_files():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run_config("nowhere")


def test_every_field_is_documented():
    import pcm_rl.config as module

    for key in config_keys():
        name = key.rsplit(".", 1)[-1]
        assert f"        {name}:" in Path(module.__file__).read_text(), key
