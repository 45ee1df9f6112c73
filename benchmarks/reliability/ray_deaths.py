"""Collections on a Ray cluster of two nodes on this machine, in which actors or a whole node die at random moments.

python benchmarks/reliability/ray_deaths.py --trials 12      needs pcm_rl[ray]; some minutes

Each trial plays the same episodes on two actors. At a call of the policy drawn by the seed of the trial a deed is done:
`kill -9` of an actor's process, `ray.kill` of an actor, or SIGKILL of a node's raylet and of its actor. The rows must
equal those of local workers. After a node has died a new one is added. Writes
benchmarks/results/reliability-ray_deaths.csv, one row a trial.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import ray
import torch
from ray.cluster_utils import Cluster
from runs import record, trials_done
from tensordict import TensorDict

from pcm_rl.envs import RayCluster, WorkerVectorEnv, chunked_vector_env
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.rollouts.collect import collect_episodes

HEARS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
GROUPS = torch.arange(12) // 4
CALLS = 12 * 12  # chunks of all episodes, where none succeeds
DEEDS = ("kill -9", "ray.kill", "node")


def reach() -> gym.Env:
    return gym.make("pcm_rl/Reach-v0", disable_env_checker=True, horizon=96)


class Disturbed:
    """A policy that does a deed at one of its calls."""

    def __init__(self, policy: StateTokenPolicy, at: int, deed: Callable[[], object]) -> None:
        self.policy, self.at, self.deed, self.calls = policy, at, deed, 0

    def __call__(self, rows: TensorDict) -> TensorDict:
        """Acts as the policy does."""
        if self.calls == self.at:
            self.deed()
        self.calls += 1
        return self.policy(rows)


def collected(env: gym.vector.VectorEnv, policy: Any) -> TensorDict:
    torch.manual_seed(1)
    return collect_episodes(env, policy, GROUPS, GROUPS)


def where(handle: Any) -> tuple[int, int]:
    """Number of an actor's process, and of its node's raylet."""
    return ray.get(handle.__ray_call__.remote(lambda _: (os.getpid(), int(os.environ["RAY_RAYLET_PID"]))))


def done(deed: str, env: WorkerVectorEnv, worker: int) -> None:
    handle = env._workers[worker].link._handle
    if deed == "ray.kill":
        ray.kill(handle)
        return
    process, raylet = where(handle)
    if deed == "node":
        os.kill(raylet, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)


def trial(number: int, cluster: Cluster, env: WorkerVectorEnv, policy: StateTokenPolicy, expected: TensorDict) -> None:
    draw = random.Random(number)
    deed, worker, at = DEEDS[number % len(DEEDS)], draw.randrange(2), draw.randrange(CALLS // 2)
    restarts, started, failed, equal = env.restarts, time.monotonic(), "", False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of episodes that are played again
            rows = collected(env, Disturbed(policy, at, lambda: done(deed, env, worker)))
        equal = len(rows) == len(expected) and bool((rows == expected).all())
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    seconds = round(time.monotonic() - started, 2)
    if deed == "node":
        cluster.add_node(num_cpus=2)
    while len(env.free) < 2:
        env.wait()
    row = {"trial": number, "seed": number, "deed": deed, "worker": worker, "call": at, "seconds": seconds}
    record("ray_deaths", {**row, "restarts": env.restarts - restarts, "equal": equal, "failed": failed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.closing(chunked_vector_env(reach, 2)) as env:
        policy = StateTokenPolicy(env.single_observation_space.shape[0], width=16)
        expected = collected(env, policy)
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEARS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        with contextlib.closing(chunked_vector_env(reach, 2, workers=RayCluster(cluster.address))) as env:
            for number in range(trials_done("ray_deaths"), options.trials):
                trial(number, cluster, env, policy, expected)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
