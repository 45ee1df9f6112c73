from __future__ import annotations

import pytest
from rich.console import Console

from pcm_rl.compare.report import measure_table, spending_table, statistics_rows


def row(method, budget, seed, after, chunks=100):
    cost = {"gradient_chunks": chunks, "update_s": chunks / 10, "seconds": 7.0}
    return {"method": method, "budget": budget, "seed": seed, "after": after, "auc": after / 2, **cost}


ROWS = [
    row("full-valid", "", 0, 0.9), row("full-valid", "", 1, 0.7),
    row("pcm", 8, 0, 0.8, 25), row("pcm", 8, 1, 0.4, 25), row("pcm", 8, 2, 0.9, 999),
    row("random-valid", 8, 0, 0.5, 20), row("random-valid", 12, 1, 0.6, 50),
]  # fmt: skip


def by_column(rows, measure="after"):
    return {(row["method"], row["budget"]): row for row in rows if row["measure"] == measure}


def text(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_differences_are_over_common_seeds():
    rows = by_column(statistics_rows(ROWS, "full-valid"))
    pcm = rows["pcm", "8"]
    assert (pcm["seeds"], pcm["pairs"], pcm["baseline"]) == (3, 2, "full-valid")
    assert pcm["mean"] == pcm["iqm"] == pytest.approx(0.7)
    assert pcm["difference"] == pytest.approx(-0.2)
    assert (pcm["difference_low"], pcm["difference_high"]) == pytest.approx((-0.3, -0.1))
    assert rows["random-valid", "8"]["difference"] == pytest.approx(-0.4)
    assert rows["random-valid", "8"]["difference_low"] == ""  # a single pair
    assert rows["full-valid", ""]["pairs"] == 0 and rows["full-valid", ""]["difference"] == ""
    areas = by_column(statistics_rows(ROWS, "full-valid"), "auc")
    assert areas["pcm", "8"]["difference"] == pytest.approx(-0.1)


def test_a_baseline_with_a_budget_is_met_at_the_same_budget():
    rows = by_column(statistics_rows(ROWS, "random-valid"))
    assert rows["pcm", "8"]["baseline"] == "random-valid-b8" and rows["pcm", "8"]["pairs"] == 1
    assert rows["pcm", "8"]["difference"] == pytest.approx(0.3)
    assert rows["full-valid", ""]["baseline"] == "" and rows["random-valid", "12"]["pairs"] == 0


def test_tables_show_percent_and_name_the_baseline():
    shown = text(measure_table(statistics_rows(ROWS, "full-valid"), "after", "full-valid"))
    assert "minus full-valid" in shown and "-20.0 [-30.0, -10.0]" in shown and "80.0 [70.0, 90.0]" in shown
    assert "-40.0 " in shown  # one pair: no interval
    assert "1 pairs: a bootstrap interval of the difference covers 0% at most" in shown
    many = [row(method, "", seed, 0.1 * seed) for method in ("full-valid", "pcm") for seed in range(6)]
    assert "at most" not in text(measure_table(statistics_rows(many, "full-valid"), "after", "full-valid"))


def test_cost_ratios_are_of_common_seeds():
    shown = text(spending_table(ROWS, "full-valid"))
    pcm = next(line for line in shown.splitlines() if "pcm-b8" in line)
    assert "4.00x" in pcm and "350" in pcm  # 100 against 25 on seeds 0 and 1; mean of 25, 25 and 999
    random = next(line for line in text(spending_table(ROWS, "random-valid")).splitlines() if "pcm-b8" in line)
    assert "0.80x" in random
