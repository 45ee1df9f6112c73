from __future__ import annotations

from pathlib import Path

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
