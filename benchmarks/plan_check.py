"""The arithmetic of ``pcm-rl plan`` against measured steps: constants from one part, predictions for another.

    python benchmarks/plan_check.py workers   plan_check-workers.csv: rollouts with latencies, real worker processes
    python benchmarks/plan_check.py steps     plan_check-steps.csv: training steps of the toy, processor seconds
    python benchmarks/plan_check.py           plan_check.csv: predictions beside what was measured

``workers`` collects 24 episodes, half of 6 chunks and half of 20, with 2, 4, 8 and 16 workers (processes). A simulator
sleeps 0.257 s a chunk (standard deviation 25 %) and 0.16 s a reset, the policy sleeps 41 ms a call and 10 ms a row and
is asked for all who wait, as OpenVLA is. Sleeping needs no core, so other work on the machine hardly changes it. No
constant of the prediction is fitted to these runs.

``steps`` trains the toy (``configs/pick_place.yaml``) from one policy with 2, 4, 8 and 16 groups by ``full-valid`` and
``pcm``, six steps each after one that does not count. Seconds are those of this process on one thread.

The third command reads these two files and older measurements in ``results/``. A row says what was measured, where the
constants are from, the prediction, and why it misses where it is off by more than 15 %.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import read_csv, write_csv
from recipe_steps import VARIANTS, planned
from tensordict import TensorDictBase

from pcm_rl.algos import collect_episodes
from pcm_rl.config import METHODS, load_config
from pcm_rl.envs import chunked_vector_env
from pcm_rl.episodes import EPISODE, SUCCESS
from pcm_rl.plan.columns import Column
from pcm_rl.plan.costs import Costs, costs_of
from pcm_rl.plan.figures import Card, Network, Simulators
from pcm_rl.plan.figures import Episodes as EpisodeLengths
from pcm_rl.plan.measured import line
from pcm_rl.plan.rollout import play
from pcm_rl.plan.step import Workload

WITHIN = 0.15
LENGTH = 8
EPISODES, SHORT, LONG = 24, 6, 20  # of the rollouts with latencies
CHUNK_S, RESET_S, SPREAD, CALL_S, ROW_S = 0.257, 0.16, 0.25, 0.041, 0.010
GROUPS, STEPS = (2, 4, 8, 16), 6  # of the toy's steps
# TFLOP of a chunk with the prompts of the measurements, which the tiny tokenizer makes long: 66 ids
DECISION_TFLOP, UPDATE_TFLOP = 5.352, 10.861
RECIPE = Path(__file__).parents[1] / "configs" / "pick_place.yaml"
OPENVLA = RECIPE.with_name("openvla_oft_libero_object.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="check", choices=["workers", "steps", "check"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "workers":
        write_csv("plan_check-workers", [latencies(number) for number in (2, 4, 8, 16)])
    elif options.what == "steps":
        write_csv("plan_check-steps", measured_steps())
    else:
        write_csv("plan_check", predictions())


# measured: rollouts with latencies


class Sleeping(gym.Env):
    """An environment that takes its time and does nothing else; even initial states succeed early."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Sleep for about :data:`RESET_S`."""
        super().reset(seed=seed)
        state = int((options or {})["init_state"])
        self.random, self.steps = np.random.default_rng(state), 0
        self.chunks, self.succeeds = (SHORT, True) if state % 2 == 0 else (LONG, False)
        time.sleep(RESET_S * self._factor())
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Sleep through a whole chunk at its first step."""
        if self.steps % LENGTH == 0:
            time.sleep(CHUNK_S * self._factor())
        self.steps += 1
        ended = self.steps == self.chunks * LENGTH
        won = ended and self.succeeds
        return np.zeros(1, np.float32), float(won), won, ended and not won, {"success": won}

    def _factor(self) -> float:
        half = 3**0.5 * SPREAD
        return float(self.random.uniform(1 - half, 1 + half))


class SleepingPolicy:
    """Sleeps as long as a decision of a large policy takes, and acts at random."""

    calls = rows = 0

    @contextlib.contextmanager
    def seeded(self, seeds: Sequence[int]) -> Iterator[None]:
        """Every call of a policy of this kind is for all who wait."""
        yield

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """Write a chunk for each row."""
        number = len(batch)
        self.calls, self.rows = self.calls + 1, self.rows + number
        time.sleep(CALL_S + ROW_S * number)
        batch["vla_action", "chunk"] = torch.zeros(number, LENGTH, 1)
        batch["vla_action", "tokens"] = torch.zeros(number, LENGTH, 1, dtype=torch.int64)
        batch["vla_action", "log_probs"] = torch.zeros(number, LENGTH, 1)
        return batch


def latencies(workers: int) -> dict[str, object]:
    """Seconds of one rollout with that many worker processes."""
    policy = SleepingPolicy()
    env = chunked_vector_env(Sleeping, workers, chunk_length=LENGTH, context="fork")
    states = torch.arange(EPISODES)
    try:
        start = time.perf_counter()
        rows = collect_episodes(env, policy, states, states // 8, same_starts=False)
        seconds = time.perf_counter() - start
    finally:
        env.close()
    return {"workers": workers, "episodes": EPISODES, "chunks": len(rows), "calls": policy.calls,
            "rows_a_call": round(policy.rows / policy.calls, 2), "rollout_s": round(seconds, 2)}  # fmt: skip


# measured: training steps


def measured_steps() -> list[dict[str, object]]:
    """Processor seconds of every step."""
    from pcm_rl.training.checkpoint import save_policy
    from pcm_rl.training.trainer import Trainer

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.safetensors"
        trainer = Trainer(load_config(RECIPE, [f"run_dir={folder}"]), lambda line: None)
        trainer.supervised_start()
        save_policy(trainer.policy, start)
        for groups in GROUPS:
            for method in ("full-valid", "pcm"):
                changes = [
                    f"groups={groups}",
                    f"policy.init={start}",
                    f"run_dir={folder}",
                    *METHODS[method].overrides(),
                ]
                made = Trainer(load_config(RECIPE, changes), lambda line: None)
                made.probed = True
                taken = [step for _ in range(STEPS + 1) if (step := one_step(made))][1:]
                rows += [{"method": method, "groups": groups, **step} for step in taken]
                made.env.close()
    return rows


def one_step(trainer: Any) -> dict[str, object] | None:
    """Chunks and seconds of a step; None where there was nothing to learn from."""
    begin = time.process_time()
    rows = trainer.collect()
    collected = time.process_time()
    signal = trainer.grpo.write_advantage(rows)
    if not bool(signal.any()):
        return None
    kept = trainer.grpo.select(rows, signal)
    selected = time.process_time()
    trainer.grpo.update(kept)
    updated = time.process_time()
    episode = rows[EPISODE]
    lengths = torch.bincount(episode)
    won = torch.zeros(len(lengths), dtype=torch.bool).index_put_((episode,), rows[SUCCESS])
    return {
        "trajectories": len(lengths),
        "success": round(float(won.float().mean()), 4),
        "success_chunks": round(float(lengths[won].float().mean()), 2) if won.any() else "",
        "failure_chunks": round(float(lengths[~won].float().mean()), 2) if (~won).any() else "",
        "mixed": round(len(rows["group_id"][signal].unique()) / trainer.config.groups, 4),
        "chunks": len(rows),
        "chunks_valid": int(signal.sum()),
        "chunks_kept": len(kept),
        "rollout_s": round(collected - begin, 4),
        "select_s": round(selected - collected, 4),
        "update_s": round(updated - selected, 4),
    }


# predictions


def predictions() -> list[dict[str, object]]:
    """Every prediction beside its measurement."""
    parts: list[Callable[[], Iterator[dict[str, object]]]] = [
        with_latencies, toy_rollouts, toy_updates, toy_from_one_run, older_updates, older_rollouts, libero_workers,
        libero_steps, h200_decisions, h200_updates, h200_steps,
    ]  # fmt: skip
    return [row for part in parts for row in part()]


def compared(
    part: str, what: str, constants: str, predicted: float, measured: float, why: str = ""
) -> dict[str, object]:
    """A row; ``why`` stands where the prediction misses."""
    error = predicted / measured - 1
    missed = abs(error) > WITHIN
    return {"part": part, "what": what, "constants from": constants, "predicted": float(f"{predicted:.4g}"),
            "measured": float(f"{measured:.4g}"), "error": round(error, 3), "why": why if missed else ""}  # fmt: skip


def with_latencies() -> Iterator[dict[str, object]]:
    """Rollouts with latencies, whose constants are known."""
    costs = Costs(decision_call_s=CALL_S, decision_row_s=ROW_S)
    lengths = EpisodeLengths(0.5, SHORT, LONG).lengths(EPISODES)
    for row in read_csv("plan_check-workers"):
        number = int(row["workers"])
        simulators = Simulators(CHUNK_S, RESET_S, SPREAD, workers=number, cores=number)
        seconds = play(lengths, simulators, costs).seconds
        yield compared("rollouts with latencies", f"{number} workers", "known", seconds, float(row["rollout_s"]))


def toy_rows(method: str | None = None, groups: int | None = None) -> list[dict[str, Any]]:
    """Measured steps of the toy, as numbers."""
    rows = [{key: value if key in ("method", "hardware") else float(value or 0) for key, value in row.items()}
            for row in read_csv("plan_check-steps")]  # fmt: skip
    return [row for row in rows if method in (None, row["method"]) and groups in (None, row["groups"])]


def mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Of a column."""
    return statistics.fmean(row[key] for row in rows)


