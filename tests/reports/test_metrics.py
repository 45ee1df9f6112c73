from __future__ import annotations

import math

import pytest

from pcm_rl import Phase
from pcm_rl.reports.html import METRICS as EXPLAINED
from pcm_rl.reports.metrics import METRICS, CsvTable, RunLog, step_line

ROW = {
    "step": 2, "success": 0.5, "groups": 8, "groups_mixed": 3, "chunks_kept": 360, "chunks_valid": 900,
    "kept_fraction": 0.4, "rollout_s": 3.0, "select_s": 0.0, "update_s": 1.0, "step_s": 4.0,
}  # fmt: skip


def test_table_appends_and_drops_what_comes_after_a_checkpoint(tmp_path):
    table = CsvTable(tmp_path / "t.csv", ["step", "x"])
    for step in (1, 2, 3):
        table.append({"step": step, "x": math.nan if step == 2 else step / 2})
    assert (tmp_path / "t.csv").read_text().split() == ["step,x", "1,0.5", "2,", "3,1.5"]
    CsvTable(tmp_path / "t.csv", ["step", "x"], keep_until=2).append({"step": 3, "x": 9})
    assert (tmp_path / "t.csv").read_text().split() == ["step,x", "1,0.5", "2,", "3,9"]
    with pytest.raises(KeyError, match="no column"):
        table.append({"step": 4, "y": 1})


def test_line_for_a_person():
    line = step_line(ROW, 60)
    for part in ("2/60", "50.0%", "groups 3/8", "360/900 (40%)", "3.00 s (75%)", "1.00 s (25%", "ceiling 1.33x"):
        assert part in line
    assert "update skipped" in step_line({**ROW, "groups_mixed": 0}, 60)


def test_every_metric_is_explained_in_the_report(tmp_path):
    explained = {metric[0].replace("<phase>", phase.label) for metric in EXPLAINED for phase in Phase}
    assert set(METRICS) == explained
    log = RunLog(tmp_path, "tensorboard")
    log.step(ROW)
    assert list((tmp_path / "tensorboard").rglob("events*"))
