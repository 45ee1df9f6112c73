"""``pcm-rl eval``: a run's policy from given initial states of every task, also in changed environments."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcm_rl.config import DRAW_NUMBERS, Config, ConfigError, load_run_config
from pcm_rl.evals.result_file import choose_file, head_of, write_result
from pcm_rl.evals.scorecard import column_record, result_table
from pcm_rl.reports.console import table_console
from pcm_rl.reports.films import film_tasks, require_video
from pcm_rl.reports.versions import versions
from pcm_rl.rollouts.decisions import Decisions
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.evaluate import Evaluation, evaluate
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.support.room import check_room
from pcm_rl.training.build import make_policy
from pcm_rl.training.checkpoint import load_policy, policy_metadata
from pcm_rl.training.generations import generations, newest_whole, step_of
from pcm_rl.training.trainer import EVALUATION_SEED, say_now

STATES = ("held-out", "all")
RUN_COLUMN = "run"  # the column of the run's own environment


@dataclass(frozen=True)
class Protocol:
    """What is evaluated, and how.

    Attributes:
        states: ``held-out``, the initial states of every task that are kept for evaluation, or ``all`` of them.
        episodes: Rollouts a column; None plays each state once. One state of every task comes first, then the next of
            every task, and so on; after the last one they are repeated.
        greedy: Take the most likely token, or add no noise while denoising, instead of acting as in training.
        films: Film the first success and the first failure of each task in the run's own environment.
        also: Further columns: name -> overrides of the configuration, such as
            ``{"swap": ["env.kwargs.suite=libero_object_swap"]}``.

    Raises:
        ConfigError: A value is out of its range.
    """

    states: str = "held-out"
    episodes: int | None = None
    greedy: bool = False
    films: bool = False
    also: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.states not in STATES:
            raise ConfigError(f"states must be one of {', '.join(STATES)}, got {self.states!r}")
        if self.episodes is not None and self.episodes < 1:
            raise ConfigError(f"episodes must be at least 1, got {self.episodes}")
        if RUN_COLUMN in self.also:
            raise ConfigError(
                f"{RUN_COLUMN!r} is the column of the run's own environment; give the other one another name"
            )

    @property
    def actions(self) -> str:
        """How tokens become actions, in a word."""
        return "greedy" if self.greedy else "sampled"


@dataclass(frozen=True, eq=False)
class Column:
    """One configuration to evaluate.

    Attributes:
        name: Its name in the table and in the file.
        overrides: What it changes in the run's configuration.
        config: The changed configuration.
        split: Which initial states are held out.
        states: Initial states to start from, ``[J]`` int64.
    """

    name: str
    overrides: list[str]
    config: Config
    split: InitialStates
    states: Tensor


def evaluate_run(
    folder: str | Path,
    overrides: Sequence[str],
    protocol: Protocol,
    say: Callable[[str], None] = say_now,
    *,
    overwrite: bool = False,
) -> Path:
    """Evaluate a run's policy, print a table and write ``eval.json`` into the run's folder.

    The file holds what is needed to do it again, and every episode's outcome; the same command gives the same file.
    Where ``eval.json`` holds another evaluation it stays, and this one goes to ``eval-2.json``, and so on.

    Args:
        folder: Folder of the run.
        overrides: ``key=value`` changes of the run's configuration, for all columns.
        protocol: What is evaluated, and how.
        say: Gets each line for a person.
        overwrite: Write to ``eval.json`` whatever it holds.

    Returns:
        The path of the file.

    Raises:
        ConfigError: An override does not fit the run, or its held-out states may have been trained on.
        OSError: The folder cannot be written to.
        FileNotFoundError: The folder holds no run, or no checkpoint yet.
        ImportError: Films are asked for and cannot be written.
        RuntimeError: Not one episode of a column came back.
    """
    if protocol.films:
        require_video()  # before anything is rolled out
    folder = Path(folder)
    policy_file = _policy_file(folder, say)
    columns = _columns(folder, policy_file, overrides, protocol)
    step = step_of(policy_file.parent)
    say(_announcement(columns[0], step, protocol))
    record: dict[str, Any] = {
        "policy": policy_file.relative_to(folder).as_posix(),
        "step": step,
        "actions": protocol.actions,
        "seed": EVALUATION_SEED,
        "init_states": protocol.states,
        "episodes": protocol.episodes or len(columns[0].states),
        "overrides": {column.name: column.overrides for column in columns},
        "device": columns[0].config.device,
        "versions": versions(columns[0].config.env.id),
        "columns": [],
    }
    check_room(folder)
    path = choose_file(folder, head_of(record), overwrite=overwrite)
    if path.name != "eval.json":
        say(f"eval.json holds another evaluation and stays (--overwrite replaces it); this one goes to {path.name}")
    evaluations: list[Evaluation] = []
    for column in columns:
        env, held_out = column.config.env, column.split.evaluation
        evaluations.append(_roll_out(column, policy_file, protocol, say))
        record["columns"].append(column_record(column.name, column.overrides, env, held_out, evaluations[-1]))
        write_result(path, record)  # a column that fails does not take the others with it
    table_console().print(result_table({column.name: column.config.env for column in columns}, evaluations))
    say(f"written: {path}")
    if protocol.films:
        number = film_tasks(columns[0].config.env, evaluations[0], folder / "films", RUN_COLUMN)
        say(f"written: {number} film{'s' * (number != 1)} in {folder / 'films'}")
    return path


def _policy_file(folder: Path, say: Callable[[str], None]) -> Path:
    """Of the newest checkpoint that is whole."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} holds no run (no config.yaml)")
    if not generations(folder):
        raise FileNotFoundError(f"{folder} has no checkpoint yet")
    return newest_whole(folder, say=say) / "policy.safetensors"


