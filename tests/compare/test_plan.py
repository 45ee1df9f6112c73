from __future__ import annotations

import dataclasses
import json

import pytest

from pcm_rl.compare.plan import Comparison, changed_keys, plan_runs, prepare_run, run_state
from pcm_rl.config import Config, ConfigError, SelectionConfig, load_config


def names(asked: Comparison) -> list[str]:
    return [run.name for run in plan_runs(asked)]


def test_columns_budgets_and_seeds():
    asked = Comparison(
        overrides=["update.minibatches=2"],
        methods=["full-valid", "pcm"],
        variants={"slow": ["method=random-valid", "update.lr=1e-4"], "many": ["selection.budget=5", "groups=40"]},
        budgets=[8, 12],
        seeds=[3, 1],
    )
    columns = ["full-valid", "pcm-b8", "pcm-b12", "slow-b8", "slow-b12", "many-b5"]
    runs = plan_runs(asked)
    assert [run.name for run in runs] == [f"{column}-seed{seed}" for seed in (3, 1) for column in columns]
    by_name = {run.name: run.config for run in runs}
    assert all(config.update.minibatches == 2 and not config.record for config in by_name.values())
    assert by_name["full-valid-seed1"].selection == SelectionConfig("none")
    assert by_name["pcm-b8-seed1"].selection == SelectionConfig(budget=8)
    slow, many = by_name["slow-b12-seed3"], by_name["many-b5-seed1"]
    assert (slow.method, slow.update.lr, slow.seed) == ("random-valid", 1e-4, 3)
    assert (many.method, many.groups, many.selection.budget) == ("pcm", 40, 5)
    assert runs[-1].overrides == ("selection.budget=5", "groups=40")
    assert str(many.folder) == "runs/compare/many-b5-seed1"


def test_without_budgets_the_recipe_has_one(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\nthreads: 3\nrecord: true\nselection: {budget: 6}\n")
    runs = plan_runs(Comparison(recipe, methods=["pcm", "full-padded"]))
    assert [run.name for run in runs] == ["pcm-b6-seed0", "full-padded-seed0"]
    assert runs[0].config.threads == 3 and not runs[0].config.record
    assert str(runs[0].config.folder) == "runs/mine/pcm-b6-seed0"
    assert plan_runs(Comparison(None, ["record=true"]))[0].config.record  # asked for
    assert runs[0].config.patience == 0, "a table needs all its rows"
    assert plan_runs(Comparison(None, ["patience=7"]))[0].config.patience == 7
    assert plan_runs(Comparison())[0].config.threads == 1


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (Comparison(methods=["best"]), "unknown method 'best'; choose from pcm"),
        (Comparison(variants={"a": ["method=best"]}), "unknown method 'best'"),
        (Comparison(variants={"a": ["update.lrs=1"]}), "unknown key 'update.lrs'; did you mean 'update.lr'"),
        (Comparison(variants={"pcm": ["update.lr=1"]}), "such as pcm-2:method=pcm"),
        (Comparison(variants={"a": ["seed=1"]}), "variant 'a' sets seed, .* --seeds"),
        (Comparison(overrides=["seed=1"]), "--seeds"),
        (Comparison(overrides=["selection.name=random"]), "selection.name is set by --methods"),
        (Comparison(methods=["pcm", "pcm"]), "methods must differ from one another, got pcm, pcm"),
        (Comparison(seeds=[0, 0]), "seeds must differ"),
        (Comparison(budgets=[8, 8]), "budgets must differ"),
        (Comparison(budgets=[0]), "budget must be at least 1, got 0"),
        (Comparison(methods=[]), "nothing to run: got 0 columns"),
        (
            Comparison(methods=["pcm"], variants={"pcm-b8": ["method=full-valid"]}, budgets=[8]),
            "two columns are named pcm-b8",
        ),
    ],
)
def test_what_cannot_be_planned_says_why(asked, text):
    with pytest.raises(ConfigError, match=text):
        plan_runs(asked)


def test_changed_keys_leave_out_where_the_run_lies():
    config = Config()
    moved = dataclasses.replace(config, run_dir="elsewhere", name="other")
    assert changed_keys(config, moved) == {}
    other = dataclasses.replace(moved, steps=7, selection=SelectionConfig(budget=5))
    assert changed_keys(config, other) == {"steps": (60, 7), "selection.budget": (12, 5)}


def test_states_of_a_run(tmp_path):
    asked = Comparison(overrides=[f"run_dir={tmp_path}"], methods=["pcm"])
    (run,) = plan_runs(asked)
    folder = run.config.folder
    assert run_state(run) == "new" and not folder.exists()
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step\n")  # cut during the supervised start: nothing is lost by a new one
    command = prepare_run(run)
    assert command[-2:] == ["--config", str(folder / "config.yaml")] and not (folder / "metrics.csv").exists()
    assert load_config(folder / "config.yaml") == run.config

    checkpoint = folder / "checkpoint.previous"  # cut between the two renames of a save
    checkpoint.mkdir()
    (checkpoint / "state.json").write_text("{}")
    (folder / "summary.json").write_text('{"after": {"succ')
    (folder / "metrics.csv").write_text("step\n1\n")
    assert run_state(run) == "unfinished"
    assert prepare_run(run)[-2:] == ["--resume", str(folder)] and (folder / "metrics.csv").exists()
    (folder / "summary.json").write_text(json.dumps({"before": {}}))
    assert run_state(run) == "unfinished"
    (folder / "summary.json").write_text(json.dumps({"before": {}, "after": {}}))
    assert run_state(run) == "finished" and prepare_run(run) is None


@pytest.mark.parametrize("file", ["summary.json", "checkpoint/state.json"])
def test_a_changed_configuration_is_refused(tmp_path, file):
    asked = Comparison(overrides=[f"run_dir={tmp_path}"], methods=["pcm"])
    (run,) = plan_runs(asked)
    saved = run.config.folder / file
    saved.parent.mkdir(parents=True)
    prepare_run(run)
    saved.write_text(json.dumps({"after": {}}))
    (changed,) = plan_runs(dataclasses.replace(asked, overrides=[*asked.overrides, "update.lr=0.01", "steps=3"]))
    with pytest.raises(
        ConfigError, match=r"made with steps=60, update\.lr=0\.0003, now steps=3, update\.lr=0\.01; give"
    ):
        run_state(changed)
    with pytest.raises(ConfigError):
        prepare_run(changed)
    assert load_config(run.config.folder / "config.yaml") == run.config  # as it was
