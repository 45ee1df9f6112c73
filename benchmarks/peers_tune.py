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
from peers_summary import area


class Search(NamedTuple):
    """What is searched for one peer.

    Attributes:
        kind: What makes the peer.
        start: Settings of the first configuration.
        others: Each coordinate's other values, in the order in which they are tried.
    """

    kind: str
    start: dict[str, Any]
    others: dict[str, list[Any]]


PPO = {"lr": 3e-4, "epochs": 10, "length": 32, "batch": 256, "warmup": 0}
PPO_OTHERS: dict[str, list[Any]] = {
    "warmup": [1], "lr": [1e-4, 1e-3], "length": [8, 16], "epochs": [4], "batch": [64],
}  # fmt: skip
SRPO = {"method": "full-valid", "advantage.name": "peers_srpo:Progress", "advantage.options.most": 0.6}
SEARCHES = {
    "sb3-ppo": Search("sb3", {"tokens": True, "start": True, **PPO}, PPO_OTHERS),
    "torchrl-ppo": Search("torchrl_ppo", PPO, PPO_OTHERS),
    "vla-grpo": Search(
        "vla_grpo",
        {"lr": 3e-4, "decisions": 64, "groups": 8, "ratio": "token"},
        {"decisions": [256, 1024], "lr": [1e-4, 1e-3], "groups": [4, 2], "ratio": ["chunk"]},
    ),
    "srpo-like": Search(
        "ours",
        {**SRPO, "update.lr": 3e-4, "groups": 8, "update.epochs": 1, "advantage.options.frames": 8},
        {
            "update.lr": [6e-4, 1e-3],
            "groups": [4, 2],
            "update.epochs": [2],
            "advantage.options.most": [0.3],
            "advantage.options.frames": [2],
        },
    ),
}
CHOSEN: dict[str, dict[str, Any]] = {name: search.start for name, search in SEARCHES.items()}


def tune(
    names: Sequence[str], seeds: Sequence[int], steps: int, every: int, work: Path, make: Callable[[Run], Peer]
) -> list[Row]:
    """Search for each peer; a row for each configuration and seed.

    Args:
        names: Of :data:`SEARCHES`.
        seeds: Tuning seeds.
        steps: Environment steps of a run.
        every: Environment steps between two evaluations.
        work: Folder that keeps the runs.
        make: Gives a peer at its start.
    """
    return [row for name in names for row in _search(name, list(seeds), steps, every, work, make)]


def _search(
    name: str, seeds: list[int], steps: int, every: int, work: Path, make: Callable[[Run], Peer]
) -> list[Row]:
    kind, best, others = SEARCHES[name]
    rows: list[Row] = []
    scores: dict[str, float] = {}

    def score(settings: dict[str, Any]) -> float:
        told = json.dumps(settings)
        runs = [Run(name, kind, settings, seed, steps, every).rows(work, make) for seed in seeds]
        areas = [area(run, steps) for run in runs]
        for seed, run, mean in zip(seeds, runs, areas, strict=True):
            ends = {key: run[-1][key] for key in ("env_steps", "chunks", "seconds")}
            rows.append({"peer": name, "configuration": len(scores), "settings": told, "seed": seed,
                         "mean_over_training": round(mean, 4), "success_after": round(run[-1]["success"], 4),
                         **ends})  # fmt: skip
        scores[told] = statistics.fmean(areas)
        print(f"{name}: {scores[told]:.3f} with {told}", flush=True)
        return scores[told]

    reached = score(best)
    for coordinate, values in others.items():
        start = best
        for value in values:
            tried = {**start, coordinate: value}
            if (success := score(tried)) > reached:
                best, reached = tried, success
    chosen = json.dumps(best)
    return [{**row, "chosen": row["settings"] == chosen} for row in rows]
