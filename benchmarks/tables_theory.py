"""Tables of the theory: errors of the gradient, and where chunks, variance and credit are."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from cells import Row, digits
from common import read_csv


def gradient() -> list[list[str]]:
    """Rules on snapshots at 20 % of the rows, best error first: means over the snapshots, then one by one."""
    rows: dict[str, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in read_csv("gradient_error"):
        rows[row["rule"]][row["fraction"], row["step"]] = row
    steps = ("0", "15", "60")
    table = [["rule", "error", "bias²", "signal, start / 15 / 60", "progress", "progress at 38 %"]]
    for rule, found in sorted(rows.items(), key=lambda item: _mean(item[1], "error")):
        error = sum(float(found["0.2", s]["error_se"]) ** 2 for s in steps) ** 0.5 / len(steps)
        signal = [(float(found["0.2", s]["signal"]), float(found["0.2", s]["signal_se"])) for s in steps]
        unbiased = all(spread == 0 for _, spread in signal)
        progress = (" / ".join(digits(float(found[share, s]["progress"])) for s in steps) for share in ("0.2", "0.38"))
        cells = [rule, f"{digits(_mean(found, 'error'))} ± {digits(error)}", digits(_mean(found, "bias2"))]
        cells.append("1" if unbiased else " / ".join(f"{digits(a)} ± {digits(b)}" for a, b in signal))
        table.append([*cells, *progress])
    return table


def _mean(rows: Mapping[tuple[str, str], Row], key: str) -> float:
    return statistics.fmean(float(row[key]) for (share, _), row in rows.items() if share == "0.2")


def phases() -> list[list[str]]:
    """What the theory is about, phase by phase: mean and standard error over the snapshots."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in read_csv("theory-phases"):
        rows[row["phase"]].append(row)
    keys = {"chunks": ".1f", "V": ",.0f", "C": ".2f", "kept, neyman": ".2f", "kept, uniform": ".2f", "kept, pcm": ".2f"}
    names = ["chunks a trajectory", "V", "C", "kept by Neyman", "kept by uniform chunks", "kept by `pcm`"]
    table = [["phase", *names]]
    for phase, mine in rows.items():
        values = {key: [float(row[key]) for row in mine if row[key] != "nan"] for key in keys}
        cells = [f"{statistics.fmean(v):{keys[k]}} ± {statistics.stdev(v) / len(v) ** 0.5:{keys[k]}}"
                 for k, v in values.items()]  # fmt: skip
        table.append([phase, *cells])
    return table


CREDIT = {
    "spread": "largest over smallest `sqrt(V_c)`",
    "spread, no tail": "the same without the tail",
    "rank": "rank correlation of C with `V_c`",
    "delta": "Delta (equation 23)",
    "variance, uniform": "variance of random chunks, over Neyman's",
    "variance, pcm": "variance of PCM's allocation, over Neyman's",
    "phases explain, credit": "share of the variance of `A_k^2` that phases explain",
    "top tenth, credit": "share of `sum A_k^2` in the top tenth of the chunks",
    "error, neyman": "error, Neyman by phase",
    "error, phase": "error, the best weights of phases in hindsight",
    "error, pcm": "error, PCM with C",
    "error, pcm, credit": "error, PCM with the phase's root mean square of `A_k`",
    "error, credit": "error, in proportion to `abs(A_k)`",
    "error, gradient": "error, in proportion to the gradient's norm: the best possible",
    "cosine, random": "cosine, random chunks",
    "cosine, pcm": "cosine, PCM with C",
    "cosine, top": "cosine, the largest `abs(A_k)` with their own weights",
}


def credit(task: str) -> list[list[str]]:
    """The theory under each credit: mean and standard error over a task's snapshots, or each of them where few."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in read_csv("theory-credit"):
        if row["task"] == task:
            rows[row["credit"]].append(row)
    table = [["", *rows]]
    for key, label in CREDIT.items():
        values = {name: [float(row[key]) for row in mine] for name, mine in rows.items()}
        table.append([label, *(_mean_or_each(v) for v in values.values())])
    return table


def credit_phases(task: str) -> list[list[str]]:
    """Where chunks, credit and gradient variance are, phase by phase, with the critic on every row and equation 1."""
    keys = {"chunks": "share of the chunks", "credit": "share of `sum A_k^2`"}
    kept = ("kept, neyman", "kept, uniform", "kept, pcm")
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    snapshots: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in read_csv("theory-credit-phases"):
        if row["task"] == task:
            snapshots[row["seed"], row["step"], row["credit"]].append(row)
    for (_, _, name), mine in snapshots.items():
        square = {row["phase"]: float(row["chunks"]) * float(row["A"]) ** 2 for row in mine if row["A"] != "nan"}
        chunks = sum(float(row["chunks"]) for row in mine)
        mean = sum(float(row["chunks"]) * float(row["V"]) for row in mine) / chunks
        for row in mine:
            cells = found[row["phase"], name]
            cells["chunks"].append(float(row["chunks"]) / chunks)
            cells["credit"].append(square.get(row["phase"], 0.0) / sum(square.values()))
            cells["root V"].append(max(float(row["V"]) / mean, 0.0) ** 0.5)
            for key in kept:
                cells[key].append(float(row[key]))
    group, critic = "equation 1", "critic, every row"
    head = ["phase", *keys.values(), "`sqrt(V_c)`, equation 1", "`sqrt(V_c)`, critic"]
    rows = [[*head, "kept by Neyman", "by random chunks", "by `pcm`"]]
    for phase in dict.fromkeys(phase for phase, _ in found):
        mine = found[phase, critic]
        cells = [f"{statistics.fmean(mine[key]):.0%}" for key in keys]
        roots = [found[phase, group]["root V"], mine["root V"]]
        cells += [_mean_or_each(v) for v in roots]
        rows.append([phase, *cells, *(digits(statistics.fmean(mine[key])) for key in kept)])
    return rows


def _mean_or_each(values: Sequence[float]) -> str:
    if len(values) < 3:
        return " / ".join(map(digits, values))
    return f"{digits(statistics.fmean(values))} ± {digits(statistics.stdev(values) / len(values) ** 0.5)}"
