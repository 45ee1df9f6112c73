"""Steps a second of the toy environment on one core, a batch of 80.

python benchmarks/toy_env.py        writes benchmarks/results/toy_env.csv
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from common import medians, write_csv

import pcm_rl.envs  # noqa: F401 - registers the ids


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for task in ("pcm_rl/PickPlace-v0", "pcm_rl/Reach-v0"):
        for number in (1, 80):
            env = gym.make_vec(
                task, number, vectorization_mode="vector_entry_point", chunk_length=8, stop_on_success=False
            )
            actions = np.random.default_rng(0).uniform(-1, 1, (64, number, 8, 7)).astype(np.float32)

            def episode(env=env, actions=actions) -> None:
                env.reset(seed=0)
                for chunk in actions:
                    env.step(chunk)

            seconds = medians({"episode": episode}, repeats=5)["episode"]
            rows.append({"env": task, "num_envs": number, "steps_per_s": round(512 * number / seconds)})
    write_csv("toy_env", rows)


if __name__ == "__main__":
    main()