def _columns(folder: Path, policy_file: Path, overrides: Sequence[str], protocol: Protocol) -> list[Column]:
    """Every column, checked before a simulator is built."""
    columns: list[Column] = []
    for name, more in {RUN_COLUMN: [], **protocol.also}.items():
        config = load_run_config(folder, [*overrides, *more])
        env = config.env
        split = InitialStates.of(config)
        split.check_policy(policy_metadata(policy_file), env.id)
        if columns and env.num_tasks != columns[0].split.tasks:
            raise ConfigError(
                f"column {name!r} has {env.num_tasks} tasks and the run {columns[0].split.tasks}; a line of the table "
                "is one task in all columns"
            )
        columns.append(Column(name, [*overrides, *more], config, split, _initial_states(split, protocol, config)))
    return columns


def _initial_states(split: InitialStates, protocol: Protocol, config: Config) -> Tensor:
    """States to start from, ``[J]``: one of each task first, then the next of each, and so on."""
    states = split.evaluation
    if protocol.states == "all":
        if split.total is None:
            raise ConfigError("--states all needs a number of initial states, and this environment has no fixed one")
        states = (torch.arange(split.total).unsqueeze(1) + split.total * torch.arange(split.tasks)).flatten()
    alike = protocol.greedy and config.policy.family not in DRAW_NUMBERS  # which begin from noise
    if alike and (protocol.episodes or 0) > len(states):
        raise ConfigError(
            f"--greedy plays an initial state alike each time, and there are {len(states)} of them; got "
            f"--episodes {protocol.episodes}, expected at most {len(states)}"
        )
    return states


def _announcement(column: Column, step: int, protocol: Protocol) -> str:
    states, tasks = column.states[: protocol.episodes], column.split.tasks
    trained = len(states) - int(torch.isin(states, column.split.evaluation).sum())
    return (
        f"policy after step {step}, {protocol.actions} actions: {protocol.episodes or len(states)} episodes from "
        f"{len(states)} initial states ({trained} of them training states) of {tasks} task{'s' * (tasks > 1)}"
    )


def _roll_out(column: Column, policy_file: Path, protocol: Protocol, say: Callable[[str], None]) -> Evaluation:
    config, started = column.config, time.perf_counter()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with contextlib.closing(make_vector_env(config.env)) as env:
        policy = make_policy(config, env)
        try:
            load_policy(policy, policy_file)
        except ValueError as error:
            raise ConfigError(f"column {column.name!r}: {error}") from error
        evaluation = evaluate(
            env,
            policy,
            column.states,
            protocol.episodes or len(column.states),
            seed=EVALUATION_SEED,
            device=config.device,
            task=column.split.task_of(column.states),
            greedy=protocol.greedy,
            decisions=Decisions.of(config.rollouts),
        )
    say(f"{column.name}: {evaluation.line()}, {time.perf_counter() - started:.0f} s")
    if protocol.films and column.name == RUN_COLUMN:
        return evaluation
    return dataclasses.replace(evaluation, rows=evaluation.rows[:0])  # images of all columns would fill the memory
