from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from pcm_rl.config import METHODS, Config, ConfigError, config_keys, load_config, load_run_config, save_config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


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
        (["env.tasks.task_id=[0,1]", "env.tasks.suite=[a]", "env.num_states=5", "env.eval_states=2"], "as many values"),
        (["env.tasks.task_id=[]"], "at least one"),
        (["env.tasks.task_id=[0]", "env.kwargs.task_id=0"], "task_id stands in kwargs and in tasks"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(overrides, text):
    with pytest.raises(ConfigError, match=text):
        load_config(None, overrides)


def test_tasks_are_read_side_by_side():
    config = load_config(
        None,
        [
            "env.tasks.suite=[a,b]",
            "env.tasks.task_id=[4,7]",
            "env.kwargs.horizon=9",
            "env.num_states=5",
            "env.eval_states=2",
        ],
    )
    assert config.env.num_tasks == 2
    assert config.env.task_kwargs(1) == {"horizon": 9, "suite": "b", "task_id": 7}
    assert Config().env.num_tasks == 1 and Config().env.task_kwargs(0) == {}


TEXTS = ["007", "12e4567", "1.10", "on", "true", "run #2", "a=b", "1_000", "0x1F", "~", "[a, b]", "x: y"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_is_written(text, tmp_path):
    config = load_config(None, [f"name={text}", f"run_dir={tmp_path / text}"])
    assert (config.name, config.folder) == (text, tmp_path / text / text)
    config.folder.mkdir(parents=True)
    save_config(config, config.folder / "config.yaml")
    assert load_config(config.folder / "config.yaml") == config
    assert load_run_config(config.folder, ["seed=1"]).folder == config.folder


def test_a_run_is_continued_by_its_own_name(tmp_path, monkeypatch):
    for name in ("7", "007", "null"):
        (tmp_path / name).mkdir()
        save_config(Config(name=name, steps=len(name)), tmp_path / name / "config.yaml")
    for name in ("7", "007", "null"):
        config = load_run_config(tmp_path / name)
        assert (config.folder, config.steps) == (tmp_path / name, len(name))
    monkeypatch.chdir(tmp_path / "007")
    assert load_run_config(".").folder.samefile(tmp_path / "007")
    monkeypatch.chdir(tmp_path)
    assert load_run_config("7").folder == Path("7")


@pytest.mark.parametrize("name", ["..", ".", "../other", "/tmp/other", "a/../../b", "a\0b", "x" * 201, "a\nb"])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(name):
    with pytest.raises(ConfigError, match="name must"):
        load_config(None, [f"name={name}"])


def test_the_folder_says_which_run_is_continued(tmp_path):
    (tmp_path / "7").mkdir()
    save_config(Config(name="7"), tmp_path / "7" / "config.yaml")
    for override in ("name=8", f"run_dir={tmp_path / 'other'}"):
        with pytest.raises(ConfigError, match="would name another one; rename the folder"):
            load_run_config(tmp_path / "7", [override])
    with pytest.raises(ConfigError, match="got an empty name"):
        load_run_config("")


def test_quotes_around_text_are_left_out_and_null_is_none_where_that_is_possible():
    assert load_config(None, ["name='a b'"]).name == "a b" and load_config(None, ['name="null"']).name == "null"
    assert load_config(None, ["name=it's"]).name == "it's"
    assert load_config(None, ["env.success=null"]).env.success is None
    assert load_config(None, ["env.success="]).env.success is None
    assert load_config(None, ["run_dir=null"]).run_dir == "null"


def test_what_is_no_text_is_yaml():
    config = load_config(
        None,
        [
            "update.lr=1e-4",
            "record=off",
            "env.kwargs.sizes=[1, 2]",
            "policy.family=openvla",
            "policy.openvla.lora={rank: 4}",
            "policy.openvla.lora.targets=[a]",
        ],
    )
    assert (config.update.lr, config.record, config.env.kwargs) == (1e-4, False, {"sizes": [1, 2]})
    lora = config.policy.openvla.lora
    assert (lora.rank, lora.alpha, lora.targets) == (4, 32, ["a"])
    with pytest.raises(ConfigError, match=r"env\.kwargs: '\{a' is no YAML"):
        load_config(None, ["env.kwargs={a"])


def test_text_that_a_file_holds_without_quotes_must_be_text(tmp_path):
    path = tmp_path / "c.yaml"
    for text in ("007", "12e4567", "on"):
        path.write_text(f"name: {text}\n")
        with pytest.raises(ConfigError, match=r"name is text, and YAML reads .* put it in quotes"):
            load_config(path)
        path.write_text(f"name: '{text}'\n")
        assert load_config(path).name == text
    path.write_text("name: [\n")
    with pytest.raises(ConfigError, match=r"c\.yaml is no YAML"):
        load_config(path)


def test_a_mapping_or_a_list_takes_the_place_of_the_recipes(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "env:\n  kwargs: {a: 1, b: 2}\n  tasks: {task: [0, 1]}\n  num_states: 5\n  eval_states: 2\n"
        "  images: {size: 96}\n"
        "  wrappers: ['gymnasium.wrappers:FlattenObservation']\n"
    )
    assert load_config(path, ["env.tasks={}"]).env.tasks == {}
    assert load_config(path, ["env.kwargs={}"]).env.kwargs == {}
    assert load_config(path, ["env.kwargs={c: 3}"]).env.kwargs == {"c": 3}
    assert load_config(path, ["env.kwargs.a=9"]).env.kwargs == {"a": 9, "b": 2}
    assert load_config(path, ["env.kwargs={}", "env.kwargs.c=3"]).env.kwargs == {"c": 3}
    assert load_config(path, ["env.images={}"]).env.images == {}
    assert load_config(path).env.wrappers and load_config(path, ["env.wrappers=[]"]).env.wrappers == []
    assert load_config(path, ["env.images=null"]).env.images is None
    assert load_config(path, ["env={num_envs: 3}"]).env.num_states == 5


FREE = {"env.gripper_index", "env.close_above", "env.close_below"}  # any number of the environment's own scale


def section_of(key):
    """The section with this key, with its defaults, and the field's name in it."""
    *path, name = key.split(".")
    return reduce(getattr, path, Config()), name


def numeric_keys():
    """Every key whose value is a number, with what of int and float it may be."""
    for key in config_keys():
        section, name = section_of(key)
        hint = get_type_hints(type(section))[name]
        if kinds := {int, float} & set(get_args(hint) or (hint,)):
            yield key, float if float in kinds else int


@pytest.mark.parametrize(("key", "kind"), list(numeric_keys()))
def test_every_number_has_a_range(key, kind):
    section, name = section_of(key)
    absurd = [float("nan"), float("inf"), float("-inf")] if kind is float else [2**63]
    for value in [*([] if key == "env.gripper_index" else absurd), *([] if key in FREE else [-1, -(10**9)])]:
        with pytest.raises(ConfigError, match=name):
            replace(section, **{name: value})


def test_numbers_are_found():
    keys = [key for key, _ in numeric_keys()]
    assert {"seed", "update.micro_rows", "policy.openvla.lora.rank", "sft.target", "env.close_below"} <= set(keys)
    assert FREE <= set(keys) and len(keys) > 40


@pytest.mark.parametrize(
    "override",
    [
        "update.lr=-1", "update.lr=0", "selection.floor=7", "policy.state.temperature=-1", "sft.lr=0",
        "update.clip_low=5", "env.timeout=-3", "update.grad_clip=-1", "sft.target=0", "policy.state.num_bins=1",
        "demos.mistakes=2", "update.jitter=2", "env.timeout=0",
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0].rsplit(".", 1)[-1]):
        load_config(None, [override])


def test_missing_files():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run_config("nowhere")


def test_every_field_is_documented():
    import pcm_rl.config

    text = "".join(path.read_text() for path in Path(pcm_rl.config.__file__).parent.glob("*.py"))
    for key in config_keys():
        assert f"        {key.rsplit('.', 1)[-1]}:" in text, key
