"""Trackers follow a run's tables: with stand-ins, and where their packages are installed with these, offline."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from trackers import READERS

from pcm_rl.cli import main
from pcm_rl.config import load_config
from pcm_rl.reports.follower import Follower
from pcm_rl.reports.loggers import LoggedRun, open_logger
from pcm_rl.reports.metrics import RunLog
from pcm_rl.training import trainer as module
from pcm_rl.training.signals import Interrupted
from pcm_rl.training.trainer import train

TRACKERS = ("wandb", "mlflow", "trackio")
FIXED = [
    "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=24", "env.max_chunks=3", "env.num_envs=2", "env.eval_states=2",
    "groups=2", "group_size=2", "eval_episodes=2", "eval_every=1", "save_every=1", "sft.steps=0", "steps=2",
    "policy.state.width=8", "record=false", "patience=0", "threads=1",
]  # fmt: skip


def silent(line):
    """Say nothing."""


class Tracker(ModuleType):
    """A stand-in for trackio: runs by name, and what each was sent."""

    def __init__(self):
        super().__init__("trackio")
        self.runs, self.refuses, self.closed, self.names = {}, None, 0, []

    def init(self, *, project, name, config, resume):
        assert project == "pcm_rl" and resume == "allow"
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.names.append(name)
        run = self.runs.setdefault(name, [])
        self.config = config
        return SimpleNamespace(log=lambda scalars, step: self._log(run, scalars, step))

    def _log(self, run, scalars, step):
        if self.refuses:
            raise RuntimeError(self.refuses)
        run.append((step, scalars))

    def finish(self):
        self.closed += 1


@pytest.fixture
def tracker(monkeypatch):
    """A stand-in in the place of trackio."""
    tracker = Tracker()
    tracker.__spec__ = SimpleNamespace(name="trackio")
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    return tracker


def follow(folder, name="trackio", keep=None, say=silent, run="0123456789abcdef", settings=None):
    """The open tables of a run, and a tracker that follows them."""
    log = RunLog(folder, keep)
    log.follow(Follower(name, LoggedRun("runs/run", run, folder, settings or {"seed": 0}), keep, say))
    return log


def play(log, steps, scale=1.0):
    """Training steps, each with an evaluation."""
    for step in steps:
        log.step({"step": step, "success": step / 8, "loss": step * scale, "rollout_s": float("nan")})
        log.evaluated({"step": step, "success": step / 4})


def steps_of(rows, name="train/success"):
    return [step for step, scalars in rows if name in scalars]


def test_a_resumed_run_goes_on_in_the_tracker_and_no_step_is_there_twice(tmp_path, tracker):
    log = follow(tmp_path)
    play(log, [1, 2, 3, 4])
    log.close("interrupted")
    said = []
    log = follow(tmp_path, keep=2, say=said.append)
    play(log, [3, 4, 5])
    log.close("finished")
    ((name, rows),) = tracker.runs.items()
    assert name == "runs/run-01234567" and tracker.closed == 2
    for prefix, scale in (("train", 8), ("evaluation", 4)):
        got = [(step, scalars[f"{prefix}/success"]) for step, scalars in rows if f"{prefix}/success" in scalars]
        assert got == [(step, step / scale) for step in (1, 2, 3, 4, 5)]
    assert not any("rollout_s" in key or key.endswith("/step") for _, scalars in rows for key in scalars)
    assert said == ["trackio has the steps up to 4 already; those after 2 are done again, and are not sent twice"]
    follow(tmp_path, run="another-run").close("finished")  # a new run in a folder that was cut before its first save
    assert len(tracker.runs) == 2


def test_a_tracker_that_is_chosen_later_gets_the_whole_run(tmp_path, tracker):
    log = RunLog(tmp_path)
    play(log, [1, 2, 3])
    log = follow(tmp_path, keep=2)
    play(log, [3])
    rows = tracker.runs["runs/run-01234567"]
    assert steps_of(rows) == [1, 2, 3] == steps_of(rows, "evaluation/success")


def test_a_tracker_that_is_away_ends_no_run_and_gets_what_it_missed(tmp_path, tracker):
    said = []
    log = follow(tmp_path, say=said.append)
    play(log, [1])
    tracker.refuses = "no route\nto host"
    play(log, [2, 3])
    assert said == ["logger=trackio does not take the numbers: no route to host; they are tried again"]
    tracker.refuses = None
    play(log, [4])
    rows = tracker.runs["runs/run-01234567"]
    assert steps_of(rows) == [1, 2, 3, 4] == steps_of(rows, "evaluation/success")
    tracker.refuses = "gone"
    play(log, [5])
    log.close("finished")
    assert said[-1] == "logger=trackio lacks 2 rows of the tables; a resumed run sends them"
    assert json.loads((tmp_path / "logger.json").read_text())["train"] == 4
    tracker.refuses = None
    follow(tmp_path, keep=5).close("finished")
    assert steps_of(rows) == [1, 2, 3, 4, 5] == steps_of(rows, "evaluation/success")


def test_a_signal_while_a_row_is_sent_sends_it_once(tmp_path, tracker):
    log = follow(tmp_path)
    plain = tracker._log

    def interrupted(run, scalars, step):
        plain(run, scalars, step)
        raise KeyboardInterrupt

    tracker._log = interrupted
    with pytest.raises(KeyboardInterrupt):
        log.step({"step": 1, "success": 0.5})
    tracker._log = plain
    log.close("interrupted")
    assert steps_of(tracker.runs["runs/run-01234567"]) == [1]


def test_a_damaged_note_costs_nothing_but_rows_that_are_sent_again(tmp_path, tracker):
    play(follow(tmp_path), [1, 2])
    (tmp_path / "logger.json").write_bytes(b"\0\0")
    follow(tmp_path, keep=2)
    assert steps_of(tracker.runs["runs/run-01234567"]) == [1, 2, 1, 2]


def test_a_run_is_closed_at_its_end_at_a_signal_and_at_an_error(tmp_path, tracker, monkeypatch):
    outcomes = []
    close = RunLog.close
    monkeypatch.setattr(RunLog, "close", lambda log, outcome: (outcomes.append(outcome), close(log, outcome)))
    config = load_config(None, [*FIXED, f"run_dir={tmp_path}", "name=a", "logger=trackio"])
    step = module.Trainer.train_step

    def ends(trainer, how):
        if trainer.step == 1:
            how()
        return step(trainer)

    def fails():
        raise RuntimeError("a simulator")

    for how, error in ((lambda: signal.raise_signal(signal.SIGTERM), Interrupted), (fails, RuntimeError)):
        with monkeypatch.context() as patch:
            patch.setattr(module.Trainer, "train_step", lambda trainer, how=how: ends(trainer, how))
            with pytest.raises(error):
                train(config, resume=bool(outcomes), say=silent)
    train(config, resume=True, say=silent)
    assert outcomes == ["interrupted", "failed", "finished"] and tracker.closed == 3
    with (config.folder / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    ((name, rows),) = tracker.runs.items()
    assert name.startswith(f"{tmp_path.name}/a-") and tracker.config["env"]["kwargs"] == {"horizon": 24}
    assert [(step, scalars["train/env_steps"]) for step, scalars in rows if "train/env_steps" in scalars] == [
        (int(row["step"]), float(row["env_steps"])) for row in table
    ]
    assert steps_of(rows, "evaluation/success") == [0, 1, 2]


def test_a_tracker_that_refuses_to_begin_is_one_line(tmp_path, tracker, capsys):
    tracker.refuses = "no key\n  configured"
    assert main(["train", *FIXED, f"run_dir={tmp_path}", "name=a", "logger=trackio"]) == 2
    assert capsys.readouterr().err == (
        "pcm-rl: logger=trackio cannot begin: no key configured; mend this, or give logger=none\n"
    )
    tracker.refuses = None
    assert main(["train", *FIXED, f"run_dir={tmp_path}", "name=a", "logger=trackio"]) == 0


def test_wandb_is_told_the_runs_id_its_own_axis_and_how_it_ended(tmp_path, monkeypatch):
    calls = []

    class Run:
        config = SimpleNamespace(update=lambda values, **options: calls.append(("config", values, options)))
        define_metric = staticmethod(lambda *given, **options: calls.append(("metric", given, options)))
        log = staticmethod(lambda row: calls.append(row))
        finish = staticmethod(lambda exit_code: calls.append(exit_code))

    wandb = ModuleType("wandb")
    wandb.init = lambda **options: calls.append(options) or Run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")  # a user's own wish stays
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    logger = open_logger("wandb", LoggedRun("runs/a", "0123", tmp_path, {"seed": 1}))
    logger.log({"train/loss": 0.5}, 3)
    logger.close("interrupted")
    logger.close("finished")
    assert calls == [
        {"project": "mine", "dir": str(tmp_path), "name": "runs/a", "id": "0123", "resume": "allow"},
        ("config", {"seed": 1}, {"allow_val_change": True}),
        ("metric", ("*",), {"step_metric": "step"}),
        {"step": 3, "train/loss": 0.5},
        1,
        0,
    ]


def test_runs_of_a_comparison_have_its_name():
    run = LoggedRun.of(load_config(None, ["run_dir=runs/budgets", "name=pcm-seed1"]), "0123")
    assert run.name == "budgets/pcm-seed1" and run.settings["selection"]["name"] == "pcm"
    assert LoggedRun.of(load_config(None, ["run_dir=.", "name=a/b"]), "0123").name == "a/b"


# -- the packages themselves, offline (make test-loggers) --------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """All that the packages write lies in the test's folder, and nothing is sent."""
    for name in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_API_KEY", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.usefixtures("offline")