def toy_episodes(rows: Sequence[dict[str, Any]]) -> EpisodeLengths:
    """Means over steps."""
    success = mean(rows, "success")
    return EpisodeLengths(
        success, mean(rows, "success_chunks"), mean(rows, "failure_chunks"), mixed=mean(rows, "mixed")
    )


def lockstep(rows: Sequence[dict[str, Any]], call_s: float, row_s: float) -> tuple[float, int, int]:
    """Seconds, calls and rows of a rollout whose 80 environments are stepped and decided for together."""
    lengths = toy_episodes(rows).lengths(round(mean(rows, "trajectories")))
    simulators = Simulators(0.0, 0.0, 0.0, workers=80, cores=80, in_step=True)
    rollout = play(lengths, simulators, Costs(decision_call_s=call_s, decision_row_s=row_s))
    return rollout.seconds, rollout.calls, rollout.rows


def toy_rollouts() -> Iterator[dict[str, object]]:
    """A call and a row, from 2 and 8 groups; 4 and 16 are predicted."""
    (seconds_2, calls_2, rows_2), (seconds_8, calls_8, rows_8) = (
        (mean(rows, "rollout_s"), *lockstep(rows, 1.0, 1.0)[1:]) for rows in (toy_rows(groups=2), toy_rows(groups=8))
    )
    row_s = (seconds_8 - seconds_2 * calls_8 / calls_2) / (rows_8 - rows_2 * calls_8 / calls_2)
    call_s = (seconds_2 - rows_2 * row_s) / calls_2
    for groups in (4, 16):
        rows = toy_rows(groups=groups)
        seconds = lockstep(rows, call_s, row_s)[0]
        yield compared("toy, rollouts", f"{groups} groups", "2 and 8 groups", seconds, mean(rows, "rollout_s"))


