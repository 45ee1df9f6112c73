"""What the first episodes show: each fault by its own finding, and nothing where all is well."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from pcm_rl.rollouts.first_look import first_look, look_at_actions, look_at_phases

SPACE = spaces.Box(-1.0, 1.0, (4, 3), np.float32)


def rows(*, success=(True, False, False, True), same_start=False, chunk=None):
    """Four episodes of two chunks, in two groups."""
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(8, 2) if same_start else torch.arange(4).repeat_interleave(2).unsqueeze(1) * torch.ones(8, 2)
    return TensorDict(
        {
            ("observation", "state"): start,
            ("vla_action", "chunk"): 2 * torch.rand(8, 4, 3, generator=generator) - 1 if chunk is None else chunk,
            "action_is_pad": torch.zeros(8, 4, dtype=torch.bool),
            "chunk_id": torch.arange(2).repeat(4),
            "episode_id": torch.arange(4).repeat_interleave(2),
            "group_id": torch.arange(2).repeat_interleave(4),
            "success": torch.tensor(success).repeat_interleave(2),
        },
        batch_size=[8],
    )


def levels(batch, slots=2):
    return {finding.name: finding.level for finding in first_look(batch, SPACE, slots)}


WELL = {"slots": "ok", "groups": "ok", "actions": "ok", "success": "ok"}


def test_each_fault_has_its_own_finding():
    assert levels(rows()) == WELL
    assert levels(rows(), slots=1) == WELL | {"slots": "fail"}
    assert levels(rows(same_start=True)) == WELL | {"groups": "warn"}
    assert levels(rows(success=[False] * 4)) == levels(rows(success=[True] * 4)) == WELL | {"success": "warn"}
    assert levels(rows(chunk=0.05 * rows()["vla_action", "chunk"])) == WELL | {"actions": "warn"}
    one_group = rows(same_start=True)[:4]
    assert levels(one_group)["groups"] == "ok", "one group cannot differ from another"


def look(actions, low=-1.0, high=1.0):
    actions = torch.as_tensor(actions, dtype=torch.float32)  # [T, D]
    low, high = (np.broadcast_to(np.float32(bound), (1, actions.shape[1])) for bound in (low, high))
    space = spaces.Box(low, high)
    return look_at_actions(actions.unsqueeze(1), torch.zeros(len(actions), 1, dtype=torch.bool), space)


@pytest.mark.parametrize(("low", "high", "text"), [(0, 2, "outside"), (-10, 10, "at most 10.0%"), (0, 512, "outside")])
def test_actions_of_another_box_are_named(low, high, text):
    actions = torch.linspace(-1, 1, 50).unsqueeze(1).repeat(1, 3)
    assert look(actions).level == "ok"
    found = look(actions, low, high)
    assert found.level == "warn" and text in found.text and "RescaleAction" in found.text
    assert f"[{low:g}, {high:g}]" in found.text and "[-1, 1]" in found.text


def test_actions_at_the_ends_and_boxes_without_ends():
    ends = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, -1.0]]).repeat(20, 1)
    assert look(ends).level == "warn" and "at an end" in look(ends).text  # the gripper alone may switch
    arm = torch.cat([torch.linspace(-0.5, 0.5, 40).unsqueeze(1).repeat(1, 2), ends[:, 2:]], 1)
    assert look(arm).level == "ok"
    unbounded = look(arm, high=[1.0, np.inf, 1.0])
    assert unbounded.level == "fail" and "dimension 1 " in unbounded.text


def test_padded_steps_are_not_looked_at():
    chunk, is_pad = torch.rand(5, 4, 3), torch.zeros(5, 4, dtype=torch.bool)
    chunk[:, 2:], is_pad[:, 2:] = 99.0, True
    assert look_at_actions(chunk, is_pad, SPACE).level == "ok"


def test_phases_are_shared_out_or_one():
    assert look_at_phases(torch.tensor([0, 0, 3, -1])).text == "active-grip 67%, approach 33%"
    one = look_at_phases(torch.tensor([3, 3, -1]))
    assert one.level == "warn" and "approach 100%" in one.text
    assert look_at_phases(torch.tensor([7, 0])).text == "active-grip 50%, 7 50%"  # a labeller of one's own
