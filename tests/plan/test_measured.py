"""A run with seconds that follow a law gives the law back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pcm_rl.config import ConfigError, load_config, save_config
from pcm_rl.plan.costs import Costs
from pcm_rl.plan.measured import line, read_run
from pcm_rl.plan.rollout import play

ROW_S, STEP_S, CHUNK_S, CALL_S = 0.002, 0.01, 0.001, 0.004


def write_run(folder: Path, kept: list[int], *, changes: tuple[str, ...] = (), **summary: object) -> Path:
    """Steps of 20 trajectories; 10, 11, 12 ... succeed in 10 chunks, the others fail in 64. Seconds follow the law."""
    config = load_config(None, ["groups=2", "update.epochs=2", *changes])
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "success", "trajectories", "groups", "groups_mixed", "env_steps", "chunks_kept",
                         "rollout_s", "update_s"])  # fmt: skip
        for step, rows in enumerate(kept):
            won = 10 + step
            chunks = 10 * won + 64 * (20 - won)
            rollout_s = CHUNK_S * chunks + CALL_S * 64
            update_s = 2 * (ROW_S * rows + 4 * STEP_S) if rows else ""
            steps = 8 * chunks - 3.5 * won  # a success ends 3.5 steps before the end of its last chunk
            writer.writerow([step, won / 20, 20, 2, 1 if rows else 0, steps, rows or "", rollout_s, update_s])
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_seconds_of_a_run(tmp_path):
    found = read_run(write_run(tmp_path / "run", [120, 150, 180, 0, 210, 240]), ["groups=16"])
    assert found.steps == 6 and found.config.groups == 16
    assert found.costs.update_row_s == pytest.approx(ROW_S) and found.costs.update_step_s == pytest.approx(STEP_S)
    episodes = found.episodes
    assert episodes.success_rate == pytest.approx(12.5 / 20) and episodes.failure_chunks == 64.0
    assert episodes.success_chunks == pytest.approx(10.0) and episodes.mixed == pytest.approx(5 / 12)


def test_calls_are_told_from_chunks_where_rollouts_differ(tmp_path):
    found = read_run(write_run(tmp_path / "run", [200 + step for step in range(9)]))
    assert found.simulators.chunk_s == pytest.approx(CHUNK_S) and found.costs.decision_call_s == pytest.approx(CALL_S)
    lengths = found.episodes.lengths(20)
    rollout = play(lengths, found.simulators, found.costs)
    assert rollout.seconds == pytest.approx(CHUNK_S * sum(lengths) + CALL_S * 64)


def test_workers_have_the_rollout_of_the_run(tmp_path):
    run = write_run(tmp_path / "run", [120, 150, 180], changes=("env.workers=true", "env.num_envs=4"))
    found = read_run(run)
    assert (found.simulators.workers, found.simulators.cores, found.costs.decision_call_s) == (4, 4, 0.0)
    seconds = play(found.episodes.lengths(20), found.simulators, found.costs).seconds
    assert seconds == pytest.approx(CHUNK_S * 686 + CALL_S * 64, rel=0.02)
    more = read_run(run, ["env.num_envs=8"])
    assert (more.simulators.workers, more.simulators.cores) == (8, 4)


def test_updates_that_are_alike_are_told_apart_by_the_methods_at_the_end(tmp_path):
    proportional = read_run(write_run(tmp_path / "alike", [80] * 5))
    assert proportional.costs.update_step_s == 0
    assert proportional.costs.update_s(80, minibatches=4) == pytest.approx(80 * ROW_S + 4 * STEP_S)
    profile = [{"rows": rows, "update_s": 3 * 2 * (ROW_S * rows + 4 * STEP_S)} for rows in (80, 500, 1280)]
    apart = read_run(
        write_run(tmp_path / "profile", [80] * 5, profile=profile)
    )  # measured on a machine three times slower
    assert apart.costs.update_row_s == pytest.approx(ROW_S) and apart.costs.update_step_s == pytest.approx(STEP_S)


def test_a_run_that_says_too_little_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no step with an update"):
        read_run(write_run(tmp_path / "none", [0, 0]))
    with pytest.raises(ConfigError, match="several processes"):
        read_run(write_run(tmp_path / "two", [80, 90], hardware="CPU, 2 cores, 2 processes"))
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "nowhere")


def test_a_line_is_not_moved_by_a_step_beside_other_work():
    chunks = np.array([100.0, 200, 300, 400, 500])
    seconds = 2 * chunks + 40
    seconds[3] *= 5
    assert line(chunks, seconds, 4) == pytest.approx((2.0, 10.0))
    falling = line(chunks, 1000 - chunks, 4)
    assert falling[1] == 0 and falling[0] > 0
    assert Costs(update_row_s=line(chunks, 3 * chunks, 4)[0]).update_row_s == 3.0
