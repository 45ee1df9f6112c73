"""Cost of choosing chunks: labels, C, keep probabilities, sampling and gather for 80 x 64 chunks on one core.

python benchmarks/selection.py        writes benchmarks/results/selection.csv
"""

from __future__ import annotations

import torch
from common import CHUNKS, TRAJECTORIES, medians, synthetic_batch, write_csv

from pcm_rl.algos import LabelPhases, PCMSampler
from pcm_rl.algos.update import grpo_update
from pcm_rl.config import Config
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

    seconds = medians(
        {"labels": lambda: labels(batch), "select_and_gather": lambda: sampler(batch), "all": choose}, repeats=50
    )
    seconds |= medians({"update": lambda: grpo_update(loss, optimizer, kept)}, repeats=5)
    rows = [
        {"part": part, "ms": round(1e3 * s, 3), "rows": len(batch), "kept": len(kept)} for part, s in seconds.items()
    ]
    for row, s in zip(rows, seconds.values(), strict=True):
        row["share_of_update"] = round(s / seconds["update"], 4)
    write_csv("selection", rows)


if __name__ == "__main__":
    main()
