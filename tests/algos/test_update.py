from __future__ import annotations

import copy

import pytest
import torch

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
    assert set(metrics) == {"loss", "grad_norm", "max_ratio", "entropy", "clip_fraction", "kl_approx", "mean_ratio"}
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
