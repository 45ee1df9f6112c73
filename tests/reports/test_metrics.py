from __future__ import annotations

import math
import warnings

import pytest

from pcm_rl.reports.follower import Follower
from pcm_rl.reports.loggers import LoggedRun
from pcm_rl.reports.metrics import CsvTable, RunLog, step_line

ROW = {
    "step": 2, "success": 0.5, "trajectories": 80, "groups": 8, "groups_mixed": 3, "chunks_kept": 360,
    "chunks_valid": 900, "kept_fraction": 0.4, "rollout_s": 3.0, "select_s": 0.0, "update_s": 1.0, "step_s": 4.0,
}  # fmt: skip


def tensorboard(folder, keep=None):
    """The open tables of a run that TensorBoard follows."""
    log = RunLog(folder, keep)
    log.follow(Follower("tensorboard", LoggedRun("run", "0123", folder, {}), keep, str))
    return log


def header(folder):
    return (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def test_table_appends_and_drops_what_comes_after_a_checkpoint(tmp_path):
    table = CsvTable(tmp_path / "t.csv", ["step", "x"])
    for step in (1, 2, 3):
        table.append({"step": step, "x": math.nan if step == 2 else step / 2})
    assert (tmp_path / "t.csv").read_text().split() == ["step,x", "1,0.5", "2,", "3,1.5"]
    CsvTable(tmp_path / "t.csv", ["step", "x"], keep_until=2).append({"step": 3, "x": 9})
    assert (tmp_path / "t.csv").read_text().split() == ["step,x", "1,0.5", "2,", "3,9"]
    with pytest.raises(KeyError, match="no column"):
        table.append({"step": 4, "y": 1})


def test_a_damaged_row_is_left_out_with_a_word(tmp_path):
    path = tmp_path / "t.csv"
    for garbage in (
        b"\0" * 40,
        b"4,\xff\xfe\n",
        b"4\n",
        b"4,a word\n",
        b"four,1\n",
        b"nan,1\n",
        b'4,"1\n',
        b"\n\n4,1,2\n",
    ):
        path.write_bytes(b"step,x\n1,0.5\n2,\n" + garbage)
        table = CsvTable(path, ["step", "x"], keep_until=9)
        table.append({"step": 3, "x": 1})
        assert path.read_text().split() == ["step,x", "1,0.5", "2,", "3,1"], garbage
        assert table.repairs in (["t.csv: 1 damaged row left out"], ["t.csv: 2 damaged rows left out"]), garbage
    for header in (b"", b"\0\0\0,x\n", b"stfp,x\n", b"step,\xff\n"):
        path.write_bytes(header + b"1,0.5\n")
        table = CsvTable(path, ["step", "x"], keep_until=9)
        assert path.read_text().split() == ["step,x"] and "its header is damaged" in table.repairs[0]
        assert (tmp_path / "t.csv.damaged").read_bytes() == header + b"1,0.5\n"
    assert CsvTable(path, ["step", "x"], keep_until=9).repairs == []


def test_a_step_has_one_row_the_later_one(tmp_path):
    table = CsvTable(tmp_path / "t.csv", ["step", "x"])
    for step, x in ((1, 1), (2, 2), (2, 3), (1, 4)):
        table.append({"step": step, "x": x})
    assert (tmp_path / "t.csv").read_text().split() == ["step,x", "1,4"]
    (tmp_path / "t.csv").write_text("step,x\n1,1\n2,2\n2,3\n")  # as an older version left it
    CsvTable(tmp_path / "t.csv", ["step", "x"], keep_until=2)
    assert (tmp_path / "t.csv").read_text().split() == ["step,x", "1,1", "2,3"]


def test_steps_that_are_done_again_are_in_tensorboard_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def log(until, steps, keep=None):
        log = tensorboard(tmp_path, keep)
        for step in steps:
            log.step({**ROW, "step": step, "success": step / 10 + until})
        log.evaluated({"step": until, "success": 0.5})
        log.evaluated({"step": until, "success": 0.5})
        log.close("finished")

    log(4, [1, 2, 3, 4])
    log(4, [3, 4], keep=2)
    log(4, [], keep=4)  # a finished run, resumed
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/success")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("evaluation/success")] == [4]
    assert (tmp_path / "evaluation.csv").read_text().count("\n") == 2


def test_columns_that_are_no_longer_written_stay(tmp_path):
    CsvTable(tmp_path / "t.csv", ["step", "old", "x"]).append({"step": 1, "old": 5, "x": 6})
    CsvTable(tmp_path / "t.csv", ["step", "x", "new"], keep_until=1).append({"step": 2, "x": 7, "new": 8})
    assert (tmp_path / "t.csv").read_text().split() == ["step,x,new,old", "1,6,,5", "2,7,8,"]


def test_line_for_a_person():
    line = step_line(ROW, 60)
    for part in ("2/60", "50.0%", "groups 3/8", "360/900 (40%)", "3.00 s (75%)", "1.00 s (25%", "ceiling 1.33x"):
        assert part in line
    skipped = {key: value for key, value in ROW.items() if key != "chunks_kept"}
    assert "no group has both outcomes: nothing to learn from, update skipped" in step_line(skipped, 60)
    alone = {**skipped, "groups": 80, "trajectories": 80}
    assert "rollouts 80  rollout" in step_line(alone, 60) and "all outcomes are alike: nothing" in step_line(alone, 60)


def test_scalars_go_to_the_logger(tmp_path):
    log = tensorboard(tmp_path)
    log.step(ROW)
    log.close("failed")
    assert list((tmp_path / "tensorboard").rglob("events*"))


def test_extra_columns_come_last_and_survive_a_resume(tmp_path):
    RunLog(tmp_path, extra=["novelty", "novelty/tail"]).step({**ROW, "novelty": 0.5})
    assert header(tmp_path)[-2:] == ["novelty", "novelty/tail"]
    RunLog(tmp_path, keep_until=2).step({**ROW, "step": 3, "novelty": 0.25})
    assert [line.split(",")[-2:] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]] == [
        ["0.5", ""], ["0.25", ""]
    ]  # fmt: skip
    for extra in (["loss"], ["a", "a"]):
        with pytest.raises(ValueError, match="already"):
            RunLog(tmp_path, extra=extra)


def test_an_undeclared_metric_is_named_once_and_costs_no_step(tmp_path):
    log = RunLog(tmp_path)
    with pytest.warns(RuntimeWarning, match="no column for novelty"):
        log.step({**ROW, "novelty": 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.step({**ROW, "step": 3, "novelty": 0.5})
    assert "novelty" not in header(tmp_path) and len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
