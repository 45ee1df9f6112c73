"""How full a GPU is during rollouts of the 7B: a simulation of latencies, and a measurement of the collector itself.

    python benchmarks/filling.py simulate           writes results/filling.csv; a minute
    python benchmarks/filling.py measure            writes results/filling-measured.csv; a minute

``simulate`` plays 80 trajectories, half of 18 chunks and half of 64 in random order, from event to event. Workers take
the next trajectory as they become free. A chunk takes ``chunk_s`` seconds of a core, with a gamma distribution whose
deviation is a quarter of its mean, and a reset 1.4 times as much, as ``waiting-episodes.csv`` has it for LIBERO.
Workers share the cores equally, and one core is the policy's. A decision takes what ``decisions-7b-cuda.csv`` has for
as many rows on an H200, on straight lines between its numbers; with ``rollouts.decisions`` every one has that many.
While the policy decides nobody is listened to, as in the collector, and the rule is the collector's own
(``pcm_rl/rollouts/decisions.py``). Not in it: the seconds of the collector (0.1 ms a row), of copies, of tasks that a
worker builds for the first time. Means over three seeds. ``adapters`` are beside the weights, or merged into them.

``measure`` runs the collector on processes that sleep instead of simulating, with a policy that sleeps instead of
deciding, both for half of the simulated times: calls, rows a call and seconds (times two), and those of a simulation
with a core for everybody beside them. With ``--model 7b --device cuda`` the policy is the 7B with random weights, in
real time, and the file is ``filling-7b-cuda.csv``. ``none`` stands for ``rollouts.decisions=null``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import heapq
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import read_csv, write_csv
from gymnasium import spaces
from tensordict import TensorDictBase

from pcm_rl.envs import chunked_vector_env
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.decisions import AT_ONCE, Decisions, Queue

TRAJECTORIES, SHORT, LONG = 80, 18, 64  # half of the trajectories each, in chunks
SPREAD, RESET = 0.25, 1.4  # deviation of a chunk's seconds, and a reset, in chunks
SEEDS, WAITS = (0, 1, 2), (0.0, 0.01, 0.02, 0.05)
EVERYTHING = 1e-9  # seconds within which two events are one


@dataclass
class Simulators:
    """Workers that execute something; they share the cores equally.

    Everybody has the same speed at any moment, so a common clock of work runs at that speed, and whoever has ``work``
    to do is ready when that clock has moved on by as much.
    """

    cores: float
    now: float = 0.0
    _done: float = 0.0  # work of each that has been busy all the time
    _busy: list[tuple[float, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._busy)

    @property
    def _speed(self) -> float:
        return min(1.0, self.cores / max(1, len(self._busy)))

    def start(self, worker: int, work: float) -> None:
        """``worker`` has ``work`` seconds of a core to do."""
        heapq.heappush(self._busy, (self._done + work, worker))

    def next(self) -> float:
        """When the first of them is ready; inf where nobody is busy."""
        return self.now + (self._busy[0][0] - self._done) / self._speed if self._busy else math.inf

    def until(self, end: float) -> list[int]:
        """Those who are ready by ``end``, which is now from then on."""
        ready = []
        while self.next() <= end + EVERYTHING:
            self.now = self.next()
            self._done, worker = heapq.heappop(self._busy)
            ready.append(worker)
        if end > self.now and math.isfinite(end):
            self._done += (end - self.now) * self._speed
            self.now = end
        return ready


def simulate(
    lengths: Sequence[int],
    workers: int,
    decisions: Decisions,
    chunk_s: float,
    cores: float,
    seed: int,
    *,
    adapters: bool = True,
) -> dict[str, float]:
    """Seconds of the rollouts, share of them in which the policy decides, calls, and real rows of a call."""
    random = np.random.default_rng(seed)
    shape = 1 / SPREAD**2
    waiting, left = list(lengths[::-1]), [0] * workers  # chunks of whoever waits, and still to play for each worker
    simulators, queue = Simulators(cores), Queue[int, int](decisions)
    calls = rows = 0
    deciding = 0.0

    def work(chunks: float) -> float:
        return chunks * chunk_s * random.gamma(shape, 1 / shape)

    def begin(worker: int) -> None:
        if waiting:
            left[worker] = waiting.pop()
            simulators.start(worker, work(RESET))

    def hear(ready: list[int]) -> None:
        for worker in ready:
            if left[worker]:
                queue.add(worker, worker, simulators.now)
            else:
                begin(worker)

    for worker in range(workers):
        begin(worker)
    while simulators or queue:
        patience = queue.patience(simulators.now, len(simulators))
        end = simulators.next() if patience is None else min(simulators.next(), simulators.now + patience + EVERYTHING)
        if math.isfinite(end):
            hear(simulators.until(end))
        due = queue.take(simulators.now, len(simulators))
        if not due:
            continue
        seconds = decision_s(decisions.rows or len(due), adapters)
        calls, rows, deciding = calls + 1, rows + len(due), deciding + seconds
        answered = simulators.until(simulators.now + seconds)  # heard only now
        hear(answered)
        for worker in due:
            left[worker] -= 1
            simulators.start(worker, work(1))
    return {
        "seconds": simulators.now,
        "gpu_busy": deciding / simulators.now,
        "calls": calls,
        "rows_a_call": rows / calls,
    }


def decision_s(rows: int, adapters: bool = True) -> float:
    """Seconds of a decision of the 7B on an H200, with adapters beside the weights or merged into them."""
    mine = [row for row in MEASURED if row["adapters"] == ("True" if adapters else "merged")]
    measured = [(int(row["rows"]), float(row["decision_ms"]) / 1e3) for row in mine]
    return float(np.interp(rows, *zip(*measured, strict=True)))


MEASURED = read_csv("decisions-7b-cuda")


def trajectories(seed: int, number: int = TRAJECTORIES) -> list[int]:
    """Chunks of each."""
    return np.random.default_rng([seed, number]).permutation([SHORT, LONG] * (number // 2)).tolist()


def simulate_all() -> None:
    """The table of the simulated rollouts."""
    table: list[dict[str, object]] = []
    for adapters, cores, chunk_s in ((True, 16, 0.10), (True, 16, 0.26), (True, 48, 0.26), (False, 16, 0.10)):
        for workers in (8, 16, 32, 48, 64):
            fixed = [Decisions(rows, wait) for rows in (2, 4, 8, 16, 32) if rows <= workers for wait in WAITS]
            found = []
            for rule in (AT_ONCE, *fixed):
                trials = [
                    simulate(trajectories(seed), workers, rule, chunk_s, cores - 1, seed, adapters=adapters)
                    for seed in SEEDS
                ]
                mean = {key: statistics.mean(trial[key] for trial in trials) for key in trials[0]}
                found.append({"adapters": adapters} | row_of(rule, chunk_s, workers, cores) | rounded(mean))
            for row in (found[0], min(found[1:], key=lambda row: row["seconds"])):
                print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            table += found
    write_csv("filling", table, quiet=True)


def row_of(rule: Decisions, chunk_s: float, workers: int, cores: int) -> dict[str, object]:
    """The settings."""
    return {
        "cores": cores,
        "chunk_s": chunk_s,
        "workers": workers,
        "decisions": "none" if rule.rows is None else rule.rows,
        "wait_ms": round(rule.seconds * 1e3),
    }


def rounded(result: dict[str, float]) -> dict[str, object]:
    """As they stand in the tables."""
    return {
        "seconds": round(result["seconds"], 2),
        "gpu_busy": round(result["gpu_busy"], 3),
        "calls": round(result["calls"]),
        "rows_a_call": round(result["rows_a_call"], 2),
    }


# measured

FASTER = 2  # the sleep than what is simulated
LENGTH, DIMENSIONS = 8, 7


class Sleeper(gym.Env):
    """Sleeps for each chunk of eight steps; the initial state says after how many chunks it ends.

    Args:
        chunk_s: Mean seconds of a chunk.
        size: Of the images that it gives; None gives a number.
    """

    def __init__(self, chunk_s: float, size: int | None) -> None:
        self.chunk_s, self.gamma = chunk_s, 1 / SPREAD**2
        self.action_space = spaces.Box(-1, 1, (DIMENSIONS,), np.float32)
        self.observation_space = spaces.Box(0, LONG, (1,), np.float32)
        self.observation, self.info = np.zeros(1, np.float32), {}
        if size is not None:
            self.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (size, size, 3), np.uint8)})
            self.observation = {"image": np.zeros((size, size, 3), np.uint8)}
            self.info = {"instruction": "pick up the milk and place it in the basket"}

    def reset(self, *, seed=None, options=None):
        """A sleep."""
        self.random = np.random.default_rng(options["init_state"])
        self.steps, self.last = 0, options["init_state"] % 100 * LENGTH
        self._sleep(RESET)
        return self.observation, self.info

    def step(self, action):
        """A sleep, once a chunk."""
        self.steps += 1
        if self.steps % LENGTH == 0:
            self._sleep(1)
        return self.observation, 0.0, False, self.steps == self.last, {"success": False}

    def _sleep(self, chunks: float) -> None:
        time.sleep(chunks * self.chunk_s * self.random.gamma(self.gamma, 1 / self.gamma))


class SleepyPolicy:
    """Draws nothing, and sleeps as long as the 7B decides, divided by :data:`FASTER`."""

    in_keys = (("observation", "state"),)

    def seeded(self, seeds: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """Nothing."""
        return contextlib.nullcontext()

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """A sleep, and zeros."""
        time.sleep(decision_s(len(batch)) / FASTER)
        zeros = torch.zeros(len(batch), LENGTH, DIMENSIONS)
        batch["vla_action", "chunk"] = zeros
        batch["vla_action", "tokens"] = zeros.long()
        batch["vla_action", "log_probs"] = zeros
        return batch


class Watched:
    """Counts the decisions of a policy: its rows, without those that fill up, and its seconds until they are here."""

    def __init__(self, policy: Any) -> None:
        self.rows, self.seconds, self._seeded = list[int](), 0.0, policy.seeded
        policy.seeded = self.seeded

    @contextlib.contextmanager
    def seeded(self, seeds: Sequence[int]) -> Iterator[None]:
        """As the policy's; whoever fills up has the seed of another."""
        self.rows.append(len(set(seeds)))
        started = time.perf_counter()
        with self._seeded(seeds):
            yield
        self.seconds += time.perf_counter() - started


