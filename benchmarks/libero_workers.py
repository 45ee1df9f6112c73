r"""Steps a second of LIBERO in worker processes, against one process and against Gymnasium's AsyncVectorEnv.

python benchmarks/libero_workers.py                          writes benchmarks/results/libero_workers.csv
python benchmarks/libero_workers.py --views egl osmesa --variants "one process" "workers 2" --repeats 2 \
    --name libero_workers_cameras                            with two cameras of 224 x 224, rendered in software

Every trial is a process of its own, because MuJoCo's renderer is chosen at import. It builds its simulators, plays a
few chunks to warm up, and is timed over 12 episodes of 128 steps of a policy with random weights, resets included. The
episodes have one length, the best case for environments that go in step. Trials of one repeat follow each other, so
that whatever else the machine does hits all alike; `ratio` is the median over repeats of the ratio to the first variant
in the same repeat.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time

import gymnasium as gym
import torch
from common import write_csv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.algos import collect_episodes
from pcm_rl.envs import ChunkedEnv, VectorMember, chunked_vector_env
from pcm_rl.episodes import IS_PAD
from pcm_rl.policies import StateTokenPolicy

LENGTH, HORIZON, EPISODES, CAMERA_SIZE = 8, 128, 12, 224
VARIANTS = ("one process", "workers 1", "workers 2", "workers 3", "AsyncVectorEnv 2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", nargs="+", default=["state"], choices=["state", "egl", "osmesa"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="libero_workers", help="of the CSV")
    parser.add_argument("--trial", nargs=2, metavar=("VIEW", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trial:
        print(json.dumps(trial(*args.trial)))
        return
    rows = []
    for view in args.views:
        speeds: dict[str, list[float]] = {variant: [] for variant in args.variants}
        for _ in range(args.repeats):
            for variant in args.variants:
                speeds[variant].append(in_a_process(view, variant))
                print(
                    f"{view}, {variant}: {speeds[variant][-1]:.1f} steps/s, load {os.getloadavg()[0]:.1f}", flush=True
                )
        for variant, mine in speeds.items():
            ratio = statistics.median(a / b for a, b in zip(mine, speeds[args.variants[0]], strict=True))
            rows.append(
                {
                    "view": view,
                    "variant": variant,
                    "steps_per_s": round(statistics.median(mine), 1),
                    "ratio": round(ratio, 2),
                    "slowest": round(min(mine), 1),
                    "fastest": round(max(mine), 1),
                    "repeats": args.repeats,
                }
            )
    write_csv(args.name, rows)


def in_a_process(view: str, variant: str) -> float:
    gl = "egl" if view == "state" else view
    done = subprocess.run(
        [sys.executable, __file__, "--trial", view, variant],
        env={**os.environ, "MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def trial(view: str, variant: str) -> float:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    env = vector_env(functools.partial(robot, view), variant)
    space = env.single_observation_space
    policy = StateTokenPolicy((space if view == "state" else space["proprio"]).shape[0], width=256)
    states = torch.arange(EPISODES)
    collect = functools.partial(collect_episodes, env, policy)
    collect(states[: env.num_envs], states[: env.num_envs])
    start = time.perf_counter()
    rows = collect(states, states)
    seconds = time.perf_counter() - start
    env.close()
    return int((~rows[IS_PAD]).sum()) / seconds


def vector_env(make: functools.partial, variant: str) -> VectorEnv:
    if variant == "one process":
        return chunked_vector_env(make, 1, chunk_length=LENGTH, workers=False)
    kind, number = variant.split()
    if kind == "workers":
        return chunked_vector_env(make, int(number), chunk_length=LENGTH)
    makers = [functools.partial(member, make, index) for index in range(int(number))]
    return AsyncVectorEnv(makers, context="spawn", autoreset_mode=AutoresetMode.DISABLED)


def member(make: functools.partial, index: int) -> VectorMember:
    torch.set_num_threads(1)
    return VectorMember(ChunkedEnv(make(), LENGTH, record=False), index)


def robot(view: str) -> gym.Env:
    seen = {} if view == "state" else {"observation": "pixels", "camera_size": CAMERA_SIZE}
    return gym.make("pcm_rl/Libero-v0", disable_env_checker=True, horizon=HORIZON, **seen)


if __name__ == "__main__":
    main()
