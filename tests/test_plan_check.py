"""The arithmetic of ``pcm-rl plan`` against recorded measurements (``benchmarks/plan_check.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


def test_predictions_are_those_of_the_file_and_within_15_percent():
    from common import read_csv
    from plan_check import WITHIN, predictions

    rows = predictions()
    keys = ("part", "what", "predicted", "measured", "error", "why")
    assert [[str(row[key]) for key in keys] for row in rows] == [
        [row[key] for key in keys] for row in read_csv("plan_check")
    ]
    # a prediction that misses is in the file with its reason
    assert all(bool(row["why"]) == (abs(float(str(row["error"]))) > WITHIN) for row in rows)
    missed = {(row["part"], row["what"]) for row in rows if row["why"]}
    assert len(rows) == 65 and missed == {
        ("toy, steps of `pcm`", "4 groups"),
        ("toy, 60 updates", "batch-critic-4"),
        *(("toy, 60 rollouts", name) for name in ("top-advantage-8", "full-batch-critic", "batch-critic-4")),
        *(("LIBERO, two workers", view) for view in ("egl", "osmesa")),
        ("7B, a decision", "1 rows"),
        *(
            ("7B, a step", f"{name}, step 1, {part}")
            for name in ("pcm", "pcm-merged")
            for part in ("rollout", "update", "step")
        ),
        *(("7B, a step", f"full-valid, step 1, {part}") for part in ("rollout", "step")),
        ("7B, a step", "pcm-decisions, step 1, update"),
    }
