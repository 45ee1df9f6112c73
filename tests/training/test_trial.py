from __future__ import annotations

import pytest
import torch

from pcm_rl.training.trial import ROWS, check_sane, rows_at_hand


def optimizer_of(policy):
    optimizer = torch.optim.AdamW(policy.parameters())
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_a_sane_policy_passes_also_with_infinities_in_a_mask(policy, make_batch):
    rows = rows_at_hand(policy, make_batch(policy, [5, 9], [1, 0], [0, 0]))
    assert len(rows) == ROWS and not set(map(str, rows.keys())) & {"success", "phase"}
    policy.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_sane(3, policy, optimizer_of(policy), torch.nn.Linear(2, 1), rows)
    check_sane(3, policy, optimizer_of(policy), None, None)


@pytest.mark.parametrize(
    "what", ["of the policy", "of the critic", "of the optimiser", "a log-prob of the policy", "mask"]
)
def test_what_is_not_finite_is_named(policy, make_batch, what):
    rows = rows_at_hand(policy, make_batch(policy, [5, 9], [1, 0], [0, 0]))
    optimizer, critic = optimizer_of(policy), torch.nn.Linear(2, 1)
    with torch.no_grad():
        if what == "of the policy":
            next(policy.parameters())[0] = torch.inf
        elif what == "of the critic":
            critic.weight[0, 0] = torch.nan
        elif what == "of the optimiser":
            optimizer.state[next(policy.parameters())]["exp_avg_sq"][0] = torch.inf
        elif what == "mask":
            policy.register_buffer("mask", torch.tensor([0.0, torch.nan]))
        else:  # finite weights whose products are not
            for parameter in policy.parameters():
                parameter.mul_(1e200)
    with pytest.raises(FloatingPointError, match=f"after step 3 .*{what} is not finite|after step 3 {what}"):
        check_sane(3, policy, optimizer, critic, rows)
