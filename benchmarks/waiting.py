r"""How much of their time LIBERO's worker processes wait, and what environments that never wait could gain.

    MUJOCO_GL=osmesa python benchmarks/waiting.py measure --policy runs/recorded-batches/libero-1/policy-0.safetensors
    python benchmarks/waiting.py simulate

``measure`` trains on the first task of LIBERO-Object (settings of ``comparisons.sh libero``, ``top-critic-3``, two
workers, 16 and 32 rollouts a step) and has every worker log when its resets and control steps begin and end. A worker's
time in a training step is: playing; waiting for a decision (also for the answer to a reset); the tail, after its last
episode until the slowest worker has ended its own; and selection with the update. ``waiting.csv`` has a row a training
step, by the clock and with the machine's load; ``waiting-episodes.csv`` has a row an episode, in processor seconds.

``simulate`` plays steps of more workers and rollouts with eights of consecutive episodes drawn from these: workers take
the next episode as they become free, one process decides for them one after the other, and then learns. Every worker
has a core of its own. A decision takes the processor seconds of the deciding process over its decisions; selection with
the update takes what it took by the clock. With ``horizon`` 200 failures have nine more chunks, as in the recipe.
``waiting-simulated.csv`` has the shares and ``gain``, how much faster a step would be without its tail: an upper bound
of what fragments (environments that are always busy, and a value where they are cut) can gain by the second if they
learn no worse from each rollout.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from common import read_csv, write_csv
from recorded_batches import TASKS

from pcm_rl.training.trainer import Trainer

LENGTH, HORIZON, LONGER = 8, 16, 25  # steps of a chunk, chunks of a failure, and with the recipe's horizon
ROLLOUTS, STEPS = (16, 32), 2
TRIALS = 400


class Logged(gym.Wrapper):
    """Appends kind, begin, end (one clock for all processes) and processor seconds of every reset and step."""

    def __init__(self, env: gym.Env, folder: str) -> None:
        super().__init__(env)
        self._path = Path(folder) / f"{os.getpid()}.csv"

    def reset(self, **kwargs: Any) -> Any:
        """As the environment's."""
        return self._logged("reset", lambda: self.env.reset(**kwargs))

    def step(self, action: Any) -> Any:
        """As the environment's."""
        return self._logged("step", lambda: self.env.step(action))

    def _logged(self, kind: str, call: Any) -> Any:
        start, spent = time.monotonic(), time.process_time()
        result = call()
        with self._path.open("a") as file:
            file.write(f"{kind},{start},{time.monotonic()},{time.process_time() - spent}\n")
        return result


