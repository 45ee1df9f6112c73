"""A run that never succeeds stops with its causes, saved, and can go on."""

from __future__ import annotations

import csv

import pytest

from pcm_rl.cli import main
from pcm_rl.config import load_config, load_run_config
from pcm_rl.training.patience import NeverSucceeds, Patience
from pcm_rl.training.trainer import Trainer, train

HOPELESS = [
    "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=16", "env.num_envs=4", "env.eval_states=4", "groups=2",
    "group_size=2", "eval_episodes=4", "eval_every=0", "logger=none", "record=false", "sft.steps=0", "threads=1",
    "policy.state.width=16", "steps=5", "save_every=1",
]  # fmt: skip


def steps(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_steps_without_success_are_counted_in_a_row():
    patience = Patience(2)
    assert [patience.ends(share) for share in (0.0, 0.1, 0.0, 0.0, 0.0, 0.0)] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]
    assert not any(Patience(0).ends(0.0) for _ in range(99))


def test_a_run_that_never_succeeds_stops_saved_and_goes_on_if_told(tmp_path, capsys):
    command = ["train", *HOPELESS, "patience=2", f"run_dir={tmp_path}", "name=run"]
    folder = tmp_path / "run"
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "no episode of the last 2 steps (8 episodes) succeeded" in error and error.count("\n") == 1
    for cause in ("policy.init", "env.success", "horizon", f"--resume {folder} patience=0"):
        assert cause in error
    assert steps(folder) == [1, 2]
    assert main(["train", "--resume", str(folder)]) == 2
    assert steps(folder) == [1, 2, 3, 4]
    assert main(["train", "--resume", str(folder), "patience=0"]) == 0
    assert steps(folder) == [1, 2, 3, 4, 5] and (folder / "summary.json").is_file()


def test_the_count_survives_a_resume_and_the_last_step_ends_the_run(tmp_path):
    config = load_config(None, [*HOPELESS, "patience=3", f"run_dir={tmp_path}", "name=cut"])
    trainer = Trainer(config, lambda line: None)
    trainer.start()
    trainer.complete(trainer.train_step())
    assert not trainer.patience.ends(0.0)
    trainer.save()
    trainer.env.close()
    with pytest.raises(NeverSucceeds):
        train(load_run_config(config.folder), resume=True, say=lambda line: None)
    assert steps(config.folder) == [1, 2, 3]
    whole = load_config(None, [*HOPELESS, "patience=2", "steps=2", f"run_dir={tmp_path}", "name=whole"])
    train(whole, say=lambda line: None)
    assert (whole.folder / "summary.json").is_file()
