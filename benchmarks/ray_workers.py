r"""Chunks a second of environments as Ray actors, against local workers; equal rows are asserted.

python benchmarks/ray_workers.py                         the toy: its state alone, and with an image of 224 x 224 x 3
python benchmarks/ray_workers.py --tasks libero          LIBERO with states (pcm_rl[libero])

Needs pcm_rl[ray]. The actors run on this machine, so this is what Ray's messages cost without a network between. Each
trial plays the same episodes of a policy with random weights on two environments that are built already. Trials of a
repeat follow each other; `ratio` is the median over repeats of the ratio to local workers in the same repeat. Writes
benchmarks/results/ray_workers.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import write_csv
from gymnasium.vector import VectorEnv
from tensordict import TensorDict

import pcm_rl.envs  # noqa: F401 - registers the ids
from pcm_rl.envs import RayCluster, chunked_vector_env
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.collect import collect_episodes

TASKS = ("state", "image", "libero")
VARIANTS = {"local workers": True, "Ray actors": RayCluster()}
WORKERS, GROUPS = 2, torch.arange(12) // 4


class WithImage(gym.Wrapper):
    """Adds a camera's image, of which only one number changes."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        image = gym.spaces.Box(0, 255, (224, 224, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({"state": env.observation_space, "image": image})
        self._image = np.zeros(image.shape, np.uint8)

    def reset(self, **options: Any) -> Any:
        """The state, and an image."""
        state, info = self.env.reset(**options)
        return {"state": state, "image": self._image}, info

    def step(self, action: Any) -> Any:
        """The next state, and the next image."""
        state, *rest = self.env.step(action)
        self._image[0, 0, 0] ^= 1
        return {"state": state, "image": self._image}, *rest


def robot(task: str) -> gym.Env:
    if task == "libero":
        return gym.make("pcm_rl/Libero-v0", disable_env_checker=True, suite="libero_object", task_id=0, horizon=64)
    env = gym.make("pcm_rl/Reach-v0", disable_env_checker=True, horizon=256)
    return env if task == "state" else WithImage(env)


def played(env: VectorEnv, policy: StateTokenPolicy) -> tuple[float, TensorDict]:
    torch.manual_seed(1)
    started = time.perf_counter()
    rows = collect_episodes(env, policy, GROUPS, GROUPS)
    return len(rows) / (time.perf_counter() - started), rows


def measured(task: str, repeats: int) -> list[dict[str, object]]:
    with contextlib.ExitStack() as stack:
        envs = {}
        for name, workers in VARIANTS.items():
            env = chunked_vector_env(functools.partial(robot, task), WORKERS, workers=workers)
            envs[name] = stack.enter_context(contextlib.closing(env))
        torch.manual_seed(0)
        space = envs["local workers"].single_observation_space
        policy = StateTokenPolicy((space["state"] if task == "image" else space).shape[0], width=64)
        warm = [played(env, policy)[1] for env in envs.values()]
        assert bool((warm[0]["vla_action", "tokens"] == warm[1]["vla_action", "tokens"]).all())
        speeds = {name: [] for name in envs}
        for _ in range(repeats):
            for name, env in envs.items():
                speeds[name].append(played(env, policy)[0])
    local = speeds["local workers"]
    return [
        {
            "task": task,
            "variant": name,
            "chunks_per_s": round(statistics.median(mine), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(mine, local, strict=True)), 3),
            "slowest": round(min(mine), 1),
            "fastest": round(max(mine), 1),
            "environments": WORKERS,
            "repeats": repeats,
        }
        for name, mine in speeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["state", "image"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="ray_workers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    write_csv(options.name, [row for task in options.tasks for row in measured(task, options.repeats)])


if __name__ == "__main__":
    main()