def test_the_package_keeps_name_settings_and_every_scalar_once(tmp_path, name):
    pytest.importorskip(name)
    folder = tmp_path / "run"
    settings = {"seed": 3, "selection": {"budget": 8}}
    log = follow(folder, name, settings=settings)
    play(log, [1, 2, 3])
    log.close("interrupted")
    log = follow(folder, name, keep=2, settings={"seed": 3, "selection": {"budget": 4}})
    play(log, [3, 4])
    log.close("finished")
    other = follow(tmp_path / "other", name, run="fedcba9876543210")  # of the same name, at the same tracker
    play(other, [1], scale=7)
    other.close("failed")

    run = READERS[name](folder, "0123456789abcdef")
    assert run.name.startswith("runs/run") and run.settings["seed"] == 3
    for prefix, scale in (("train", 8), ("evaluation", 4)):
        assert run.scalars[f"{prefix}/success"] == [(step, step / scale) for step in (1, 2, 3, 4)]
    assert run.scalars["train/loss"] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert set(run.scalars) == {"train/success", "train/loss", "evaluation/success"}
    if run.outcome is not None:
        assert run.outcome == "finished"
        assert READERS[name](tmp_path / "other", "fedcba9876543210").outcome == "failed"
    assert READERS[name](tmp_path / "other", "fedcba9876543210").scalars["train/loss"] == [(1, 7)]


@pytest.mark.usefixtures("offline")
def test_several_runs_make_one_mlflow_data_base_at_once(tmp_path):
    pytest.importorskip("mlflow")
    code = (
        "import sys; from pathlib import Path; from pcm_rl.reports.loggers import LoggedRun, open_logger;"
        "logger = open_logger('mlflow', LoggedRun('runs/run', sys.argv[1], Path(), {}));"
        "logger.log({'train/success': 0.5}, 1); logger.close('finished')"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, f"{number:016d}"]) for number in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    for number in range(3):
        assert READERS["mlflow"](tmp_path, f"{number:016d}").scalars["train/success"] == [(1, 0.5)]
