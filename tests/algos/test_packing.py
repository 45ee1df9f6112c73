"""Rows packed by their tokens: a partition within the budget, and the same gradient."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from pcm_rl.algos import ChunkGRPOLoss
from pcm_rl.algos.packing import micro_batches, pack_rows, row_tokens
from pcm_rl.algos.update import grpo_update

TEXTS = ["lift it", "put the bowl on the plate", "open the top drawer of the cabinet", "go", "push the red block away"]


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_a_partition_within_the_budget_longest_first(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 60, (40,), generator=generator)
    budget = 60 + 30 * seed
    groups = pack_rows(tokens, budget)
    assert sorted(torch.cat(groups).tolist()) == list(range(40))
    lengths = [tokens[group] for group in groups]
    assert torch.equal(torch.cat(lengths), tokens.sort(descending=True).values)
    for length in lengths:
        assert len(length) * int(length[0]) <= budget, "padded to the longest row"
    for length, behind in itertools.pairwise(lengths):
        assert (len(length) + 1) * int(length[0]) > budget, "filled as far as it goes"
        assert int(behind[0]) <= int(length[-1])


def test_packing_by_hand():
    groups = pack_rows(torch.tensor([3, 10, 5, 5, 2, 4]), 10)
    assert [group.tolist() for group in groups] == [[1], [2, 3], [5, 0], [4]]
    assert pack_rows(torch.tensor([], dtype=torch.int64), 10) == []
    assert [group.tolist() for group in pack_rows(torch.tensor([4, 4, 4]), 12)] == [[0, 1, 2]], "equal rows keep order"


def test_a_row_longer_than_the_budget():
    with pytest.raises(ValueError, match="expected micro_tokens of at least the longest row's 12 tokens, got 11"):
        pack_rows(torch.tensor([3, 12]), 11)


def test_micro_batches_split_the_rows_of_a_minibatch():
    rows = torch.tensor([4, 1, 3])
    tokens = torch.tensor([9, 2, 9, 7, 5])  # of the batch, not of the minibatch
    by_tokens = micro_batches(rows, micro_rows=None, tokens=tokens, budget=10)
    assert [piece.tolist() for piece in by_tokens] == [[3], [4, 1]]
    by_rows = micro_batches(rows, micro_rows=2, tokens=None, budget=None)
    assert [piece.tolist() for piece in by_rows] == [[4, 1], [3]]
    assert [piece.tolist() for piece in micro_batches(rows, micro_rows=None, tokens=None, budget=None)] == [[4, 1, 3]]


def updated(policy, batch, **options):
    learner = copy.deepcopy(policy)
    learner.model.requires_grad_()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.0)
    metrics = grpo_update(
        ChunkGRPOLoss(learner, entropy_coeff=1e-2, functional=False),
        optimizer,
        batch,
        minibatches=1,
        grad_clip=1e9,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    return metrics, {name: parameter.grad for name, parameter in learner.named_parameters()}


def test_the_gradient_does_not_depend_on_the_packing(make_openvla, record_openvla):
    policy = make_openvla()
    batch = record_openvla(policy, TEXTS)
    tokens = policy.row_tokens(batch)
    assert tokens.unique().numel() == len(TEXTS)
    whole, expected = updated(policy, batch)
    for budget in (int(tokens.max()), 2 * int(tokens.max()), int(tokens.sum())):
        metrics, gradients = updated(policy, batch, micro_tokens=budget)
        for name, value in expected.items():
            assert value.abs().sum() > 0, name
            torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-6, msg=name)
        for key in ("loss", "grad_norm"):
            assert metrics[key] == pytest.approx(whole[key], abs=1e-5)


def test_an_update_refuses_a_row_that_is_too_long(make_openvla, record_openvla):
    policy = make_openvla()
    batch = record_openvla(policy, TEXTS)
    with pytest.raises(ValueError, match="longest row's"):
        updated(policy, batch, micro_tokens=int(policy.row_tokens(batch).max()) - 1)


def test_a_policy_that_counts_no_tokens(policy, make_batch):
    batch = make_batch(policy, [3, 2], [1, 0], [0, 0])
    with pytest.raises(ValueError, match=r"StateTokenPolicy has no row_tokens\(batch\).*use update.micro_rows"):
        row_tokens(policy, batch)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    with pytest.raises(ValueError, match=r"update.micro_tokens says nothing"):
        grpo_update(ChunkGRPOLoss(policy), optimizer, batch, micro_tokens=100)
