"""Cost of choosing chunks on one core.

    python benchmarks/selection.py        writes results/selection.csv and results/selection-size.csv

``selection.csv``: labels, C, keep probabilities, sampling and gather for 80 x 64 chunks, beside an update of the toy's
policy, and the checks of a batch alone. ``selection-size.csv``: ``select_chunks`` by the number of trajectories of 64
chunks, and ``inclusion_probabilities`` of one trajectory of N chunks, for weights of five phases, for N different ones,
and for two sizes that are 1e600 apart. Seconds are processor time of one thread.
"""

from __future__ import annotations

import time

import common
import torch
from common import CHUNKS, TRAJECTORIES, medians, synthetic_batch, write_csv

from pcm_rl import KeepProbabilities, inclusion_probabilities, select_chunks
from pcm_rl.algos import LabelPhases, PCMSampler
from pcm_rl.algos.update import grpo_update
from pcm_rl.config import Config
from pcm_rl.episodes import EPISODE, EpisodeIndex, check_batch, check_order
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.training.grpo import make_loss


def main() -> None:
    torch.set_num_threads(1)
    batch = synthetic_batch(torch.full((TRAJECTORIES,), CHUNKS))
    sampler, labels = PCMSampler(12), LabelPhases()
    policy = StateTokenPolicy(26)
    loss = make_loss(policy, Config().update)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    kept = sampler(batch)

    def choose() -> object:
        return sampler(labels(batch))

    index = EpisodeIndex(batch[EPISODE])

    def check() -> None:
        check_batch(batch)
        check_order(batch, index)

    trials = {"checks": check, "labels": lambda: labels(batch), "select_and_gather": lambda: sampler(batch)}
    seconds = medians({**trials, "all": choose}, repeats=50, clock=time.process_time)
    seconds |= medians({"update": lambda: grpo_update(loss, optimizer, kept)}, repeats=5, clock=time.process_time)
    rows = [
        {"part": part, "ms": round(1e3 * s, 3), "rows": len(batch), "kept": len(kept)} for part, s in seconds.items()
    ]
    for row, s in zip(rows, seconds.values(), strict=True):
        row["share_of_update"] = round(s / seconds["update"], 4)
    write_csv("selection", rows)
    write_csv("selection-size", [*by_trajectories(), *by_chunks()])


def by_trajectories() -> list[dict[str, object]]:
    """``select_chunks`` of batches that differ in the number of trajectories."""
    trials = {}
    for number in (80, 512, 2048, 8192):
        common.TRAJECTORIES = number
        batch = synthetic_batch(torch.full((number,), CHUNKS)).exclude("observation")
        trials[str(number)] = lambda batch=batch: select_chunks(batch, KeepProbabilities(), budget=12)
    seconds = medians(trials, repeats=9, clock=time.process_time)
    return [
        {"part": "select_chunks", "size": int(number), "budget": 12, "weights": "pcm", "ms": round(1e3 * value, 3)}
        for number, value in seconds.items()
    ]


def by_chunks() -> list[dict[str, object]]:
    """``inclusion_probabilities`` of one trajectory."""
    rows: list[dict[str, object]] = []
    for size in (64, 128, 512):
        generator = torch.Generator().manual_seed(0)
        phases = torch.tensor([1.0, 0.5, 0.1, 0.1, 0.3], dtype=torch.float64)
        kinds = {
            "five phases": phases[torch.randint(5, (size,), generator=generator)],
            "all different": torch.rand(size, generator=generator, dtype=torch.float64) + 0.1,
            "1e-300 and 1e300": 10.0 ** torch.where(torch.arange(size) % 2 == 0, -300.0, 300.0).double(),
        }
        for budget in (12, size // 4, size // 2):
            for kind, weight in kinds.items():
                seconds = medians(
                    {"it": lambda w=weight, b=budget: inclusion_probabilities(w, b)}, repeats=3, clock=time.process_time
                )
                rows.append(
                    {"part": "inclusion_probabilities", "size": size, "budget": budget, "weights": kind}
                    | {"ms": round(1e3 * seconds["it"], 3)}
                )
    return rows


if __name__ == "__main__":
    main()
