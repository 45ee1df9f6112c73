import dataclasses

import pytest
import torch
from tensordict import TensorDict

from pcm_rl.config import Config, SelectionConfig
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.training.forecast import memory_lines, time_lines
from pcm_rl.training.update_cost import UpdateCost

COSTS = [
    UpdateCost("pcm", rows=960, select_s=0.5, update_s=9.5, activation_bytes=1),
    UpdateCost("full-valid", rows=3280, select_s=0.0, update_s=40.0, activation_bytes=1),
]


def test_times_by_hand():
    config = dataclasses.replace(Config(), groups=8, group_size=10, steps=200)
    step, run = time_lines(COSTS, rollout_s=30.0, config=config)
    assert "80 trajectories" in step and "(960 chunks)" in step and "all 3280 executed" in step
    # a step is 30 + 0.5 + 9.5 = 40 s, 200 of them 8000 s; with all chunks 70 s; with a free update 30 s
    assert "2 h 13 min" in run and "1.75x" in run and "2.33x" in run


def test_times_are_of_the_runs_own_method():
    config = dataclasses.replace(Config(), selection=SelectionConfig("random"))
    costs = [dataclasses.replace(COSTS[0], method="random-valid"), COSTS[1]]
    step, run = time_lines(costs, rollout_s=30.0, config=config)
    assert "with random-valid (960 chunks)" in step and "steps with random-valid" in run


@pytest.mark.parametrize(("steps", "said"), [(1, "40 s"), (60, "40 min"), (900, "10 h 00 min")])
def test_times_in_the_unit_that_a_person_reads(steps, said):
    assert f"{steps} steps with pcm: {said}," in time_lines(COSTS, 30.0, dataclasses.replace(Config(), steps=steps))[1]


def test_memory_of_a_state_policy_counts_its_weights():
    policy = StateTokenPolicy(6, action_dim=2, chunk_length=4, width=8, depth=1)
    rows = policy(TensorDict({"observation": {"state": torch.zeros(3, 6)}}, [3]))
    first, only = memory_lines(policy, rows)
    parameters = 6 * 8 + 8 + 8 * (2 * 4 * 16) + 2 * 4 * 16
    assert f"{parameters / 1e6:.2f} M parameters" in first
    assert "everything kept" in only and "micro_tokens" not in only


def test_memory_of_openvla_with_and_without_recomputation(make_openvla, record_openvla):
    policy = make_openvla()
    rows = record_openvla(policy, ["pick it up", "put it down"])
    policy.model.requires_grad_()
    lines = memory_lines(policy, rows)
    recomputed, kept = (float(line.split(":")[1].split("MiB")[0]) for line in lines[1:])
    assert recomputed < kept
    assert not policy.model.language_model.model.checkpointing, "what is measured next is what nothing was chosen for"
    assert all("update.micro_tokens=" in line for line in lines[1:])
    assert all(parameter.grad is None for parameter in policy.parameters())