@dataclass
class Piece:
    """A reset or a chunk that a worker has played: when, and in how many processor seconds."""

    reset: bool
    start: float
    end: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "simulate"])
    parser.add_argument("--policy", help="its weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options.policy) if options.what == "measure" else simulate_all()


# measured


def measure(policy: str) -> None:
    """Both tables of the real runs."""
    rows, episodes = [], []
    for rollouts in ROLLOUTS:
        with tempfile.TemporaryDirectory() as folder:
            task = TASKS["libero"].config(
                1, "env.num_envs=2", f"policy.init={policy}", f"groups={rollouts // 8}", "selection.name=top-advantage",
                "selection.budget=3", "advantage.name=critic",
                f"env.wrappers=[{{name: 'waiting:Logged', kwargs: {{folder: {folder}}}}}]",
            )  # fmt: skip
            steps = train(task)
            workers = [pieces(path) for path in sorted(Path(folder).glob("*.csv"))]
        rows += [{"rollouts": rollouts, "workers": len(workers), **step_row(step, workers)} for step in steps]
        episodes += [{"rollouts": rollouts, **row} for worker in workers for row in episode_rows(worker)]
    write_csv("waiting-episodes", episodes, quiet=True)
    write_csv("waiting", rows)


def train(config: Any) -> list[dict[str, float]]:
    """Begin, end of the rollouts and end of every training step, and the processor seconds of this process."""
    trainer = Trainer(config, say=lambda line: None)
    trainer.probed = True
    steps = []
    try:
        for _ in range(STEPS):
            begin, spent = time.monotonic(), time.process_time()
            metrics = trainer.train_step()
            steps.append({"begin": begin, "collected": begin + metrics["rollout_s"], "end": time.monotonic(),
                          "processor_s": time.process_time() - spent})  # fmt: skip
    finally:
        trainer.env.close()
    return steps


def pieces(path: Path) -> list[Piece]:
    """Resets and chunks of one worker; a chunk is up to eight steps since the reset."""
    found: list[Piece] = []
    steps = 0
    with path.open() as file:
        for kind, *numbers in csv.reader(file):
            start, end, seconds = map(float, numbers)
            if kind == "reset" or steps % LENGTH == 0:
                found.append(Piece(kind == "reset", start, end, seconds))
            else:
                found[-1].end, found[-1].seconds = end, found[-1].seconds + seconds
            steps = 0 if kind == "reset" else steps + 1
    return found


def step_row(step: dict[str, float], workers: Sequence[Sequence[Piece]]) -> dict[str, object]:
    """Where the workers' time of a training step went, as shares of it."""
    begin, collected, end = step["begin"], step["collected"], step["end"]
    whole = len(workers) * (end - begin)
    mine = [[piece for piece in worker if begin <= piece.start < collected] for worker in workers]
    playing = sum(piece.end - piece.start for worker in mine for piece in worker)
    tail = sum(collected - max((piece.end for piece in worker), default=begin) for worker in mine)
    learning = len(workers) * (end - collected)
    return {
        "seconds": round(end - begin, 2),
        "playing": round(playing / whole, 4),
        "decisions": round((whole - playing - tail - learning) / whole, 4),
        "tail": round(tail / whole, 4),
        "selection and update": round(learning / whole, 4),
        "decided": sum(len(worker) for worker in mine),
        "parent_processor_s": round(step["processor_s"], 3),
        "worker_processor_s": round(sum(piece.seconds for worker in mine for piece in worker), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def episode_rows(worker: Iterable[Piece]) -> Iterator[dict[str, object]]:
    """A row an episode: processor seconds of its reset and of each of its chunks."""
    episodes: list[list[float]] = []
    for piece in worker:
        if piece.reset:
            episodes.append([])
        episodes[-1].append(piece.seconds)
    for reset, *chunks in episodes:
        if chunks:
            yield {"reset_s": round(reset, 4), "chunks": len(chunks),
                   "chunk_s": " ".join(f"{seconds:.4f}" for seconds in chunks)}  # fmt: skip


# simulated


def simulate_all() -> None:
    """The table of the simulated steps."""
    episodes = [[float(row["reset_s"]), *map(float, row["chunk_s"].split())] for row in read_csv("waiting-episodes")]
    measured = read_csv("waiting")
    learn = statistics.median(
        float(row["seconds"]) * float(row["selection and update"]) for row in measured if row["rollouts"] == "32"
    )
    decide = statistics.median(float(row["parent_processor_s"]) / float(row["decided"]) for row in measured)
    rows = []
    for horizon in (HORIZON, LONGER):
        lengthened = [longer(episode, horizon) for episode in episodes]
        for workers in (2, 4, 8, 16, 32):
            for rollouts in (16, 32, 64):
                if rollouts < workers:
                    continue  # workers without any episode
                row = {"horizon": horizon * LENGTH, "workers": workers, "rollouts": rollouts}
                rows.append(row | shares(lengthened, workers, rollouts, decide, learn * rollouts / 32))
    write_csv("waiting-simulated", rows)


def longer(episode: list[float], chunks: int) -> list[float]:
    """A failure, which has as many chunks as there may be, with its last chunks once more."""
    missing = chunks - HORIZON if len(episode) - 1 == HORIZON else 0
    return episode + episode[len(episode) - missing :]


def shares(
    episodes: Sequence[Sequence[float]], workers: int, rollouts: int, decide: float, learn: float
) -> dict[str, object]:
    """Means over trials of where the workers' time goes, and the gain without the tail."""
    source = random.Random(0)
    total: dict[str, float] = defaultdict(float)
    for _ in range(TRIALS):
        first = [source.randrange(len(episodes) // 8) * 8 for _ in range(rollouts // 8)]
        played = [episodes[k] for start in first for k in range(start, start + 8)]
        seconds, tail = simulate(played, workers, decide)
        total["seconds"] += seconds + learn
        total["playing"] += sum(map(sum, played)) / workers
        total["tail"] += tail / workers
        total["selection and update"] += learn
    total["decisions"] = total["seconds"] - total["playing"] - total["tail"] - total["selection and update"]
    names = ("playing", "decisions", "tail", "selection and update")
    return {
        "seconds": round(total["seconds"] / TRIALS, 2),
        **{name: round(total[name] / total["seconds"], 4) for name in names},
        "gain": round(total["seconds"] / (total["seconds"] - total["tail"]), 3),
    }


def simulate(episodes: Sequence[Sequence[float]], workers: int, decide: float) -> tuple[float, float]:
    """Seconds until the last episode has ended, and the sum over workers of the time after their last one.

    Args:
        episodes: Seconds of the reset and of every chunk.
        workers: Each plays one episode at a time.
        decide: Seconds of a decision; one at a time, in the order of the answers.
    """
    waiting = list(reversed(episodes))
    ended = [0.0] * workers
    answers: list[tuple[float, int, list[float]]] = []  # when, of which worker, what it has still to play
    for worker in range(min(workers, len(episodes))):
        reset, *chunks = waiting.pop()
        heapq.heappush(answers, (reset, worker, chunks))
    free = 0.0  # when the process that decides is free
    while answers:
        now, worker, left = heapq.heappop(answers)
        if left:
            free = max(free, now) + decide
            heapq.heappush(answers, (free + left[0], worker, left[1:]))
        else:
            ended[worker] = now
            if waiting:
                reset, *chunks = waiting.pop()
                heapq.heappush(answers, (now + reset, worker, chunks))
    last = max(ended)
    return last, sum(last - end for end in ended)


if __name__ == "__main__":
    main()
