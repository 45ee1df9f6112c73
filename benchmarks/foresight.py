"""What a critic foresees of the outcomes while the policy, and with it the critic's input, goes on to move.

Every step of a run has the Brier score of the critic's chances from before it learned from that step, and the share of
the outcomes' variance that it foresaw. :func:`foreseen` sums them up for each quarter of a run, ``collect.py`` writes
that as ``methods-NAME-foresight.csv``, and :func:`table` shows it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from cells import digits
from common import read_csv

QUARTERS = 4
SHOWN = {  # comparison, method -> where, and what the critic reads
    ("credit-few", "batch-critic-4"): ("toy", "the state, without memory"),
    ("credit-few", "top-critic-20"): ("toy", "the state"),
    ("credit-few", "top-critic-20-policy"): ("toy", "the policy's last hidden layer"),
    ("metaworld-credit", "top-critic-8x8"): ("MetaWorld, drawer-open", "the state"),
    ("libero-credit-four", "top-critic-2x8-policy"): ("LIBERO, states", "the policy's last hidden layer"),
    ("libero-pixels", "top-critic-2x8"): ("LIBERO, pixels", "hidden states of the tiny OpenVLA"),
}
FORESEEN = tuple(dict.fromkeys(name for name, _ in SHOWN))  # comparisons whose steps have it
Row = Mapping[str, str]
Sums = tuple[float, float]  # squared errors, and what they would be without a critic


def foreseen(steps: Iterable[Row]) -> list[dict[str, str]]:
    """A row for each quarter of a run's environment steps: means over its steps, and how many steps count.

    A step counts where the outcomes of its rows vary enough for the share to have been written.
    """
    runs: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in steps:
        runs[row["method"], row["budget"], row["seed"]].append(row)
    rows = []
    for (method, budget, seed), mine in runs.items():
        played = np.cumsum([float(row["env_steps"]) for row in mine])
        quarters = np.minimum(QUARTERS * played / played[-1], QUARTERS - 1).astype(int)
        for quarter in range(QUARTERS):
            within = [row for row, at in zip(mine, quarters, strict=True) if at == quarter]
            found = [both for row in within if (both := _squares(row)) is not None]
            if found:
                brier, variance = (f"{statistics.fmean(values):.4g}" for values in zip(*found, strict=True))
                rows.append({"method": method, "budget": budget, "seed": seed, "quarter": str(quarter + 1),
                             "brier": brier, "variance": variance, "steps": str(len(found))})  # fmt: skip
    return rows


def _squares(row: Row) -> Sums | None:
    """Brier score and variance of the outcomes of a step; None where the share of the variance is not known."""
    if row["explained_variance"] in ("", "nan"):
        return None
    brier, share = float(row["brier"]), float(row["explained_variance"])
    return brier, brier / (1.0 - share)


def table() -> list[list[str]]:
    """The share of the variance that was foreseen in each quarter, of all seeds together ± jackknife standard error."""
    rows = [["where", "the critic reads", "seeds", *(f"{n}. quarter" for n in range(1, QUARTERS + 1))]]
    read: dict[str, list[dict[str, str]]] = {name: read_csv(f"methods-{name}-foresight") for name in FORESEEN}
    for (name, method), texts in SHOWN.items():
        mine = [row for row in read[name] if row["method"] == method]
        quarters = [[row for row in mine if row["quarter"] == str(n)] for n in range(1, QUARTERS + 1)]
        rows.append([*texts, str(len({row["seed"] for row in mine})), *map(_share, quarters)])
    return rows


def _share(rows: Sequence[Row]) -> str:
    sums = [tuple(int(row["steps"]) * float(row[key]) for key in ("brier", "variance")) for row in rows]
    share = _foreseen_of(sums)
    if len(sums) < 2:
        return digits(share)
    without = [_foreseen_of(sums[:i] + sums[i + 1 :]) for i in range(len(sums))]
    error = ((len(sums) - 1) * statistics.pvariance(without)) ** 0.5
    return f"{digits(share)} ± {digits(error)}"


def _foreseen_of(sums: Sequence[Sequence[float]]) -> float:
    return 1.0 - sum(brier for brier, _ in sums) / sum(variance for _, variance in sums)
