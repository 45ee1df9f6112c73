"""What a comparison shows: aggregates over seeds, paired differences to a baseline, and what each column cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from rich.table import Table

from pcm_rl.compare.plan import column_name
from pcm_rl.compare.statistics import (
    LEVEL,
    Difference,
    Interval,
    largest_coverage,
    paired_difference,
    stratified_interval,
)
from pcm_rl.compare.tables import Row

MEASURES = {"after": "success after training", "auc": "success, mean over training (AUC)"}
Column = tuple[str, str]  # method and budget, as texts
_NOTHING = Difference(0, math.nan, math.nan, math.nan, math.nan, math.nan)


def statistics_rows(rows: Sequence[Row], baseline: str) -> list[Row]:
    """A row for each measure and column: aggregate over seeds, and difference to the baseline over common seeds.

    A column's baseline is the method of that name at the same budget, or the one without a budget.

    Args:
        rows: Those of ``compare.csv``.
        baseline: A method or variant.
    """
    columns = _columns(rows)
    result = []
    for measure in MEASURES:
        table = {column: {row["seed"]: float(row[measure]) for row in part} for column, part in columns.items()}
        for column, scores in table.items():
            base = _baseline(table, column, baseline)
            interval = stratified_interval(list(scores.values()))
            difference = _NOTHING
            if base is not None and base != column:
                seeds = [seed for seed in scores if seed in table[base]]
                if seeds:
                    difference = paired_difference([scores[s] for s in seeds], [table[base][s] for s in seeds])
            result.append(_statistics_row(measure, column, scores, interval, base, difference))
    return result


def _baseline(columns: Mapping[Column, object], column: Column, baseline: str) -> Column | None:
    """The column that ``column`` is compared with: at its budget, or without one."""
    return next((key for key in ((baseline, column[1]), (baseline, "")) if key in columns), None)


def _statistics_row(
    measure: str,
    column: Column,
    scores: Mapping[int, float],
    interval: Interval,
    baseline: Column | None,
    difference: Difference,
) -> Row:
    row: Row = {
        "measure": measure,
        "method": column[0],
        "budget": column[1],
        "seeds": len(scores),
        "mean": statistics.fmean(scores.values()),
        "iqm": interval.value,
        "iqm_low": interval.low,
        "iqm_high": interval.high,
        "baseline": column_name(*baseline) if baseline is not None and difference.pairs else "",
        "pairs": difference.pairs,
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "deviation": difference.deviation,
        "detectable": difference.detectable,
    }
    return {key: "" if value != value else round(value, 6) if isinstance(value, float) else value
            for key, value in row.items()}  # fmt: skip


def measure_table(rows: Sequence[Row], measure: str, baseline: str) -> Table:
    """Aggregates and differences of one measure, in percent and percentage points.

    Args:
        rows: From :func:`statistics_rows`.
        measure: A key of :data:`MEASURES`.
        baseline: The one that they were made with.
    """
    rows = [row for row in rows if row["measure"] == measure]
    table = Table(
        "column", "seeds", f"IQM [{LEVEL:.0%}]", f"minus {baseline}", "detectable",
        title=f"{MEASURES[measure]}, in %", caption=_caveat(rows),
    )  # fmt: skip
    for row in rows:
        aggregate = f"{100 * row['iqm']:.1f}" + _range(row["iqm_low"], row["iqm_high"], ".1f")
        difference = detectable = ""
        if row["pairs"]:
            difference = f"{100 * row['difference']:+.1f}"
            difference += _range(row["difference_low"], row["difference_high"], "+.1f")
            # equal differences say nothing of the spread
            detectable = f"{100 * row['detectable']:.1f}" if row["detectable"] else "-"
        table.add_row(column_name(row["method"], row["budget"]), str(row["seeds"]), aggregate, difference, detectable)
    table.columns[0].no_wrap = True
    return table


def _range(low: float | str, high: float | str, form: str) -> str:
    return "" if isinstance(low, str) or isinstance(high, str) else f" [{100 * low:{form}}, {100 * high:{form}}]"


def _caveat(rows: Sequence[Row]) -> str | None:
    """Few pairs: no bootstrap interval can be right as often as it says."""
    pairs = min((row["pairs"] for row in rows if row["pairs"]), default=0)
    if not pairs or largest_coverage(pairs) >= LEVEL:
        return None
    return f"{pairs} pairs: a bootstrap interval of the difference covers {largest_coverage(pairs):.0%} at most"


def spending_table(rows: Sequence[Row], baseline: str) -> Table:
    """Means over seeds of what each column spent, and the ratios of the baseline to it over common seeds.

    Args:
        rows: Those of ``compare.csv``.
        baseline: A method or variant.
    """
    titles = [title for what in ("chunks backward", "update s", "all s") for title in (what, "base / it")]
    caption = "seconds say something only of runs that had the machine to themselves (--jobs 1)"
    table = Table("column", *titles, title=f"cost of a run, mean over seeds; base: {baseline}", caption=caption)
    columns = _columns(rows)
    for column, part in columns.items():
        base = _baseline(columns, column, baseline)
        base_rows = [] if base is None else columns[base]
        cells = [column_name(*column)]
        for key, form in (("gradient_chunks", ",.0f"), ("update_s", ".1f"), ("seconds", ".1f")):
            cells += [f"{statistics.fmean(float(row[key]) for row in part):{form}}", _ratio(base_rows, part, key)]
        table.add_row(*cells)
    table.columns[0].no_wrap = True
    return table


def _ratio(base: Sequence[Row], rows: Sequence[Row], key: str) -> str:
    """Sum of ``key`` in ``base`` over that in ``rows``, of the seeds that both have."""
    seeds = {row["seed"] for row in base} & {row["seed"] for row in rows}
    dividend, divisor = (sum(float(row[key]) for row in part if row["seed"] in seeds) for part in (base, rows))
    return f"{dividend / divisor:.2f}x" if dividend and divisor else ""


def _columns(rows: Sequence[Row]) -> dict[Column, list[Row]]:
    columns: dict[Column, list[Row]] = {}
    for row in rows:
        columns.setdefault((str(row["method"]), str(row["budget"])), []).append(row)
    return columns