def toy_updates() -> Iterator[dict[str, object]]:
    """The line through the updates of ``full-valid``; those of ``pcm`` are predicted, by their number of chunks."""
    made = toy_rows("full-valid")
    row_s, step_s = line(*(np.array([row[key] for row in made]) for key in ("chunks_kept", "update_s")), 4)
    costs = Costs(update_row_s=row_s, update_step_s=step_s, micro_rows=2**31)
    for groups in GROUPS:
        rows = toy_rows("pcm", groups)
        seconds = costs.update_s(round(mean(rows, "chunks_kept")), minibatches=4)
        why = "a minibatch of 30 to 60 rows: the line through much larger updates begins too low"
        yield compared(
            "toy, updates of `pcm`", f"{groups} groups", "updates of `full-valid`", seconds, mean(rows, "update_s"), why
        )


def toy_from_one_run() -> Iterator[dict[str, object]]:
    """As ``--from RUN``: episodes and seconds of ``full-valid`` with 8 groups; whole steps of ``pcm`` are predicted."""
    made = toy_rows("full-valid", 8)
    episodes = toy_episodes(made)
    chunk_s = mean(made, "rollout_s") / mean(made, "chunks")
    row_s, step_s = line(*(np.array([row[key] for row in made]) for key in ("chunks_kept", "update_s")), 4)
    costs = Costs(update_row_s=row_s, update_step_s=step_s, micro_rows=2**31)
    workload, one = Workload(episodes=episodes), Simulators(chunk_s, 0.0, 0.0, workers=1, cores=1)
    column = Column("pcm", METHODS["pcm"], 12)
    for groups in (4, 8, 16):
        rows = toy_rows("pcm", groups)
        chunks = workload.update_chunks(column, groups)
        where, source = f"{groups} groups", "`full-valid`, 8 groups"
        yield compared("toy, chunks kept by `pcm`", where, source, chunks, mean(rows, "chunks_kept"))
        seconds = play(workload.lengths(groups), one, costs).seconds + costs.update_s(chunks, minibatches=4)
        whole = statistics.fmean(row["rollout_s"] + row["update_s"] for row in rows)
        why = "the chunks of these steps hardly differ, so calls are not told from chunks, which are dearer here"
        yield compared("toy, steps of `pcm`", where, source, seconds, whole, why)


