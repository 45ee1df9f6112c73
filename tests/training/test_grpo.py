"""What a step of training does with rows, without rollouts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pcm_rl.algos import PCMSampler
from pcm_rl.rules import RULES
from pcm_rl.training.grpo import GRPO

LENGTHS, SUCCESS, GROUP = [5, 2, 7, 3, 4, 6], [1, 0, 1, 1, 1, 1], [0, 0, 0, 9, 9, 9]


@pytest.mark.parametrize("padding", ["drop", "keep"])
@pytest.mark.parametrize("selection", RULES)
def test_with_room_for_all_every_rule_has_the_mean_of_full_grpo(policy, make_batch, selection, padding):
    """Groups of one outcome are left out of the mean, whether the rule got their rows or not."""
    rows = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    rows["phase"][:] = 0
    signal = rows["group_id"] == 0
    value = torch.randn(len(rows), generator=torch.Generator().manual_seed(0)).double()
    part = SimpleNamespace(config=SimpleNamespace(env=SimpleNamespace(slots=7)), half_box=None)
    part.sampler = PCMSampler(7, selection=selection, padding=padding)
    kept = GRPO.select(part, rows, signal)
    tokens = (~rows["action_is_pad"]).sum(-1)
    expected = 0.0
    for episode in range(3):
        mine = rows["episode_id"] == episode
        expected += float((value * tokens)[mine].sum() / tokens[mine].sum()) / 3
    number = torch.tensor([0, 5, 7, 14, 17, 21])  # first row of each episode
    place = number[kept["episode_id"]] + kept["chunk_id"].clamp_max(torch.tensor(LENGTHS)[kept["episode_id"]] - 1)
    assert float((kept["weight"] * value[place]).mean()) == pytest.approx(expected, rel=1e-5)
