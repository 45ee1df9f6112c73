"""What the first episodes show: each fault by its own finding, and nothing where all is well."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from pcm_rl.rollouts.first_look import first_look, look_at_actions, look_at_head, look_at_phases

SPACE = spaces.Box(-1.0, 1.0, (4, 3), np.float32)


def rows(*, success=(True, False, False, True), same_start=False, chunk=None, nats=1.0):
    """Four episodes of two chunks, in two groups."""
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(8, 2) if same_start else torch.arange(4).repeat_interleave(2).unsqueeze(1) * torch.ones(8, 2)
    return TensorDict(
        {
            ("observation", "state"): start,
            ("vla_action", "log_probs"): torch.full((8, 4, 3), -nats),
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


def said(batch, **policy):
    return [(found.name, found.text) for found in first_look(batch, SPACE, 2, **policy) if found.level == "warn"]


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


def sampled(logits, number=4000):
    """Log-probs of draws from ``[A]`` logits, all executed, ``[number, 1, 1]``."""
    torch.manual_seed(0)
    dist = torch.distributions.Categorical(logits=logits)
    return dist.log_prob(dist.sample((number,))).view(-1, 1, 1), torch.zeros(number, 1, dtype=torch.bool)


@pytest.mark.parametrize("bins", [5, 16, 256])
def test_a_head_that_chooses_by_chance_is_told_from_one_that_prefers_some(bins):
    spread = torch.linspace(-1.7, 1.7, bins)  # standard deviation 1, as a random head's logits have
    assert look_at_head(*sampled(torch.zeros(bins)), bins).level == "warn"
    assert look_at_head(*sampled(spread / 1.6 / (2 if bins == 5 else 1)), bins).level == "warn"
    bump = -((torch.arange(bins) - bins / 3) ** 2) / (2 * (bins / 5) ** 2)  # broad: a fifth of all bins
    assert look_at_head(*sampled(bump), bins).level == "ok"
    hot = -((torch.arange(bins) - bins / 3) ** 2) / (2 * (bins / 16) ** 2) / 1.6  # a taught one, at a temperature
    assert look_at_head(*sampled(hot), bins).level == "ok"
    log_probs, is_pad = sampled(bump)
    log_probs[::2], is_pad[::2] = -99.0, True
    assert look_at_head(log_probs, is_pad, bins).level == "ok", "padding says nothing"


def test_an_untrained_head_is_named_with_or_without_a_success():
    by_chance, failed = rows(nats=2.7), rows(nats=2.7, success=[False] * 4)
    assert said(rows(), bins=16) == said(by_chance) == said(by_chance, bins=16, taught=False) == []
    ((name, text),) = said(by_chance, bins=16)
    assert name == "head" and "almost uniformly (2.70 nats a token, where chance is 2.77)" in text
    for taught in (True, False):
        ((name, text),) = said(failed, bins=16, taught=taught)  # both in one line
        assert name == "success" and text.startswith("0 of 4 episodes succeeded, and the policy chooses almost")
        assert "regression head" in text and "sft.steps" in text
    ((name, text),) = said(rows(success=[False] * 4), bins=16)
    assert name == "success" and "almost uniformly" not in text


def test_phases_are_shared_out_or_one():
    assert look_at_phases(torch.tensor([0, 0, 3, -1])).text == "active-grip 67%, approach 33%"
    one = look_at_phases(torch.tensor([3, 3, -1]))
    assert one.level == "warn" and "approach 100%" in one.text
    assert look_at_phases(torch.tensor([7, 0])).text == "active-grip 50%, 7 50%"  # a labeller of one's own
