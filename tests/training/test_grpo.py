"""What a step of training does with rows, without rollouts."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pcm_rl.algos import PCMSampler
from pcm_rl.config import load_config
from pcm_rl.rollouts.environments import make_vector_env
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


@pytest.mark.parametrize(
    ("selection", "advantage", "times"),
    [("pcm", "critic", 1), ("top-phase", "critic", 1), ("top-advantage", "critic", 0), ("pcm", "group", 0)],
)
def test_a_rule_that_weighs_phases_is_warned_of_a_critic(selection, advantage, times):
    config = load_config(
        None,
        ["env.id=pcm_rl/Reach-v0", "env.num_envs=1", "policy.state.width=8", f"selection.name={selection}",
         f"advantage.name={advantage}"],
    )  # fmt: skip
    env = make_vector_env(config.env)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GRPO(config, env)
        GRPO(config, env, SimpleNamespace(first=False))  # another process of the same run
    texts = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    assert len(texts) == times
    for text in texts:
        page = re.search(r"docs/\w+\.md", text)
        assert selection in text and "\n" not in text and page is not None
        assert (Path(__file__).parents[2] / page[0]).is_file()