def measure(model: str, device: str, chunk_s: float, played: int) -> None:
    """The collector with a fixed number of rows and without, by the number of workers."""
    faster, size, policy = FASTER, None, SleepyPolicy()
    if model != "sleep":
        faster, policy = 1, real_policy(model, device)
        size = policy.checkpoint.sizes.image_size
    lengths = trajectories(0, played)
    states, table = torch.tensor([100 * i + length for i, length in enumerate(lengths)]), []
    context = "spawn" if device.startswith("cuda") else "fork"
    for workers, rows in ((8, None), (8, 4), (16, None), (16, 8), (32, None), (32, 16)):
        make = functools.partial(Sleeper, chunk_s / faster, size)
        env, rule = chunked_vector_env(make, workers, chunk_length=LENGTH, context=context), Decisions(rows)
        with contextlib.closing(env):
            for warm in (True, False):
                torch.manual_seed(0)
                usual, watched = policy.seeded, Watched(policy)
                started, mine = time.perf_counter(), states[: workers if warm else None]
                if warm:
                    mine = mine // 100 * 100 + 1  # one chunk each
                collect_episodes(
                    env, policy, mine, torch.arange(len(mine)), device=device, decisions=rule, same_starts=False
                )
                seconds, policy.seeded = time.perf_counter() - started, usual
        calls, real = len(watched.rows), sum(watched.rows)
        found = {
            "seconds": seconds * faster,
            "gpu_busy": watched.seconds / seconds,
            "calls": calls,
            "rows_a_call": real / calls,
        }
        expected = simulate(lengths, workers, rule, chunk_s, math.inf, 0)
        table.append(
            {"policy": model}
            | row_of(rule, chunk_s, workers, os.cpu_count() or 1)
            | {"trajectories": len(states)}
            | rounded(found)
            | {f"simulated_{key}": value for key, value in rounded(expected).items()}
        )
        print("  ".join(f"{key}={value}" for key, value in table[-1].items()), flush=True)
    name = "filling-measured" if model == "sleep" else f"filling-{model}-{device.split(':')[0]}"
    write_csv(name, table, quiet=True)


def real_policy(model: str, device: str) -> Any:
    """OpenVLA-OFT with random weights."""
    from random_openvla import build_policy

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        return build_policy(model, Path(folder) / "checkpoint", dtype, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulate", "measure"])
    parser.add_argument("--model", default="sleep", choices=["sleep", "tiny", "7b"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--chunk-s", type=float, default=0.10)
    parser.add_argument("--trajectories", type=int, default=32)
    options = parser.parse_args()
    if options.what == "simulate":
        simulate_all()
    else:
        measure(options.model, options.device, options.chunk_s, options.trajectories)


if __name__ == "__main__":
    main()
