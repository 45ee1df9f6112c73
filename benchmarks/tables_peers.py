"""Tables of other trainers beside ours."""

from __future__ import annotations

from cells import short
from common import read_csv

UPDATES = {
    "pcm": "`pcm`, B = 12",
    "top-advantage": "`top-advantage`, B = 8",
    "full-valid": "`full-valid`",
    "full-padded": "`full-padded`",
    "torchrl": "TorchRL's `vla_grpo`: a step for every 64 decisions",
    "torchrl-4": "the same, four steps",
}


def peers() -> list[list[str]]:
    """One update on one batch by our methods and by TorchRL's recipe."""
    updates = {row["update"]: row for row in read_csv("peers-update")}
    table = [["", "rows of an update", "optimiser steps", "times `pcm`"]]
    for name, label in UPDATES.items():
        table.append([label, *(updates[name][key] for key in ("rows", "optimizer_steps", "time_over_pcm"))])
    return table


def peers_ahead() -> list[list[str]]:
    """On how many seeds the recipe with a critic needs less than each peer, and by how much."""
    rows = {(row["other"], row["to"], row["cost"]): row for row in read_csv("peers-ahead")}
    others = dict.fromkeys(other for other, _, _ in rows)
    seeds = next(iter(rows.values()))["seeds"]
    costs = {"env_steps": "environment steps", "chunks": "gradient chunks", "seconds": "seconds"}
    table = [[f"seeds of {seeds} on which it needs less (median ratio)",
              *(f"{text} to {float(good):.0%}" for good in ("0.8", "0.9") for text in costs.values())]]  # fmt: skip
    for other in others:
        cells = [SIDE_BY_SIDE.get(other, f"`{other}`")]
        for good in ("0.8", "0.9"):
            for cost in costs:
                row = rows[other, good, cost]
                cells.append(row["ahead"] + (f" ({row['ratio']})" if row["ratio"] else ""))
        table.append(cells)
    return table


SIDE_BY_SIDE = {
    "sb3-ppo": "Stable-Baselines3 PPO",
    "torchrl-ppo": "TorchRL PPO",
    "vla-grpo": "TorchRL's `vla_grpo`",
    "srpo-like": "full GRPO with a progress reward",
}


def prices() -> list[list[str]]:
    """Peers side by side: the median price of 70, 80 and 90 % success, and on how many seeds it was reached."""
    table = [["", "success before", "after", "mean over training"]]
    costs = {"env_steps": "environment steps", "chunks": "gradient chunks", "seconds": "seconds"}
    table[0] += [f"{text} to 70 / 80 / 90 %" for text in costs.values()] + ["seeds that reach 70 / 80 / 90 %"]
    for run in read_csv("peers-summary"):
        name = SIDE_BY_SIDE.get(run["peer"], f"`{run['peer']}`")
        cells = [short(float(run[key])) for key in ("success_before", "success_after", "mean_over_training")]
        for cost in costs:
            cells.append(" / ".join(_price(run[f"{cost}_to_{good}"]) for good in ("0.7", "0.8", "0.9")))
        reached = " / ".join(run[f"reached_{good}"] for good in ("0.7", "0.8", "0.9"))
        table.append([name, *cells, f"{reached} of {run['seeds']}"])
    return table


def _price(cell: str) -> str:
    """A median price; a dash where half of the seeds or more never get there."""
    return (cell if "." in cell else f"{int(cell):,}") if cell else "-"
