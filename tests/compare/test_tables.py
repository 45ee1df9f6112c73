from __future__ import annotations

import csv
import dataclasses
import json

import pytest

from pcm_rl.compare.plan import Comparison, plan_runs
from pcm_rl.compare.tables import area_under_curve, write_csv, write_tables
from pcm_rl.config import ConfigError
from pcm_rl.reports.columns import METRICS, headers

SUCCESS = {"low": 0.1, "high": 0.9, "successes": 4, "episodes": 8}


@pytest.fixture
def run(tmp_path):
    """A run of three steps, the second of which had no mixed group."""
    asked = Comparison(overrides=[f"run_dir={tmp_path}", "steps=3", "update.epochs=2"], methods=["pcm"], seeds=[5])
    (run,) = plan_runs(asked)
    folder = run.config.folder
    folder.mkdir(parents=True)
    steps = [
        {
            "step": 1,
            "chunks_kept": 10,
            "env_steps": 100,
            "update_s": 0.5,
            "select_s": 0.25,
            "rollout_s": 1,
            "step_s": 2,
        },
        {"step": 2, "env_steps": 50, "rollout_s": 1.0, "step_s": 1.0},
        {"step": 3, "chunks_kept": 7.0, "env_steps": 1234567, "update_s": 0.123456789, "rollout_s": 2, "step_s": 3},
    ]
    write_csv(folder / "metrics.csv", [{key: row.get(key, "") for key in headers(METRICS)} for row in steps])
    curve = [(0, 0.25), (2, 0.75), (3, 0.5), (3, 0.5)]  # the last twice: cut between the evaluation and the summary
    write_csv(folder / "evaluation.csv", [{"step": step, "success": success, **SUCCESS} for step, success in curve])
    summary = {when: {"success": value, **SUCCESS} for when, value in (("before", 0.25), ("after", 0.5))}
    (folder / "summary.json").write_text(json.dumps({**summary, "hardware": "abacus"}))
    return run


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sums_and_area_of_a_run_by_hand(run, tmp_path):
    (row,) = write_tables([run], tmp_path)
    assert (row["method"], row["budget"], row["seed"]) == ("pcm", 12, 5)
    assert (row["before"], row["after"], row["low"], row["high"], row["episodes"]) == (0.25, 0.5, 0.1, 0.9, 8)
    assert row["gradient_chunks"] == 2 * 17 and row["env_steps"] == 1234717 and row["steps"] == 3
    assert row["auc"] == pytest.approx((2 * 0.5 + 1 * 0.625) / 3, abs=1e-6)
    assert (row["rollout_s"], row["select_s"], row["update_s"], row["seconds"]) == (4.0, 0.25, 0.623, 6.0)
    assert (row["hardware"], row["threads"]) == ("abacus", 1)
    (written,) = read(tmp_path / "compare.csv")
    assert written == {key: str(value) for key, value in row.items()}


def test_evaluations_stand_beside_what_was_spent(run, tmp_path):
    write_tables([run], tmp_path)
    rows = read(tmp_path / "compare-evals.csv")
    assert [(row["step"], row["gradient_chunks"], row["wall_s"], row["env_steps"]) for row in rows] == [
        ("0", "0", "0.0", "0"),
        ("2", "20", "3.0", "150"),
        ("3", "34", "6.0", "1234717"),
    ]
    assert {(row["method"], row["budget"], row["seed"]) for row in rows} == {("pcm", "12", "5")}


def test_steps_keep_whole_numbers_and_six_digits(run, tmp_path):
    write_tables([run], tmp_path)
    rows = read(tmp_path / "compare-steps.csv")
    assert list(rows[0]) == ["method", "budget", "seed", *headers(METRICS)]
    assert [row["chunks_kept"] for row in rows] == ["10", "", "7"]
    assert (rows[2]["env_steps"], rows[2]["update_s"]) == ("1234567", "0.123457")


def test_a_run_that_was_continued_by_hand_is_refused(run, tmp_path):
    path = run.config.folder / "metrics.csv"
    path.write_text(path.read_text() + "4\n")
    with pytest.raises(ConfigError, match="holds 4 steps, its configuration says 3"):
        write_tables([run], tmp_path)


def test_columns_that_older_runs_lack_stay_empty(tmp_path):
    write_csv(tmp_path / "table.csv", [{"a": 1, "c": 3}, {"a": 4, "b": 5, "c": 6}, {"a": 7, "d": 8}])
    assert (tmp_path / "table.csv").read_text().splitlines() == ["a,b,c,d", "1,,3,", "4,5,6,", "7,,,8"]


def test_no_runs_leave_the_files_alone(tmp_path):
    (tmp_path / "compare.csv").write_text("old")
    assert write_tables([], tmp_path) == []
    assert (tmp_path / "compare.csv").read_text() == "old"


def test_area_under_curve():
    assert area_under_curve([0], [0.4]) == 0.4
    assert area_under_curve([0, 10], [0.0, 1.0]) == 0.5
    assert area_under_curve([0, 1, 10], [1.0, 0.0, 0.0]) == pytest.approx(0.05)


@pytest.mark.parametrize(("limit", "complete"), [(151, True), (1234717, True), (150, False), (1234718, False)])
def test_a_run_that_environment_steps_end(run, tmp_path, limit, complete):
    # it has taken 100, 150, and with the third step 1,234,717; four steps were allowed
    ended = dataclasses.replace(run, config=dataclasses.replace(run.config, steps=4, env_steps=limit))
    if not complete:
        with pytest.raises(ConfigError, match=rf"holds 3 steps, its configuration says 4 or {limit} environment steps"):
            write_tables([ended], tmp_path)
        return
    (row,) = write_tables([ended], tmp_path)
    assert (row["steps"], row["env_steps"]) == (3, 1234717)
    assert row["auc"] == pytest.approx((150 * 0.5 + 1234567 * 0.625) / 1234717, abs=1e-6)
