"""Cost of the critic for 20 rollouts on one core, by the gradient steps of a batch.

    python benchmarks/critic.py        writes results/critic.csv

The rollouts are those of the toy: half of them successes of 18 chunks, half failures of 64, states of 26 numbers. The
memory is full (240 rollouts). ``advantage`` gives a batch its credit, ``fit`` learns from it. Seconds are processor
time of one thread; the medians of 50 batches, with the trials interleaved.
"""

from __future__ import annotations

import time

import common
import torch
from common import CHUNKS, STATE, medians, synthetic_batch, write_csv
from tensordict import TensorDict

from pcm_rl.algos.critic import SuccessCritic

ROLLOUTS, MEMORY, REPEATS = 20, 240, 50
STEPS = {"toy's recipe": 5, "default": 15, "LIBERO": 24}


def main() -> None:
    torch.set_num_threads(1)
    common.TRAJECTORIES = ROLLOUTS
    batch = synthetic_batch(torch.tensor([18, CHUNKS] * (ROLLOUTS // 2)))
    critics = {name: full(steps, batch) for name, steps in STEPS.items()}
    trials = {name: lambda critic=critic: critic.fit(batch) for name, critic in critics.items()}
    first = next(iter(critics.values()))
    seconds = medians({**trials, "advantage": lambda: first.advantage(batch)}, repeats=REPEATS, clock=time.process_time)
    write_csv(
        "critic",
        [
            {
                "part": "fit" if name in STEPS else name,
                "settings": name if name in STEPS else "",
                "steps": STEPS.get(name, ""),
                "rollouts": ROLLOUTS,
                "rows": len(batch),
                "remembered_rows": len(first.memory),
                "ms": round(1e3 * value, 3),
            }
            for name, value in seconds.items()
        ],
    )


def full(steps: int, batch: TensorDict) -> SuccessCritic:
    """A critic whose memory is full of such batches."""
    critic = SuccessCritic(STATE, CHUNKS, memory=MEMORY, steps=steps)
    for _ in range(MEMORY // ROLLOUTS):
        critic.fit(batch)
    return critic


if __name__ == "__main__":
    main()
