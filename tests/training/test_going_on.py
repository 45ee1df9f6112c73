"""What ends a run early, and that it goes on as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import pkgutil
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from pcm_rl.cli import main
from pcm_rl.config import ConfigError, load_config, load_run_config
from pcm_rl.training import trainer as module
from pcm_rl.training.generations import generations
from pcm_rl.training.grpo import lr_factor
from pcm_rl.training.lock import LockedError, locked
from pcm_rl.training.play import Play
from pcm_rl.training.signals import Interrupted
from pcm_rl.training.spent import Spent
from pcm_rl.training.trainer import Trainer, train


@pytest.fixture(scope="module")
def tiny(half_trained, tmp_path_factory):
    """``tiny(name, *overrides)``: a configuration that starts from one half-trained policy."""
    folder = tmp_path_factory.mktemp("runs")
    fixed = [*half_trained, f"run_dir={folder}", "save_every=3", "eval_every=2", "steps=5"]
    return lambda name, *overrides: load_config(None, [*fixed, f"name={name}", *overrides])


def silent(line: str) -> None:
    """Say nothing."""


def table(config, name="metrics.csv"):
    with (config.folder / name).open(newline="") as file:
        return [{key: cell for key, cell in row.items() if not key.endswith("_s")} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tiny):
    """A run that nothing has ended early."""
    config = tiny("whole")
    train(config, say=silent)
    return config


def assert_same(a, b):
    assert table(a) == table(b) and table(a, "evaluation.csv") == table(b, "evaluation.csv")
    for file in ("policy.safetensors", "optimizer.safetensors", "random.safetensors"):
        one, other = (load_file(config.folder / "checkpoint" / file) for config in (a, b))
        assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one), file


def at_call(number, function, call):
    """``function``, but the signal ``number`` comes at the end of its ``call``-th call."""
    left = [call]

    def wrapped(*given, **options):
        result = function(*given, **options)
        left[0] -= 1
        if not left[0]:
            signal.raise_signal(number)
        return result

    return wrapped


@pytest.mark.usefixtures("no_nohup")
def test_signals_in_a_rollout_an_update_an_evaluation_and_a_save_change_nothing(tiny, whole, monkeypatch):
    config = tiny("interrupted")
    places = [  # of each start of the run: what is under way, its call, the signal, the step that is saved
        ("pcm_rl.rollouts.collect.decide", 9, signal.SIGINT, None),  # in the first evaluation
        ("pcm_rl.training.grpo.grpo_update", 2, signal.SIGTERM, 1),
        ("pcm_rl.training.trainer.evaluate", 1, signal.SIGUSR1, 2),
        ("pcm_rl.rollouts.collect.decide", 20, signal.SIGHUP, 2),  # in that evaluation, done again
        ("pcm_rl.reports.metrics.RunLog.step", 2, signal.SIGTERM, 3),  # of step 4, which is not printed yet
        ("pcm_rl.training.trainer.Trainer.complete", 1, signal.SIGTERM, 4),  # step 4 was printed just now
        ("pcm_rl.training.checkpoint.save_tensors", 2, signal.SIGTERM, 5),  # in the last save
    ]
    for place, call, number, saved in places:
        with monkeypatch.context() as patch:
            owner, _, name = place.rpartition(".")
            target = pkgutil.resolve_name(owner)
            patch.setattr(target, name, at_call(number, getattr(target, name), call))
            with pytest.raises(Interrupted) as caught:
                train(config, resume=bool(generations(config.folder)), say=silent)
        assert (caught.value.signal, caught.value.saved) == (number, saved), place
        torch.manual_seed(999)
    train(load_run_config(config.folder), resume=True, say=silent)
    assert_same(whole, config)


def test_an_error_saves_what_was_complete_and_numbers_that_became_nan_do_not(tiny, whole, monkeypatch):
    config = tiny("error")
    play = Play.__call__

    def fails(self, policy, step):
        if step == 2:
            raise RuntimeError("a simulator")
        return play(self, policy, step)

    with monkeypatch.context() as patch:
        patch.setattr(Play, "__call__", fails)
        with pytest.raises(RuntimeError, match="a simulator"):
            train(config, say=silent)
    assert json.loads((config.folder / "checkpoint" / "state.json").read_text())["step"] == 2
    before = (config.folder / "checkpoint" / "manifest.json").read_bytes()
    broken = load_run_config(config.folder, ["update.lr=1e38", "update.minibatches=1", "save_every=1"])
    with pytest.raises(FloatingPointError, match=r"training has diverged: after step 3 .* It was not saved"):
        train(broken, resume=True, say=silent)
    assert (config.folder / "checkpoint" / "manifest.json").read_bytes() == before
    train(load_run_config(config.folder), resume=True, say=silent)
    assert_same(whole, config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["update.weight_decay=1e30", "update.minibatches=1"],
        ["advantage.name=critic", "advantage.lr=1e30", "advantage.steps=5"],
    ],
)
def test_what_has_diverged_replaces_nothing(tiny, overrides):
    config = tiny(f"diverged-{len(overrides[0])}", "save_every=1", "eval_every=0", *overrides)
    with pytest.raises(FloatingPointError, match="diverged"):
        train(config, say=silent)
    for folder in generations(config.folder):
        assert all(torch.isfinite(value).all() for value in load_file(folder / "policy.safetensors").values())


def test_a_damaged_checkpoint_is_passed_over_with_a_word(tiny, whole):
    config = tiny("damaged", "steps=4")
    train(config, say=silent)
    weights = config.folder / "checkpoint" / "policy.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    lines: list[str] = []
    train(load_run_config(config.folder, ["steps=5"]), resume=True, say=lines.append)
    assert "policy.safetensors has another checksum" in lines[0] and "checkpoint-000003 is taken" not in lines[0]
    assert lines[0].endswith("an older checkpoint is taken: checkpoint-000003")
    assert (config.folder / "checkpoint.damaged").is_dir()
    assert table(config) == table(whole)


def test_a_changed_or_empty_configuration_is_refused_with_the_way_back(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole.folder, run)
    back = f"put that back with `cp {run}/checkpoint/config.yaml"
    for content in (
        b"",
        b"device: bpu",
        (run / "config.yaml").read_bytes().replace(b"group_size: 6", b"group_size: 7"),
    ):
        (run / "config.yaml").write_bytes(content)
        assert main(["train", "--resume", str(run)]) == 2
        assert back in capsys.readouterr().err
    with pytest.raises(ConfigError, match=back):
        train(load_run_config(run), resume=True, say=silent)
    shutil.copy(run / "checkpoint" / "config.yaml", run / "config.yaml")
    train(load_run_config(run), resume=True, say=silent)


def test_a_second_process_at_a_run_is_refused_before_anything_is_built(whole, tiny, monkeypatch):
    monkeypatch.setattr(module, "make_vector_env", None)
    with locked(whole.folder), pytest.raises(LockedError, match=f"in use by process {os.getpid()}"):
        train(load_run_config(whole.folder), resume=True, say=silent)
    with locked(tiny("new").folder), pytest.raises(LockedError):
        train(tiny("new"), say=silent)


def test_a_run_cut_before_its_first_checkpoint_can_start_again_and_one_without_it_says_so(tiny, tmp_path):
    config = tiny("begun", "steps=0")
    trainer = Trainer(config, silent)
    trainer._open_folder()  # and here it was killed
    trainer.env.close()
    with pytest.raises(ConfigError, match="start it again"):
        train(load_run_config(config.folder), resume=True, say=silent)
    train(config, say=silent)
    assert [row["step"] for row in table(config, "evaluation.csv")] == ["0"]
    shutil.rmtree(config.folder / "checkpoint")
    (config.folder / "metrics.csv").write_text("step\n1\n")
    with pytest.raises(FileExistsError, match="holds the metrics of a run"):
        train(config, say=silent)


def test_the_end_of_a_run_is_written_once_however_often_it_is_resumed(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole.folder, run)
    for _ in range(2):
        train(load_run_config(run), resume=True, say=silent)
    assert [row["step"] for row in table(load_run_config(run), "evaluation.csv")] == ["0", "2", "4", "5"]


def test_tables_that_were_changed_or_are_gone_come_from_the_checkpoint(whole, tmp_path):
    run, lines = tmp_path / "run", []
    shutil.copytree(whole.folder, run)
    metrics = (run / "metrics.csv").read_bytes()
    (run / "metrics.csv").write_bytes(metrics.replace(b"\n2,0", b"\n2,1"))
    (run / "evaluation.csv").unlink()
    train(load_run_config(run), resume=True, say=lines.append)
    assert table(load_run_config(run)) == table(whole) and (run / "metrics.csv").read_bytes() == metrics
    assert table(load_run_config(run), "evaluation.csv") == table(whole, "evaluation.csv")
    assert [
        f"{run}/{name} is not what was written; taken from checkpoint" for name in ("metrics.csv", "evaluation.csv")
    ] == lines[:2]


def test_a_run_of_the_older_layout_goes_on(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole.folder, run)
    for folder in generations(run)[1:]:
        shutil.rmtree(folder)
    for name in ("manifest.json", "config.yaml", "metrics.csv", "evaluation.csv"):
        (run / "checkpoint" / name).unlink()
    (run / "run.json").unlink()
    state = json.loads((run / "checkpoint" / "state.json").read_text())
    del state["optimizer"], state["evaluated"]
    (run / "checkpoint" / "state.json").write_text(json.dumps({**state, "format": 1}))
    trainer = train(load_run_config(run, ["steps=6"]), resume=True, say=silent)
    assert trainer.step == 6 and (run / "checkpoint" / "manifest.json").is_file()


@pytest.mark.usefixtures("no_nohup")
def test_a_signal_during_the_save_that_an_error_has_caused_does_not_lose_the_step(tiny, whole, monkeypatch):
    config = tiny("failed-and-stopped", "save_every=0")
    steps = []

    def failing(trainer):
        steps.append(trainer.step)
        if len(steps) == 3:
            raise ConnectionError("another process has ended")
        return train_step(trainer)

    train_step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", failing)
    # the first save is that of the start, the second one that of the error
    monkeypatch.setattr(module, "Output", output := module.Output)
    monkeypatch.setattr(output, "save", at_call(signal.SIGTERM, output.save, 2))
    with pytest.raises(Interrupted) as stop:
        train(config, say=silent)
    assert stop.value.saved == 2 and isinstance(stop.value.__cause__, ConnectionError)
    monkeypatch.undo()
    train(load_run_config(config.folder), resume=True, say=silent)
    assert_same(config, whole)


def test_one_command_begins_a_run_goes_on_with_it_and_refuses_a_changed_recipe(half_trained, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("update: {lr: 1e-3}")
    command = ["train", "--config", str(recipe), "--or-resume", *half_trained, f"run_dir={tmp_path}", "name=job"]
    assert main([*command, "steps=1"]) == 0
    assert main([*command, "steps=1"]) == 0
    assert "resumed" in capsys.readouterr().out
    assert main([*command, "steps=2", "update.lr=2e-3"]) == 0, "the command's changes count"
    assert [row["step"] for row in table(load_run_config(tmp_path / "job"))] == ["1", "2"]
    recipe.write_text("update: {lr: 3e-3}")
    assert main([*command, "steps=1"]) == 2
    assert "was begun with update.lr=0.001, and the recipe says 0.003; say update.lr=..." in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "job"), "--or-resume"]) == 2
    assert "leave --or-resume out" in capsys.readouterr().err


def test_a_falling_learning_rate_is_that_of_the_share_of_the_run(tiny):
    config = tiny("falling", "update.lr_schedule=linear", "update.lr=1e-3")
    train(config, say=silent)
    rates = {int(row["step"]): float(row["lr"]) for row in table(config) if row["lr"]}  # of steps with an update
    assert len(rates) >= 3 and rates == pytest.approx({step: 1e-3 * (1 - (step - 1) / 5) for step in rates})
    begun = tiny("falling-begun", "update.lr_schedule=linear", "update.lr=1e-3")
    with pytest.raises(Interrupted), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "complete", at_call(signal.SIGTERM, Trainer.complete, 2))
        train(begun, say=silent)
    train(load_run_config(begun.folder), resume=True, say=silent)
    assert_same(config, begun)


def test_the_share_of_a_run_is_by_steps_or_by_environment_steps():
    config = load_config(None, ["steps=10", "env_steps=1000"])
    assert [Spent(step=2, env_steps=n).share(config) for n in (100, 500, 1200)] == [0.2, 0.5, 1.0]
    assert Spent(step=2, env_steps=900).share(load_config(None, ["steps=10"])) == 0.2
    with pytest.raises(ConfigError, match=r"lr_schedule.*constant, linear"):
        load_config(None, ["update.lr_schedule=cosine"])


@pytest.mark.parametrize("spent", [None, -0.1, 1.2, float("nan")])
def test_a_falling_rate_wants_the_share_of_the_run(spent):
    falling = load_config(None, ["update.lr_schedule=linear"]).update
    with pytest.raises(ConfigError, match="expected the share of the run that is over"):
        lr_factor(falling, spent)
    assert lr_factor(load_config(None).update, None) == 1.0 and lr_factor(falling, 0.25) == 0.75
