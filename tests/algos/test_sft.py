from __future__ import annotations

import pytest
import torch

from pcm_rl.algos.sft import supervise, token_cross_entropy

LENGTHS, SUCCESS, GROUP = [5, 2, 7, 3], [1, 0, 1, 0], [0, 0, 0, 0]


def test_it_is_the_mean_over_executed_tokens(policy, make_batch):
    demos = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    log_prob = policy.get_dist(demos).log_prob(demos["vla_action", "tokens"]).detach()
    values = [
        -float(log_prob[row, step, dimension])
        for row in range(len(demos))
        for step in range(4)
        for dimension in range(3)
        if not demos["action_is_pad"][row, step]
    ]
    assert float(token_cross_entropy(policy, demos).detach()) == pytest.approx(sum(values) / len(values), rel=1e-9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -100.0])
def test_padded_steps_are_never_encoded(policy, make_batch, value):
    demos = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    expected = token_cross_entropy(policy, demos)
    demos["vla_action", "chunk"][demos["action_is_pad"]] = value
    assert torch.equal(token_cross_entropy(policy, demos), expected)


def test_the_fit_lowers_the_loss_and_stops_when_told(policy, make_batch):
    demos, calls = make_batch(policy, LENGTHS, SUCCESS, GROUP), []
    losses = supervise(
        policy, demos, steps=60, batch_size=8, lr=1e-2, generator=torch.Generator().manual_seed(0), stop_every=20,
        stop=lambda: calls.append(1) or len(calls) == 2,
    )  # fmt: skip
    assert len(losses) == 40 and len(calls) == 2
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": -1}, "steps must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"stop_every": 0}, "stop_every must be at least 1"),
    ],
)
def test_bad_options(policy, make_batch, options, text):
    with pytest.raises(ValueError, match=text):
        supervise(policy, make_batch(policy, LENGTHS, SUCCESS, GROUP), **options)


def test_demonstrations_that_do_not_fit(policy, make_batch):
    demos = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    with pytest.raises(ValueError, match="got no rows"):
        supervise(policy, demos[:0])
    with pytest.raises(KeyError, match="action_is_pad"):
        supervise(policy, demos.exclude("action_is_pad"))
    with pytest.raises(ValueError, match=r"have chunks \(2, 3\), the policy \(4, 3\)"):
        short = demos.exclude("action_is_pad", ("vla_action", "chunk"))
        short["vla_action", "chunk"] = demos["vla_action", "chunk"][:, :2]
        supervise(policy, short.set("action_is_pad", demos["action_is_pad"][:, :2]))
    demos["action_is_pad"][:] = True
    with pytest.raises(ValueError, match="expected demonstrations with executed steps"):
        supervise(policy, demos)
