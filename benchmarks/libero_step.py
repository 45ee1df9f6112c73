"""A control step of LIBERO by `pcm_rl.envs.libero.physics` against robosuite's own, without cameras, in one process.

python benchmarks/libero_step.py          writes benchmarks/results/libero_step.csv

The expert's first 70 steps of `libero_object` task 0 (reach, close, carry), each repeat by one way and then the other;
the positions of everything in the scene must come out equal, bit for bit. Resets and settling are not timed.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from common import write_csv

from pcm_rl.envs.libero import env as libero
from pcm_rl.envs.libero import physics as libero_physics
from pcm_rl.envs.libero.env import LiberoEnv
from pcm_rl.envs.libero.expert import LiberoExpert

STEPS, REPEATS = 70, 6
WAYS = {
    "robosuite": lambda simulation, action: simulation.step(action),
    "pcm_rl": libero_physics.control_step,
}


def play(env: LiberoEnv, expert: LiberoExpert, init_state: int) -> tuple[float, np.ndarray]:
    """Steps a second, and the final positions."""
    observation, _ = env.reset(options={"init_state": init_state})
    start = time.perf_counter()
    for _ in range(STEPS):
        observation, *_ = env.step(expert.action(observation))
    return STEPS / (time.perf_counter() - start), env.simulation.sim.data.qpos.copy()


def main() -> None:
    env = LiberoEnv("libero_object", 0)
    expert = LiberoExpert(env)
    speeds: dict[str, list[float]] = {name: [] for name in WAYS}
    for repeat in range(REPEATS + 1):
        positions = []
        for name, way in WAYS.items():
            libero.control_step = way
            speed, where = play(env, expert, repeat)
            positions.append(where)
            if repeat:  # the first is a warm-up
                speeds[name].append(speed)
        if not np.array_equal(*positions):
            raise SystemExit(f"initial state {repeat}: the two ways part")
    base = statistics.median(speeds["robosuite"])
    write_csv(
        "libero_step",
        [
            {"way": name, "steps_per_s": round(statistics.median(mine), 1),
             "ratio": round(statistics.median(mine) / base, 2), "repeats": REPEATS}
            for name, mine in speeds.items()
        ],
    )  # fmt: skip
    env.close()


if __name__ == "__main__":
    main()
