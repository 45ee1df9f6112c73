"""What the benchmarks share: a synthetic batch of the paper's size, CSV with hardware, interleaved trials."""

from __future__ import annotations

import csv
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from tensordict import TensorDict

from pcm_rl import group_advantage
from pcm_rl.compare.plan import column_name
from pcm_rl.episodes import label_episodes
from pcm_rl.reports.run_end import hardware

RESULTS = Path(__file__).parent / "results"
WRITTEN = Path(os.environ.get("PCM_RL_RESULTS", RESULTS))  # a rehearsal writes elsewhere, and reads what was measured
PHASES_DRAWN = ("clean", "few", "metaworld", "libero")  # comparisons whose steps a figure draws, phase by phase
TRAJECTORIES, CHUNKS, LENGTH, DIMENSIONS, BINS, STATE = 80, 64, 8, 7, 16, 26


def synthetic_batch(lengths: torch.Tensor, seed: int = 0) -> TensorDict:
    """8 groups x 10 rollouts of the given lengths (chunks), half of each group successful, with grasps."""
    generator = torch.Generator().manual_seed(seed)
    episode = torch.arange(TRAJECTORIES).repeat_interleave(lengths)
    chunk_id = torch.cat([torch.arange(n) for n in lengths.tolist()])
    rows = len(episode)
    group = torch.arange(TRAJECTORIES) // 10
    success = torch.arange(TRAJECTORIES) % 2 == 0
    chunk = torch.rand(rows, LENGTH, DIMENSIONS, generator=generator) * 2 - 1
    grasped = (chunk_id > lengths[episode] // 3) & (chunk_id < lengths[episode] * 2 // 3)
    chunk[..., -1] = torch.where(grasped, 1.0, -1.0).unsqueeze(-1)
    batch = TensorDict(
        {
            ("observation", "state"): torch.randn(rows, STATE, generator=generator),
            ("vla_action", "chunk"): chunk,
            ("vla_action", "tokens"): torch.randint(BINS, (rows, LENGTH, DIMENSIONS), generator=generator),
            ("vla_action", "log_probs"): torch.full((rows, LENGTH, DIMENSIONS), -2.8),
            "action_is_pad": torch.zeros(rows, LENGTH, dtype=torch.bool),
            "success": success[episode],
            "group_id": group[episode],
            "episode_id": episode,
            "chunk_id": chunk_id,
            "advantage": group_advantage(success, group)[episode],
        },
        batch_size=[rows],
    )
    batch["phase"] = label_episodes(batch)
    return batch


def medians(
    trials: dict[str, Callable[[], object]],
    repeats: int,
    *,
    twice: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each trial after one warm-up, trials interleaved so that drift hits all alike.

    Args:
        trials: What to time.
        repeats: Timed rounds.
        twice: Do every trial twice in a row and time the second: a trial then finds the memory that it needs itself,
            not what a larger or smaller one has left.
        clock: In seconds; ``time.process_time`` where one thread does it all beside other work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in trials}
    for repeat in range(repeats + 1):
        for name, run in trials.items():
            if twice:
                run()
            start = clock()
            run()
            if repeat:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def read_csv(name: str) -> list[dict[str, str]]:
    """Rows of ``results/<name>.csv``."""
    return _read(RESULTS / f"{name}.csv")


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_comparison(name: str) -> list[dict[str, str]]:
    """Rows of ``results/methods-<name>.csv``; a method with several budgets becomes several, by method and budget."""
    rows = read_csv(f"methods-{name}")
    budgets: dict[str, set[str]] = {}
    for row in rows:
        budgets.setdefault(row["method"], set()).add(row.get("budget", ""))
    return [{**row, "method": column_name(row["method"], row["budget"])} if len(budgets[row["method"]]) > 1 else row
            for row in rows]  # fmt: skip


def by_run(rows: Iterable[dict[str, str]]) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Method -> seed -> its evaluations in order of steps."""
    runs: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in sorted(rows, key=lambda row: int(row["step"])):
        runs.setdefault(row["method"], {}).setdefault(row["seed"], []).append(row)
    return runs


def crossing(x: ArrayLike, y: ArrayLike, height: float) -> float | None:
    """First x at which the straight lines through the points ``(x, y)`` reach ``height``; None if they never do."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    reached = np.flatnonzero(y >= height)
    if not len(reached):
        return None
    k = int(reached[0])
    if k == 0:
        return float(x[0])
    return float(x[k - 1] + (x[k] - x[k - 1]) * (height - y[k - 1]) / (y[k] - y[k - 1]))


def card(device: str) -> str:
    """Name of the accelerator, for a column; ``cpu`` on a processor."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def write_csv(
    name: str, rows: list[dict[str, object]], *, quiet: bool = False, same: Sequence[str] | None = None
) -> None:
    """Write ``results/<name>.csv`` with the hardware and thread count in every row, and print it unless ``quiet``.

    The environment variable ``PCM_RL_RESULTS`` names another folder.

    Args:
        name: Of the file.
        rows: Each a mapping of columns.
        quiet: Print nothing.
        same: Columns that say what a row is of: rows of the file that differ from the new ones there stay. None writes
            the file anew.
    """
    WRITTEN.mkdir(parents=True, exist_ok=True)
    path = WRITTEN / f"{name}.csv"
    rows = [{**row, "threads": torch.get_num_threads(), "hardware": hardware()} for row in rows]
    older: list[dict[str, object]] = []
    if same is not None and path.is_file():
        new = {tuple(str(row[key]) for key in same) for row in rows}
        older = [row for row in _read(path) if tuple(row[key] for key in same) not in new]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([*older, *rows])
    for row in [] if quiet else rows:
        print("  ".join(f"{key}={value}" for key, value in row.items() if key != "hardware"))
