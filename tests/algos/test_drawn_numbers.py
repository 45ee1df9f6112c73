"""A policy that draws numbers takes the place of one that draws tokens, everywhere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from pcm_rl.algos import ChunkGRPOLoss, PCMSampler, grpo_update
from pcm_rl.algos.sft import supervise
from pcm_rl.episodes import CHUNK, DENOISED, IS_PAD, LOG_PROBS, NOISY, STATE
from pcm_rl.policies.family import bins_of, lacks, log_probs_of

LENGTHS, SUCCESS, GROUP = [5, 2, 7, 3, 4, 6], [1, 0, 1, 0, 0, 1], [0, 0, 0, 9, 9, 9]


class Walk(nn.Module):
    """One random step from a number that it draws first: the least that a flow policy does."""

    chunk_size, action_dim = 4, 3
    in_keys, out_keys = [STATE], [NOISY, DENOISED, CHUNK, LOG_PROBS]
    drawn_key, dist_keys = DENOISED, [STATE, NOISY]

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 12)

    def get_dist(self, rows):
        return Normal(self.layer(rows[STATE]).unflatten(-1, (4, 3)) + rows[NOISY], 0.5)

    def forward(self, rows):
        noisy = torch.randn(len(rows), 4, 3, dtype=self.layer.weight.dtype)
        dist = self.get_dist(rows.set(NOISY, noisy))
        drawn = dist.sample()
        return rows.update({DENOISED: drawn, CHUNK: drawn.tanh(), LOG_PROBS: dist.log_prob(drawn)})

    def imitation_loss(self, rows, generator=None):
        chunk, executed = rows[CHUNK].masked_fill(rows[IS_PAD].unsqueeze(-1), 0.0), ~rows[IS_PAD]
        noise = torch.randn(chunk.shape, generator=generator, dtype=chunk.dtype)
        gap = self.layer(rows[STATE]).unflatten(-1, (4, 3)) - chunk + 0.01 * noise
        return gap[executed].square().mean()


@pytest.fixture
def walk() -> Walk:
    torch.manual_seed(0)
    return Walk().double()


@pytest.fixture
def rows(walk, make_batch, policy):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    torch.manual_seed(1)
    return walk(batch.exclude("vla_action").set("phase", batch["phase"]))


def objective(loss, rows):
    loss.zero_grad()
    value = loss(rows)["loss_objective"]
    value.backward()
    return value.detach(), [p.grad.clone() for p in loss.parameters()]


def test_it_lacks_nothing_and_says_what_another_lacks(walk):
    assert lacks(walk) == [] and bins_of(walk) is None
    assert lacks(nn.Linear(1, 1)) == ["in_keys", "out_keys", "chunk_size", "action_dim", "action_tokenizer", "get_dist"]
    half = copy.copy(walk)
    half.__class__ = type("Half", (nn.Module,), {"drawn_key": DENOISED})
    assert "imitation_loss" in lacks(half) and "action_tokenizer" not in lacks(half)


def test_recomputed_log_probs_are_those_recorded(walk, rows):
    assert torch.equal(log_probs_of(walk, rows), rows[LOG_PROBS])
    out = ChunkGRPOLoss(walk)(rows)
    assert out["mean_ratio"] == 1.0 and out["clip_fraction"] == 0.0


@pytest.mark.parametrize("ratio", ["token", "step", "chunk"])
def test_any_split_gives_the_same_gradient_and_padding_none(walk, rows, ratio):
    for parameter in walk.parameters():
        parameter.data += 0.05
    rows = rows.set("weight", torch.rand(len(rows), dtype=torch.float64))
    whole = objective(ChunkGRPOLoss(walk, ratio=ratio, functional=False), rows)
    spoiled = rows.clone()
    spoiled[DENOISED] = rows[DENOISED].masked_fill(rows[IS_PAD].unsqueeze(-1), torch.nan)
    spoiled[LOG_PROBS] = rows[LOG_PROBS].masked_fill(rows[IS_PAD].unsqueeze(-1), torch.nan)
    loss = ChunkGRPOLoss(walk, ratio=ratio, functional=False)
    split = [objective(loss, part) for part in spoiled.split(4)]
    share = [len(part) / len(rows) for part in rows.split(4)]
    torch.testing.assert_close(sum(s * v for s, (v, _) in zip(share, split, strict=True)), whole[0])
    for i, grad in enumerate(whole[1]):
        torch.testing.assert_close(sum(s * g[i] for s, (_, g) in zip(share, split, strict=True)), grad)


@pytest.mark.parametrize("ratio", ["token", "step", "chunk"])
def test_a_budget_that_takes_all_chunks_is_full_grpo(walk, rows, ratio):
    for parameter in walk.parameters():
        parameter.data += 0.05
    loss = ChunkGRPOLoss(walk, ratio=ratio)
    kept, every = (objective(loss, PCMSampler(budget=99, selection=s)(rows.clone())) for s in ("pcm", "none"))
    torch.testing.assert_close(kept[0], every[0])
    torch.testing.assert_close(kept[1], every[1])


def test_the_update_and_the_supervised_start_train_it(walk, rows):
    before = walk.layer.weight.clone()
    loss = ChunkGRPOLoss(walk, functional=False, ratio="step")
    metrics = grpo_update(loss, torch.optim.SGD(walk.parameters(), 0.1), rows, minibatches=2)
    assert not torch.equal(walk.layer.weight, before) and metrics["max_ratio"] > 1.0
    rows[CHUNK] = rows[CHUNK].masked_fill(rows[IS_PAD].unsqueeze(-1), torch.nan)
    losses = [supervise(copy.deepcopy(walk), rows, steps=3, generator=torch.Generator().manual_seed(s)) for s in (0, 0)]
    assert losses[0] == losses[1] and losses[0][0] == losses[0][0]


def test_a_bonus_on_an_entropy_that_is_fixed_is_refused(walk, rows):
    with pytest.raises(ValueError, match=r"entropy_coeff=0\.01 means nothing for Walk"):
        ChunkGRPOLoss(walk, entropy_coeff=0.01)(rows)


def test_the_loss_reads_what_the_distribution_needs(walk):
    assert {NOISY, DENOISED, STATE} <= set(ChunkGRPOLoss(walk).in_keys)
    loss = ChunkGRPOLoss(walk)
    loss.set_keys(tokens=("elsewhere", "drawn"))
    assert ("elsewhere", "drawn") in loss.in_keys and DENOISED not in loss.in_keys
    with pytest.raises(ValueError, match="token, step, chunk"):
        ChunkGRPOLoss(walk, ratio="row")
