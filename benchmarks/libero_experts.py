"""Success of the scripted LIBERO expert, from every initial state of every task that it is made for.

python benchmarks/libero_experts.py --suites libero_object libero_spatial libero_goal --workers 2
python benchmarks/libero_experts.py --noise 0.2 --states 10      noise on the arm, as in the recording of demonstrations

Writes benchmarks/results/libero_experts.csv, a row a task as soon as it is done; tasks that have one are not run again.
Steps are those of successful episodes. An episode ends at LIBERO's first success, or at the suite's horizon.
Each worker needs 1.5 GB.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import time
from pathlib import Path

import numpy as np
from common import RESULTS

from pcm_rl.envs.libero.env import LiberoEnv
from pcm_rl.envs.libero.expert import EXPERT_TASKS, LiberoExpert
from pcm_rl.reports.run_end import hardware

KEY = ("suite", "task_id", "states", "noise")
MEASURED = ("instruction", "successes", "failed_states", "mean_steps", "max_steps", "seconds", "hardware")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", choices=EXPERT_TASKS, default=list(EXPERT_TASKS))
    parser.add_argument("--states", type=int, default=50, help="initial states a task, from the first")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation on the six arm dimensions")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "libero_experts.csv")
    options = parser.parse_args()

    rows = _read(options.out)
    wanted = [(suite, task, options.states, options.noise) for suite in options.suites for task in EXPERT_TASKS[suite]]
    todo = [key for key in wanted if tuple(map(str, key)) not in rows]
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
        for row in pool.imap_unordered(measure, todo):
            rows[tuple(str(row[name]) for name in KEY)] = row
            _write(options.out, rows)
            _show(row)
    print(f"\n{options.out}")
    for row in rows.values():
        _show(row)


def measure(key: tuple[str, int, int, float]) -> dict[str, object]:
    """Runs one task, in a process of its own, which gives the simulator's memory back at its end."""
    suite, task_id, states, noise = key
    env = LiberoEnv(suite, task_id)
    start = time.perf_counter()
    steps = [episode(env, state, noise) for state in range(states)]
    seconds = time.perf_counter() - start
    env.close()
    solved = [number for number in steps if number]
    values = (
        env.instruction,
        len(solved),
        " ".join(str(state) for state, number in enumerate(steps) if not number),
        round(float(np.mean(solved)), 1) if solved else "",
        max(solved, default=""),
        round(seconds, 1),
        hardware(),
    )
    return {**dict(zip(KEY, key, strict=True)), **dict(zip(MEASURED, values, strict=True))}


def episode(env: LiberoEnv, init_state: int, noise: float) -> int:
    """Number of steps to the success, 0 if there was none."""
    expert, generator = LiberoExpert(env), np.random.default_rng(init_state)
    observation, _ = env.reset(options={"init_state": init_state})
    for step in range(1, env.horizon + 1):
        action = expert.action(observation)
        action[:6] += noise * generator.standard_normal(6).astype(np.float32)
        observation, _, terminated, _, _ = env.step(action)
        if terminated:
            return step
    return 0


def _read(path: Path) -> dict[tuple[str, ...], dict[str, object]]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {tuple(row[name] for name in KEY): dict(row) for row in csv.DictReader(file)}


def _write(path: Path, rows: dict[tuple[str, ...], dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*KEY, *MEASURED])
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def _show(row: dict[str, object]) -> None:
    print(
        f"{row['suite']:>15} {row['task_id']}  noise {row['noise']}  {row['successes']}/{row['states']}"
        f"  steps {row['mean_steps']} (most {row['max_steps']})  {row['instruction']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