def older_updates() -> Iterator[dict[str, object]]:
    """60 updates of each method of the comparison ``timed``: the line through two of them."""
    rows = {row["method"]: row for row in read_csv("methods-timed-runs")}
    fit = ("full-padded", "pcm")
    (x, u), (y, v) = ((float(rows[name]["gradient_chunks"]), float(rows[name]["update_s"])) for name in fit)
    row_s = (u - v) / (x - y)
    costs = Costs(update_row_s=row_s, update_step_s=(v - row_s * y) / 240, micro_rows=2**31)
    for name, row in rows.items():
        if name not in fit:
            chunks = round(float(row["gradient_chunks"]) / int(row["steps"]))
            seconds = costs.update_s(chunks, minibatches=4, epochs=int(row["steps"]))
            why = "slower a chunk, which this arithmetic does not explain; the rollouts of this run were slower too"
            source = "`full-padded` and `pcm`"
            yield compared("toy, 60 updates", name, source, seconds, float(row["update_s"]), why)


def older_rollouts() -> Iterator[dict[str, object]]:
    """Rollouts of the same runs, by the environment steps of one of them."""
    rows = {row["method"]: row for row in read_csv("methods-timed-runs")}
    rate = float(rows["full-valid"]["rollout_s"]) / float(rows["full-valid"]["env_steps"])
    for name in ("full-padded", "pcm", "random-valid", "top-advantage-8", "full-batch-critic", "batch-critic-4"):
        why = "slower a chunk, which this arithmetic does not explain; the updates of these runs were slower too"
        seconds = rate * float(rows[name]["env_steps"])
        yield compared("toy, 60 rollouts", name, "`full-valid`", seconds, float(rows[name]["rollout_s"]), why)


