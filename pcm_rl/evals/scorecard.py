"""Evaluations side by side: a table for a person, and a record of every episode for a file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pcm_rl.config import EnvConfig, as_written
from pcm_rl.rollouts.evaluate import Evaluation, place


def result_table(columns: Mapping[str, EnvConfig], evaluations: Sequence[Evaluation]) -> Table:
    """Success of each task in each column; with several tasks, also their mean and all episodes together.

    Args:
        columns: Name and environment of each column, all with the same number of tasks.
        evaluations: One for each column.
    """
    table = Table("task", *columns)
    env = next(iter(columns.values()))
    for task in range(env.num_tasks):
        cells = [str(evaluation.of_task(task) or "-") for evaluation in evaluations]
        table.add_row(Text(_label(env, evaluations[0], task)), *cells)
    if env.num_tasks > 1:
        table.add_section()
        table.add_row("mean over tasks", *(f"{mean_over_tasks(evaluation):.1%}" for evaluation in evaluations))
        table.add_row("all episodes", *(str(evaluation.success) for evaluation in evaluations))
    return table


def mean_over_tasks(evaluation: Evaluation) -> float:
    """Mean of the tasks' success rates, in [0, 1]; tasks of which no episode came back are left out."""
    shares = [evaluation.of_task(task) for task in evaluation.task.unique().tolist()]
    return statistics.fmean(share.success for share in shares if share is not None)


def column_record(
    name: str, overrides: list[str], env: EnvConfig, held_out: Tensor, evaluation: Evaluation
) -> dict[str, Any]:
    """Everything about one column, for JSON.

    Args:
        name: Name of the column.
        overrides: What it changes in the run's configuration.
        env: Its environment.
        held_out: Numbers of the held-out initial states, int64.
        evaluation: What came of it.

    Returns:
        Among others, for each task, ``"episodes"``: ``[initial state within the task, success, steps]`` of each, and
        ``"dropped"``: ``(task, initial state)`` of the episodes that were given up.
        ``"from_training_states"`` counts episodes by the state's number: a changed environment may have others.
    """
    plays = zip(evaluation.init_state, evaluation.outcome, evaluation.steps, strict=True)
    episodes = [[place(env, int(state))[1], bool(won), int(steps)] for state, won, steps in plays]
    tasks = []
    for task in range(env.num_tasks):
        success = evaluation.of_task(task)
        tasks.append(
            {
                "task": task,
                "arguments": as_written({key: values[task] for key, values in env.tasks.items()}),
                "instruction": evaluation.instruction_of(task),
                "success": None if success is None else success.as_dict(),
                "episodes": [episodes[i] for i in (evaluation.task == task).nonzero().flatten().tolist()],
            }
        )
    return {
        "name": name,
        "overrides": overrides,
        "environment": {"id": env.id, "kwargs": as_written(env.kwargs)},
        "success": evaluation.success.as_dict(),
        "mean_over_tasks": mean_over_tasks(evaluation),
        "from_training_states": int((~torch.isin(evaluation.init_state, held_out)).sum()),
        "dropped": [place(env, state) for state in evaluation.dropped],
        "tasks": tasks,
    }


def _label(env: EnvConfig, evaluation: Evaluation, task: int) -> str:
    """Index of a task and what it is: its instruction, or the arguments that make it."""
    arguments = ", ".join(f"{key}={as_written(values[task])}" for key, values in env.tasks.items())
    return f"{task}  {evaluation.instruction_of(task) or arguments}".rstrip()
