from __future__ import annotations

import pytest
import torch
from rich.console import Console
from tensordict import TensorDict

from pcm_rl.config import EnvConfig
from pcm_rl.evals.scorecard import column_record, mean_over_tasks, result_table
from pcm_rl.reports.versions import versions
from pcm_rl.rollouts.evaluate import Evaluation, wilson

ENV = EnvConfig(num_states=10, eval_states=2, tasks={"task_id": [4, 7, 9]}, kwargs={"suite": "a"})


@pytest.fixture
def evaluation():
    """Task 0: 1 of 1, task 1: 1 of 3, task 2: none came back."""
    return Evaluation(
        rows=TensorDict({}, []),
        init_state=torch.tensor([3, 13, 15, 13]),
        task=torch.tensor([0, 1, 1, 1]),
        outcome=torch.tensor([True, False, True, False]),
        steps=torch.tensor([5, 8, 6, 8]),
        instruction=["open [it]", "close it", "close it", "close it"],
        dropped=[23],
    )


def test_mean_over_tasks_weighs_tasks_alike(evaluation):
    assert mean_over_tasks(evaluation) == pytest.approx((1 + 1 / 3) / 2)
    assert evaluation.success.success == 0.5


def test_record_holds_every_episode(evaluation):
    got = column_record("swap", ["a=b"], ENV, torch.tensor([3, 5, 13, 15]), evaluation)
    assert [task["episodes"] for task in got["tasks"]] == [
        [[3, True, 5]],
        [[3, False, 8], [5, True, 6], [3, False, 8]],
        [],
    ]
    assert [task["instruction"] for task in got["tasks"]] == ["open [it]", "close it", None]
    assert [task["arguments"] for task in got["tasks"]] == [{"task_id": 4}, {"task_id": 7}, {"task_id": 9}]
    assert got["tasks"][1]["success"] == wilson(1, 3).as_dict() and got["tasks"][2]["success"] is None
    assert got["success"] == wilson(2, 4).as_dict() and got["dropped"] == [(2, 3)]
    assert got["from_training_states"] == 0
    assert column_record("", [], ENV, torch.tensor([3, 13]), evaluation)["from_training_states"] == 1


def test_table_has_a_line_a_task_and_two_for_all(evaluation):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(result_table({"run": ENV, "swap": ENV}, [evaluation, evaluation]))
    lines = capture.get().splitlines()
    for start, cell in (
        ("0  open [it]", "100.0% [20.7%, 100.0%] (1/1)"), ("1  close it", "33.3% [6.1%, 79.2%] (1/3)"),
        ("2  task_id=9", "-"), ("mean over tasks", "66.7%"), ("all episodes", "50.0% [15.0%, 85.0%] (2/4)"),
    ):  # fmt: skip
        (line,) = (line for line in lines if start in line)
        assert line.count(cell) == 2, line


def test_versions_name_what_is_installed():
    assert versions("pcm_rl/Reach-v0")["torch"] == torch.__version__.split("+")[0]
    assert "libero" not in versions("pcm_rl/Reach-v0")
