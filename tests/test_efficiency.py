"""What a success costs, by hand (``benchmarks/efficiency.py``)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


def row(env_steps: int, success: float, chunks: int) -> dict[str, str]:
    return {"env_steps": str(env_steps), "success": str(success), "gradient_chunks": str(chunks)}


def curves():
    from efficiency import _curves

    runs = {
        "1": [row(0, 0.4, 0), row(500, 0.8, 50), row(1200, 1.0, 100)],
        "2": [row(0, 0.4, 0), row(400, 0.6, 30), row(1000, 0.6, 90)],
    }
    return _curves(runs, limit=1000.0)


def test_the_mean_curve_reaches_a_level_on_straight_lines() -> None:
    found = curves()
    assert found.reach(0.4) == 0.0 and found.reach(0.99) == math.inf
    # the seeds have .72 and .6 after 400 environment steps, .8 and .6 after 500
    assert found.reach(0.66) == pytest.approx(400, abs=3) and found.reach(0.7) == pytest.approx(500, abs=3)
    assert found.reach(0.8, seeds=[0]) == pytest.approx(500, abs=3)
    assert found.chunks_at(500) == pytest.approx((50 + 40) / 2, abs=0.5)


def test_heights_are_those_of_the_whole_curve_and_of_its_last_quarter() -> None:
    found = curves()
    end = 0.8 + 0.2 * 500 / 700
    assert found.mean["1"] == pytest.approx((0.6 * 500 + (0.8 + end) / 2 * 500) / 1000, abs=1e-3)
    assert found.mean["2"] == pytest.approx((0.5 * 400 + 0.6 * 600) / 1000, abs=1e-3)
    assert found.late["2"] == pytest.approx(0.6) and found.late["1"] == pytest.approx(
        (end + end - 0.2 / 2.8) / 2, abs=2e-3
    )


def test_an_interval_is_infinite_where_resamples_never_get_there() -> None:
    low, high = curves().interval(0.8)
    assert low == pytest.approx(500, abs=3) and high == math.inf
