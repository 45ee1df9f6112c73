from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from pcm_rl.algos.credit import outcome_credit
from pcm_rl.algos.critic import SuccessCritic
from pcm_rl.algos.critic_credit import critic_credit
from pcm_rl.config import ConfigError, load_config
from pcm_rl.episodes import OUTCOME
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.training.grpo import GRPO

LENGTHS, WON, GROUPS = [3, 2, 4, 1], [True, False, True, True], [0, 0, 1, 1]  # group 1 has one outcome


def episodes(group: list[int] = GROUPS) -> TensorDict:
    episode = torch.arange(4).repeat_interleave(torch.tensor(LENGTHS))
    chunk = torch.cat([torch.arange(n) for n in LENGTHS])
    state = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    entries = {("observation", "state"): state, "success": torch.tensor(WON)[episode], "chunk_id": chunk}
    entries |= {"episode_id": episode, "group_id": torch.tensor(group)[episode]}
    return TensorDict(entries, batch_size=[10])


def fitted(**options: float) -> SuccessCritic:
    critic = SuccessCritic(2, 4, steps=3, **options)
    critic.fit(episodes())
    return critic


def constant(critic: SuccessCritic, chance: float) -> SuccessCritic:
    last = list(critic.net)[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, torch.tensor(chance).logit().item())
    return critic


def test_lambda_1_and_a_constant_value_are_reinforce_without_groups() -> None:
    rows = episodes()
    credit = critic_credit(constant(fitted(lam=1.0), 0.3), scale=2.0)
    expected = [2.0 * (float(won) - 0.3) for won, n in zip(WON, LENGTHS, strict=True) for _ in range(n)]
    assert credit.advantage(rows).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_constant_scale_keeps_units_and_none_makes_the_standard_deviation_1() -> None:
    critic, rows = fitted(), episodes()
    change = critic.advantage(rows)
    assert torch.equal(critic_credit(critic, scale=10.0).advantage(rows), change * 10.0)
    scaled = critic_credit(critic, scale=None).advantage(rows)
    assert float(scaled.std()) == pytest.approx(1.0) and torch.equal(scaled.sign(), change.sign())


def test_groups_of_one_outcome_have_credit_if_they_may() -> None:
    critic, rows = fitted(), episodes()
    mixed = outcome_credit(rows) != 0
    assert mixed.tolist() == [True] * 5 + [False] * 5
    assert critic_credit(critic).advantage(rows)[~mixed].all()
    only = critic_credit(critic, scale=None, every_group=False).advantage(rows)
    assert not only[~mixed].any() and float(only[mixed].std()) == pytest.approx(1.0)


def test_before_its_first_batch_it_is_equation_1_of_groups_or_of_the_batch() -> None:
    critic = SuccessCritic(2, 4)
    rows = episodes()
    credit = critic_credit(critic)
    assert not credit.ready() and torch.equal(credit.advantage(rows), outcome_credit(rows))
    alone, one = episodes([5, 6, 7, 8]), episodes([0] * 4)
    assert torch.equal(credit.advantage(alone), outcome_credit(one)) and credit.advantage(alone).all()
    assert not critic_credit(critic, every_group=False).advantage(alone).any()
    credit.fit(rows)
    assert credit.ready()
    torch.testing.assert_close(credit.value(rows[3:5]), critic(rows)[3:5])


def test_what_an_end_counts_as_replaces_the_outcome() -> None:
    rows = episodes()
    rows[OUTCOME] = torch.where(rows["episode_id"] == 1, 0.25, rows["success"].float())
    critic = constant(fitted(lam=1.0), 0.5)
    assert critic.advantage(rows)[3:5].tolist() == pytest.approx([-0.25, -0.25])
    critic.fit(rows)
    assert critic.memory.target[-7:-5].tolist() == [0.25, 0.25]
    for wrong in (float("nan"), -0.1, 1.5):
        with pytest.raises(ValueError, match=r"outcome must be a chance in \[0, 1\], got"):
            critic.fit(rows.clone().set(OUTCOME, torch.full((10,), wrong)))


CRITIC = ("advantage.name=critic", "selection.name=top-advantage", "groups=6", "env.num_envs=6")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("group_size=1",), "group_size must be at least 2, got 1: advantage.name=group"),
        (("group_size=0",), "group_size must be at least 1"),
        ((*CRITIC, "group_size=1", "advantage.every_group=false"), "takes 2 rollouts or more"),
        ((*CRITIC, "group_size=1", "selection.name=pcm"), "selection.name=pcm compares the successes of a group"),
        (("group_size=1", "advantage.name=tests.algos.test_critic:Counting"), "within groups of both outcomes only"),
    ],
)
def test_groups_of_one_where_something_compares_their_rollouts(overrides: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        config = load_config(None, overrides)
        GRPO(config, make_vector_env(config.env))


def test_every_rollout_alone_goes_through_the_update() -> None:
    config = load_config(None, [*CRITIC, "group_size=1"])
    grpo = GRPO(config, make_vector_env(config.env))
    rows = episodes([0, 1, 2, 3])
    rows["action_is_pad"] = torch.zeros(10, 8, dtype=torch.bool)
    grpo.credit = critic_credit(fitted())
    signal = grpo.write_advantage(rows)
    assert signal.all() and torch.equal(rows["advantage"], grpo.credit.advantage(rows))
    grpo.credit = critic_credit(fitted(), every_group=False)
    assert not grpo.write_advantage(rows).any() and not rows["advantage"].any()
