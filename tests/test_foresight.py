"""What a critic foresaw, by hand (``benchmarks/foresight.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


def step(seed: str, env_steps: int, brier: str, share: str) -> dict[str, str]:
    return {"method": "m", "budget": "3", "seed": seed, "env_steps": str(env_steps), "brier": brier,
            "explained_variance": share}  # fmt: skip


def test_quarters_are_of_the_environment_steps_and_skip_what_was_not_measured() -> None:
    from foresight import foreseen

    # after 10, 20, 40, 60 and 80 steps of 80: quarters 1, 2, 3, 4 and 4, since a step counts where it ends
    steps = [step("1", 10, "", ""), step("1", 10, "0.2", "0.2"), step("1", 20, "0.3", "-0.5"),
             step("1", 20, "0.1", "0.5"), step("1", 20, "0.2", "0.2")]  # fmt: skip
    rows = foreseen([*steps, step("2", 7, "0.09", "0.64")])
    got = [(row["seed"], row["quarter"], row["brier"], row["variance"], row["steps"]) for row in rows]
    assert got == [
        ("1", "2", "0.2", "0.25", "1"),
        ("1", "3", "0.3", "0.2", "1"),
        ("1", "4", "0.15", "0.225", "2"),
        ("2", "4", "0.09", "0.25", "1"),
    ]


def test_the_share_is_that_of_all_steps_together_with_an_error_over_seeds() -> None:
    from foresight import _share

    one = {"brier": "0.1", "variance": "0.2", "steps": "3"}
    other = {"brier": "0.2", "variance": "0.2", "steps": "1"}
    assert _share([one]) == "0.50"
    # 1 - .5 / .8; without one seed .5, without the other 0: the jackknife's error is .25
    assert _share([one, other]) == "0.38 ± 0.25"
