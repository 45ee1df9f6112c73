from __future__ import annotations

import copy
import math

import pytest
import torch
from fake_cuda import fake_cuda

from pcm_rl.algos import ChunkGRPOLoss, PCMSampler
from pcm_rl.algos.update import grpo_update

LENGTHS, SUCCESS, GROUP = [5, 2, 7, 3], [1, 0, 1, 0], [0, 0, 0, 0]


def updated(policy, batch, **options):
    learner = copy.deepcopy(policy)
    loss = ChunkGRPOLoss(learner, entropy_coeff=1e-3)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    metrics = grpo_update(loss, optimizer, batch, generator=torch.Generator().manual_seed(0), **options)
    return metrics, [p.detach() for p in learner.parameters()]


@pytest.mark.parametrize("micro_rows", [1, 3, 100])
@pytest.mark.parametrize("minibatches", [1, 3])
def test_micro_batches_change_nothing(policy, make_batch, micro_rows, minibatches):
    batch = PCMSampler(4)(make_batch(policy, LENGTHS, SUCCESS, GROUP))
    whole, expected = updated(policy, batch, minibatches=minibatches)
    metrics, parameters = updated(policy, batch, minibatches=minibatches, micro_rows=micro_rows)
    for a, b in zip(parameters, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert set(metrics) == {
        "loss",
        "grad_norm",
        "max_ratio",
        "entropy",
        "clip_fraction",
        "kl_approx",
        "kl_acting",
        "mean_ratio",
    }
    assert metrics == pytest.approx(whole, abs=1e-9)


def test_more_minibatches_than_rows_and_no_rows(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    metrics, _ = updated(policy, batch[:2], minibatches=10)
    assert metrics["mean_ratio"] == pytest.approx(1.0, abs=0.5)
    assert updated(policy, batch[:0])[0] == {}


def test_gradient_is_clipped(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    before = [p.detach().clone() for p in policy.parameters()]
    metrics, after = updated(policy, batch, minibatches=1, grad_clip=1e-3)
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).norm()
    assert metrics["grad_norm"] > 1e-3
    assert float(moved) == pytest.approx(0.5 * 1e-3, rel=1e-3)


def test_nan_stops_with_the_episode_named_and_leaves_the_policy(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    row = int((batch["episode_id"] == 2).nonzero()[0])
    batch["vla_action", "log_probs"][row, 0, 0] = torch.nan
    learner = copy.deepcopy(policy)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    with pytest.raises(FloatingPointError, match="episode 2"):
        grpo_update(ChunkGRPOLoss(learner), optimizer, batch, minibatches=1)
    for a, b in zip(learner.parameters(), policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_loss_that_is_no_mean_is_refused(policy, make_batch, reduction):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    loss = ChunkGRPOLoss(policy, reduction=reduction)
    with pytest.raises(ValueError, match=f"expected a loss with reduction='mean', got '{reduction}'"):
        grpo_update(loss, torch.optim.SGD(policy.parameters(), lr=0.5), batch)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"minibatches": 0}, "minibatches must be at least 1, got 0"),
        ({"micro_rows": 0}, "micro_rows must be at least 1, got 0"),
        ({"micro_tokens": 0}, "micro_tokens must be at least 1, got 0"),
        ({"micro_rows": 1, "micro_tokens": 9}, "give one of them"),
        ({"grad_clip": 0}, "grad_clip must be a positive number, got 0"),
        ({"grad_clip": -1.0}, "grad_clip must be a positive number"),
        ({"grad_clip": math.nan}, "grad_clip must be a positive number"),
    ],
)
def test_options_that_do_nothing_are_refused(policy, make_batch, options, text):
    with pytest.raises(ValueError, match=text):
        updated(policy, make_batch(policy, LENGTHS, SUCCESS, GROUP), **options)


def test_an_infinite_clip_clips_nothing(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    assert_equal = torch.testing.assert_close
    for a, b in zip(
        updated(policy, batch, grad_clip=math.inf)[1], updated(policy, batch, grad_clip=1e9)[1], strict=True
    ):
        assert_equal(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("key", ["action_is_pad", "advantage", ("vla_action", "log_probs")])
def test_a_missing_entry_is_named(policy, make_batch, key):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP).exclude(key)
    with pytest.raises(KeyError, match="the batch lacks"):
        updated(policy, batch)


def test_a_nan_without_an_episode_is_named_by_its_row(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP).exclude("episode_id")
    batch["vla_action", "log_probs"][3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"row [0-9]+ of a minibatch"):
        updated(policy, batch, minibatches=1)


def test_the_largest_ratio_is_of_executed_steps(policy, make_batch):
    """Micro-batches of padding alone, as the baseline that keeps padding has them, have no ratio."""
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    batch["vla_action", "log_probs"] += 0.5
    batch["action_is_pad"][8:] = True
    batch["advantage"][:] = 0.0  # the parameters stay
    metrics, _ = updated(policy, batch, minibatches=5, micro_rows=1)
    executed = ~batch["action_is_pad"].unsqueeze(-1).expand_as(batch["vla_action", "log_probs"])
    with torch.no_grad():
        ratio = (
            policy.get_dist(batch).log_prob(batch["vla_action", "tokens"]) - batch["vla_action", "log_probs"]
        ).exp()
    assert metrics["max_ratio"] < 0.7
    assert metrics["max_ratio"] == pytest.approx(float(ratio[executed].max()), rel=1e-2)
    batch["action_is_pad"][:] = True
    assert updated(policy, batch)[0]["max_ratio"] == 1.0


def test_rows_of_two_selections_have_the_mean_over_all_their_trajectories(policy, make_batch):
    """As if one selection had chosen them; budgets that keep all make the draws the same."""
    batch = make_batch(policy, [5, 2, 7, 3, 1, 1, 2, 1], [1, 0, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1])
    whole = PCMSampler(9)(batch)
    parts = [PCMSampler(9)(batch[batch["group_id"] == group]) for group in (0, 1)]
    _, expected = updated(policy, whole, minibatches=1)
    _, parameters = updated(policy, torch.cat(parts), minibatches=1)
    for a, b in zip(parameters, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("micro_rows", [None, 3])
def test_rows_of_two_selections_whose_weights_have_another_name(policy, make_batch, micro_rows):
    """Each micro-batch has the weights of the whole batch, wherever the loss reads them."""
    batch = make_batch(policy, [5, 2, 7, 3, 1, 1, 2, 1], [1, 0, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1])
    rows = torch.cat([PCMSampler(9)(batch[batch["group_id"] == group]) for group in (0, 1)])
    _, expected = updated(policy, rows, minibatches=1)
    learner = copy.deepcopy(policy)
    loss = ChunkGRPOLoss(learner, entropy_coeff=1e-3)
    loss.set_keys(weight="mine")
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    grpo_update(loss, optimizer, rows.rename_key_("weight", "mine"), minibatches=1, micro_rows=micro_rows)
    for a, b in zip(learner.parameters(), expected, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=0, atol=1e-7)


def test_a_micro_batch_does_not_wait_for_the_device(policy, make_batch):
    """To read one number back would, in every micro-batch; counted on the simulated device."""
    batch = PCMSampler(4)(make_batch(policy, LENGTHS, SUCCESS, GROUP))
    waits = []
    with fake_cuda() as log:
        learner = copy.deepcopy(policy).to("cuda")
        loss = ChunkGRPOLoss(learner)
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
        for micro_rows in (None, 1):
            log.clear()
            grpo_update(loss, optimizer, batch, minibatches=1, micro_rows=micro_rows)
            waits.append(log.total("sync"))
    assert waits[0] == waits[1] > 0
