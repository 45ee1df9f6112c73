"""What a success costs each peer of ``peers.py``: environment steps, chunks and seconds, seed by seed and in all."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peers_run import Row

GOOD = (0.7, 0.8, 0.9)
COSTS = ("env_steps", "chunks", "seconds")
NEVER = "never"
Curves = Mapping[tuple[str, int], list[Row]]  # of each peer and seed


def price(rows: Sequence[Row], good: float, steps: int) -> dict[str, float] | None:
    """Costs at the first time that the success of a run is ``good``, on straight lines between its evaluations.

    Args:
        rows: Evaluations, in order.
        good: Success.
        steps: Environment steps up to which it counts.

    Returns:
        Number of each of :data:`COSTS`; None where it was not reached.
    """
    if rows[0]["success"] >= good:
        return {cost: float(rows[0][cost]) for cost in COSTS}
    for before, after in itertools.pairwise(rows):
        if after["success"] >= good:
            share = (good - before["success"]) / (after["success"] - before["success"])
            at = {cost: before[cost] + share * (after[cost] - before[cost]) for cost in COSTS}
            return at if at["env_steps"] <= steps else None
    return None


def area(rows: Sequence[Row], steps: int) -> float:
    """Mean success over the first ``steps`` environment steps, by trapezoids; the last one is cut there."""
    total = 0.0
    for before, after in itertools.pairwise(rows):
        width = after["env_steps"] - before["env_steps"]
        inside = min(after["env_steps"], steps) - before["env_steps"]
        if inside > 0:
            end = before["success"] + (after["success"] - before["success"]) * inside / width
            total += inside * (before["success"] + end) / 2
    return total / min(steps, rows[-1]["env_steps"])


def prices(rows: Sequence[Row], steps: int) -> Row:
    """One run in a row; ``never`` where a success was not reached within ``steps`` environment steps."""
    told: Row = {
        "seed": rows[0]["seed"],
        "success_before": round(rows[0]["success"], 4),
        "success_after": round(rows[-1]["success"], 4),
        "mean_over_training": round(area(rows, steps), 4),
        **{cost: rows[-1][cost] for cost in COSTS},
        "update_seconds": rows[-1]["update_seconds"],
    }
    for good in GOOD:
        at = price(rows, good, steps)
        for cost in COSTS:
            told[f"{cost}_to_{good}"] = NEVER if at is None else round(at[cost], 2 if cost == "seconds" else None)
    return told


def summarise(curves: Curves, steps: int) -> list[Row]:
    """One row a peer: means over its seeds, and the median price of each success.

    A seed that never reaches a success counts as one with the highest price. Where half of the seeds or more do not,
    there is no median and the cell is empty; ``reached_<success>`` says how many do.
    """
    table: list[Row] = []
    for name in dict.fromkeys(name for name, _ in curves):
        runs = [prices(rows, steps) for (peer, _), rows in curves.items() if peer == name]
        after = [run["success_after"] for run in runs]
        row: Row = {
            "peer": name,
            "seeds": len(runs),
            "success_before": _mean(runs, "success_before"),
            "success_after": _mean(runs, "success_after"),
            "standard_error": round(statistics.stdev(after) / len(runs) ** 0.5, 3) if len(runs) > 1 else "",
            "mean_over_training": _mean(runs, "mean_over_training"),
            "env_steps": round(_mean(runs, "env_steps")),
            "chunks": round(_mean(runs, "chunks")),
            "seconds": round(_mean(runs, "seconds"), 1),
            "update_seconds": round(_mean(runs, "update_seconds"), 1),
        }
        for good in GOOD:
            row[f"reached_{good}"] = sum(run[f"env_steps_to_{good}"] != NEVER for run in runs)
            for cost in COSTS:
                middle = statistics.median(number(run[f"{cost}_to_{good}"]) for run in runs)
                row[f"{cost}_to_{good}"] = (
                    round(middle, 1 if cost == "seconds" else None) if math.isfinite(middle) else ""
                )
        table.append(row)
    return table


def ahead(priced: Iterable[Row], base: Sequence[str]) -> list[Row]:
    """How often a peer of ``base`` needs less than each other one on the same seed.

    Args:
        priced: Rows of :func:`prices` with ``peer``.
        base: Names; those that were not run are left out.

    Returns:
        A row a pair, success and cost. ``ratio`` is the median over the seeds where both reach it of what the other
        one needs over what the base needs.
    """
    runs = {(row["peer"], row["seed"]): row for row in priced}
    names = list(dict.fromkeys(name for name, _ in runs))
    table: list[Row] = []
    for ours, other in itertools.product(base, names):
        seeds = [seed for name, seed in runs if name == ours and (other, seed) in runs]
        if ours == other or not seeds:
            continue
        for good, cost in itertools.product(GOOD, COSTS):
            key = f"{cost}_to_{good}"
            pairs = [(number(runs[ours, seed][key]), number(runs[other, seed][key])) for seed in seeds]
            ratios = [theirs / mine for mine, theirs in pairs if 0 < mine < math.inf and theirs < math.inf]
            table.append(
                {
                    "peer": ours,
                    "other": other,
                    "to": good,
                    "cost": cost,
                    "seeds": len(seeds),
                    "ahead": sum(mine < theirs for mine, theirs in pairs),
                    "behind": sum(mine > theirs for mine, theirs in pairs),
                    "neither": sum(mine == theirs == math.inf for mine, theirs in pairs),
                    "ratio": round(statistics.median(ratios), 2) if ratios else "",
                }
            )
    return table


def number(value: Any) -> float:
    """A price; infinite where it says ``never``."""
    return math.inf if value == NEVER else float(value)


def _mean(runs: Sequence[Row], key: str) -> float:
    return round(statistics.fmean(run[key] for run in runs), 3)
