from __future__ import annotations

import csv
import dataclasses
import re

import pytest

from pcm_rl.compare.jobs import run_jobs
from pcm_rl.compare.plan import Comparison, plan_runs
from pcm_rl.compare.run import compare
from pcm_rl.config import ConfigError, save_config
from pcm_rl.training.trainer import Trainer, train


def silent(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def asked(half_trained, tmp_path_factory):
    """Two methods, two seeds, from one half-trained policy."""
    overrides = [*half_trained, f"run_dir={tmp_path_factory.mktemp('runs')}", "steps=3", "save_every=1"]
    return Comparison(None, overrides, methods=["full-valid", "pcm"], seeds=[0, 1])


def numbers(folder, table):
    """Everything but times."""
    with (folder / f"{table}.csv").open(newline="") as file:
        return [
            {key: text for key, text in row.items() if not key.endswith("_s") and key != "seconds"}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def parallel(asked):
    """One run is cut after its second step; Ctrl-C comes at the end of another; then the rest, two at a time."""
    cut = plan_runs(asked)[1].config
    trainer = Trainer(cut, silent)
    trainer.start()
    for _ in range(2):
        trainer.output.log.step(trainer.train_step())
    trainer.evaluate()
    trainer.save()
    trainer.env.close()

    lines: list[str] = []

    def interrupt(line):
        lines.append(line)
        if line.startswith("["):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(asked, say=interrupt)
    partial = {table: numbers(asked.folder, table) for table in ("compare", "compare-stats")}
    return compare(asked, jobs=2, say=lines.append), lines, partial


@pytest.mark.slow
def test_parallel_and_interrupted_gives_what_one_after_the_other_gives(asked, parallel):
    folder, _, _ = parallel
    alone = dataclasses.replace(asked, overrides=[*asked.overrides, "name=alone"])
    for run in plan_runs(alone):
        run.config.folder.mkdir(parents=True)
        save_config(run.config, run.config.folder / "config.yaml")
        train(run.config, say=silent)
    lines: list[str] = []
    compare(alone, say=lines.append)
    assert lines[0].endswith("4 finished, 0 to do, 1 at a time")  # tables only
    for table in ("compare", "compare-evals", "compare-steps", "compare-stats"):
        rows = numbers(folder, table)
        assert rows and rows == numbers(alone.folder, table), table
    assert len(numbers(folder, "compare-steps")) == 4 * 3
    assert {float(row["after"]) for row in numbers(folder, "compare")} != {0.0}


@pytest.mark.slow
def test_each_run_is_told_and_an_interruption_says_how_far_it_came(asked, parallel):
    folder, lines, partial = parallel
    assert len(partial["compare"]) == 1  # the tables of an interrupted comparison hold what has finished
    assert {(row["method"], row["seeds"]) for row in partial["compare-stats"]} == {("full-valid", "1")}
    stopped = next(line for line in lines if line.startswith("interrupted"))
    assert stopped == "interrupted: 1 of 4 runs are finished, the others stopped"
    told = [line for line in lines if line.startswith("[")]
    assert [line[:6] for line in told] == ["[1/4] ", "[2/4] ", "[3/4] ", "[4/4] "]
    assert all(re.search(r"seed[01]: success \d+\.\d% -> \d+\.\d% in \d+ s; ", line) for line in told)
    assert told[-1].endswith("none left") and "left" in told[1]
    assert "resumed" in (folder / "pcm-b4-seed0" / "train.log").read_text()


@pytest.mark.slow
def test_a_failing_run_does_not_lose_the_others(asked, parallel, capsys):
    folder, _, _ = parallel
    lines: list[str] = []
    broken = dataclasses.replace(asked, variants={"broken": ["policy.init=none.safetensors"]}, seeds=[0])
    with pytest.raises(ChildProcessError, match="1 of 3 runs failed: broken-b4-seed0; the same command"):
        compare(broken, say=lines.append)
    failure = next(line for line in lines if "FAILED" in line)
    assert "exit status 2" in failure and "no policy file at none.safetensors" in failure
    assert [row["method"] for row in numbers(folder, "compare")] == ["full-valid", "pcm"]
    assert "minus full-valid" in capsys.readouterr().out


@pytest.mark.slow
def test_a_changed_configuration_in_the_same_folder_is_refused(asked, parallel, monkeypatch):
    monkeypatch.setattr("pcm_rl.compare.run.run_jobs", None)  # nothing is started
    changed = dataclasses.replace(asked, overrides=[*asked.overrides, "update.lr=0.01"])
    with pytest.raises(ConfigError, match=r"full-valid-seed0 was made with update\.lr=0\.0003, now update\.lr=0\.01"):
        compare(changed, say=silent)
    with pytest.raises(ConfigError, match="baseline 'random-valid' is not compared; choose from full-valid, pcm"):
        compare(asked, baseline="random-valid", say=silent)
    with pytest.raises(ConfigError, match="jobs must be at least 1, got 0"):
        compare(asked, jobs=0, say=silent)


def test_missing_demonstrations_are_recorded_once_before_the_runs(tmp_path, monkeypatch):
    path = tmp_path / "demos.safetensors"
    seen: list[bool] = []

    def look(jobs, parallel, ended):
        seen.append(path.is_file())
        run_jobs([], parallel, ended)

    monkeypatch.setattr("pcm_rl.compare.run.run_jobs", look)
    overrides = ["env.id=pcm_rl/Reach-v0", f"run_dir={tmp_path}", f"demos.path={path}", "demos.episodes=2"]
    lines: list[str] = []
    compare(Comparison(None, overrides, seeds=[4, 5]), jobs=2, say=lines.append)
    assert seen == [True]
    assert sum("recorded with seed 4" in line for line in lines) == 1
