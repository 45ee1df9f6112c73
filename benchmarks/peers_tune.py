"""Settings of the other trainers, each found with the same effort: a search coordinate by coordinate.

From a start, each coordinate's other values are tried, one coordinate after the other, and the best so far is kept:
eight configurations a peer, on the same tuning seeds, to the same number of environment steps. Best is the largest mean
success over training (``peers_summary.area``), averaged over the seeds. ``peers.py tune`` runs it; the chosen settings
are in :data:`CHOSEN`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peers_run import Peer, Row, Run
from peers_summary import COSTS, area


class Search(NamedTuple):
    """What is searched for one peer.

    Attributes:
        kind: What makes the peer.
        start: Settings of the first configuration.
        others: Each coordinate and other values of it, in the order in which they are tried.
    """

    kind: str
    start: dict[str, Any]
    others: list[tuple[str, list[Any]]]


PPO = {"lr": 3e-4, "epochs": 4, "length": 32, "batch": 256, "warmup": 0}
PPO_OTHERS: list[tuple[str, list[Any]]] = [
    ("warmup", [1]),
    ("lr", [1e-4, 1e-3]),
    ("length", [8, 16]),
    ("batch", [64]),
    ("epochs", [10]),
]
SRPO = {"method": "full-valid", "advantage.name": "peers_srpo:Progress", "advantage.options.most": 0.6}
SEARCHES = {
    "sb3-ppo": Search("sb3", {"tokens": True, "start": True, **PPO}, PPO_OTHERS),
    "torchrl-ppo": Search("torchrl_ppo", PPO, PPO_OTHERS),
    "vla-grpo": Search(
        "vla_grpo",
        {"lr": 3e-4, "decisions": 64, "groups": 8, "ratio": "token"},
        [
            ("decisions", [256, 1024]),
            ("lr", [1e-4, 1e-3]),
            ("groups", [4, 2]),
            ("ratio", ["chunk"]),
        ],
    ),
    "srpo-like": Search(
        "ours",
        {**SRPO, "update.lr": 3e-4, "groups": 8, "update.epochs": 1, "advantage.options.frames": 8},
        [
            ("update.lr", [6e-4, 1e-3]),
            ("groups", [4, 2]),
            ("update.epochs", [2]),
            ("advantage.options.most", [0.3]),
            ("advantage.options.frames", [2]),
        ],
    ),
}
CHOSEN: dict[str, dict[str, Any]] = {
    "sb3-ppo": {**SEARCHES["sb3-ppo"].start, "length": 8, "batch": 64},
    "torchrl-ppo": {**PPO, "lr": 1e-3, "length": 16},
    "vla-grpo": {**SEARCHES["vla-grpo"].start, "lr": 1e-4, "decisions": 256},
    "srpo-like": {**SEARCHES["srpo-like"].start, "update.lr": 1e-3, "groups": 4},
}
Rest = tuple[int, int, int, tuple[str, ...]]  # seed, steps, every and overrides of a run


def tune(names: Sequence[str], rests: Sequence[Rest], work: Path, make: Callable[[Run], Peer]) -> list[Row]:
    """Search for each peer; a row for each configuration and seed.

    Args:
        names: Of :data:`SEARCHES`.
        rests: What the runs have beside a peer's settings, one for each tuning seed.
        work: Folder that keeps the runs.
        make: Gives a peer at its start.
    """
    return [row for name in names for row in _search(name, rests, work, make)]


def _search(name: str, rests: Sequence[Rest], work: Path, make: Callable[[Run], Peer]) -> list[Row]:
    kind, best, others = SEARCHES[name]
    rows: list[Row] = []

    def score(settings: dict[str, Any]) -> float:
        number = len(rows) // len(rests)
        for rest in rests:
            run = Run(name, kind, settings, *rest)
            curve = run.rows(work, make)
            rows.append(
                {
                    "peer": name,
                    "configuration": number,
                    "settings": json.dumps(settings),
                    "seed": run.seed,
                    "mean_over_training": round(area(curve, run.steps), 4),
                    "success_after": round(curve[-1]["success"], 4),
                    **{cost: curve[-1][cost] for cost in COSTS},
                }
            )
        reached = statistics.fmean(row["mean_over_training"] for row in rows[-len(rests) :])
        print(f"{name}: {reached:.3f} with {settings}", flush=True)
        return reached

    reached = score(best)
    for coordinate, values in others:
        before = best
        for value in values:
            tried = {**before, coordinate: value}
            if (success := score(tried)) > reached:
                best, reached = tried, success
    return [{**row, "chosen": row["settings"] == json.dumps(best)} for row in rows]