def libero_workers() -> Iterator[dict[str, object]]:
    """Two workers on two cores, from one environment in one process."""
    for file in ("libero_workers", "libero_workers_cameras"):
        table = read_csv(file)
        for view in dict.fromkeys(row["view"] for row in table):
            speed = {row["variant"]: float(row["steps_per_s"]) for row in table if row["view"] == view}
            seconds = {name: 12 * 128 / value for name, value in speed.items()}
            one = Simulators(seconds["one process"] / (12 * 16), 0.0, 0.0, workers=1, cores=1)
            two = dataclasses.replace(one, workers=2, cores=2)
            why = "a worker is taken to be as fast beside another one as alone; two that render were 20 % slower"
            predicted = play([16] * 12, two, Costs()).seconds
            yield compared("LIBERO, two workers", view, "one process", predicted, seconds["workers 2"], why)


def libero_steps() -> Iterator[dict[str, object]]:
    """Whole steps of 32 rollouts on two workers, from steps of 16; other work had most of the machine."""
    table = [{key: float(row[key]) for key in ("rollouts", "seconds", "decided", "decisions", "selection and update")}
             for row in read_csv("waiting")]  # fmt: skip
    fit = [row for row in table if row["rollouts"] == 16]
    lengths = {number: [int(row["chunks"]) for row in read_csv("waiting-episodes") if int(row["rollouts"]) == number]
               for number in (16, 32)}  # fmt: skip
    unit = Simulators(1.0, 0.0, 0.25, workers=2, cores=2)
    chunk_s = sum(row["seconds"] for row in fit) / play(lengths[16], unit, Costs()).seconds
    simulators = dataclasses.replace(unit, chunk_s=chunk_s)
    predicted = play(lengths[32], simulators, Costs()).seconds
    measured = sum(row["seconds"] for row in table if row["rollouts"] == 32)
    yield compared("LIBERO, two steps of two workers", "32 rollouts", "16 rollouts", predicted, measured)


def h200_decisions() -> Iterator[dict[str, object]]:
    """The seven sizes of a decision by the two constants that were fitted to them."""
    costs = costs_of(Card(), Network(decision_tflop=DECISION_TFLOP))
    why = "up to two rows the host binds, so that a second row costs nothing; the plan has a constant for each row"
    for row in read_csv("decisions-7b-cuda"):
        if row["adapters"] == "True":
            number, measured = int(row["rows"]), float(row["decision_ms"]) / 1e3
            yield compared("7B, a decision", f"{number} rows", "all seven", costs.decision_s(number), measured, why)


def h200_updates() -> Iterator[dict[str, object]]:
    """Updates of the 7B: the share of the peak is that of ``full-padded``."""
    costs = costs_of(Card(), Network(update_tflop=UPDATE_TFLOP))
    for row in read_csv("actor_update-7b-cuda"):
        if row["variant"] != "clip-ppo-loss":  # TorchRL's, which is not planned
            seconds = costs.update_s(int(row["chunks"]), minibatches=4)
            yield compared("7B, an update", row["variant"], "`full-padded`", seconds, float(row["update_s"]))


def h200_steps() -> Iterator[dict[str, object]]:
    """Whole steps of the 7B's recipe with 20 rollouts, by the constants of decisions and updates."""
    why = "the first step of a run has cold kernels and a memory that still grows"
    for row in read_csv("gpu_day-steps"):
        if row["variant"] == "pcm-overlap":  # a plan knows no overlap
            continue
        groups = int(row["trajectories"]) // load_config(OPENVLA).group_size
        chunk_s = float(row["simulator"].split()[0])
        options = argparse.Namespace(chunk_s=chunk_s, libero=False, overrides=[f"groups={groups}"])
        found = planned(options, VARIANTS[row["variant"]], row | {"groups": str(groups)}, "h200")
        for part in ("rollout_s", "update_s", "step_s"):
            name = f"{row['variant']}, step {row['step']}, {part.removesuffix('_s')}"
            predicted, measured = found[f"planned_{part}"], float(row[part])
            yield compared("7B, a step", name, "decisions and updates", predicted, measured, why)


if __name__ == "__main__":
    main()
