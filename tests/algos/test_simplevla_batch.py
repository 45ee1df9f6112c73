"""SimpleVLA-RL's batch trimmed: the gradient of its objective on all slots is that of the executed chunks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ACTION_DIM, BINS, LENGTH, STATE_DIM
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.algos import ChunkGRPOLoss, LabelPhases, PCMSampler
from pcm_rl.algos.shares import SHARE, choose_rows
from pcm_rl.algos.simplevla_batch import simplevla_batch, simplevla_rows

SLOTS = 5
ENDS = [7, 20, 3, 12, 9, 20]
COUNT = len(ENDS)
CLIP = (0.2, 0.28)


def collected(policy) -> SimpleNamespace:
    """Its layout, before ``update_actor``: padded slots go on with the last state, masked log-probs are 0."""
    generator = torch.Generator().manual_seed(4)
    state = torch.randn(COUNT, SLOTS, STATE_DIM, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        acted = policy(TensorDict({"observation": {"state": state.flatten(0, 1)}}, [COUNT * SLOTS]))
    old = acted["vla_action", "log_probs"]
    old = (old + 0.3 * torch.randn(old.shape, generator=generator, dtype=old.dtype)).view(COUNT, -1)
    executed = torch.arange(SLOTS * LENGTH * ACTION_DIM) < ACTION_DIM * torch.tensor(ENDS).unsqueeze(-1)
    credit = torch.randn(COUNT, 1, generator=generator, dtype=torch.float64)
    batch = {
        "responses": acted["vla_action", "tokens"].view(COUNT, SLOTS, -1),
        "finish_step": torch.tensor(ENDS),
        "complete": torch.tensor([True, False, True, True, True, False]),
        "old_log_probs": old * executed,
        "advantages": credit * executed,
        "state": state,
        "acc": torch.zeros(COUNT),
    }
    uid = np.array(["b", "b", "b", "a", "a", "a"], dtype=object)
    return SimpleNamespace(batch=batch, non_tensor_batch={"uid": uid}, meta_info={})


def its_objective(policy, batch: dict) -> Tensor:
    """``update_policy`` of its actor, written down again: each trajectory is a micro-batch."""
    count, slots = batch["responses"].shape[:2]
    rows = TensorDict({"observation": {"state": batch["state"].flatten(0, 1)}}, [count * slots])
    tokens = batch["responses"].reshape(count * slots, LENGTH, ACTION_DIM)
    new = policy.get_dist(rows).log_prob(tokens).view(count, -1)
    mask = torch.arange(new.shape[1]) < ACTION_DIM * batch["finish_step"].unsqueeze(-1)
    ratio = (new - batch["old_log_probs"]).exp()
    loss = torch.max(-batch["advantages"] * ratio, -batch["advantages"] * ratio.clamp(1 - CLIP[0], 1 + CLIP[1]))
    return ((loss * mask).sum(-1) / mask.sum(-1)).mean()


def gradient(policy, objective: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(objective, [*policy.parameters()])])


def trimmed(data, sampler: PCMSampler | None = None) -> TensorDict:
    rows = LabelPhases(close_above=BINS / 2)(simplevla_rows(data, action_dim=ACTION_DIM))
    return choose_rows(rows, sampler or PCMSampler(selection="none"))


def loss_of(policy, rows: TensorDict) -> Tensor:
    rows = rows.copy().update({"observation": {"state": rows["state"]}, "weight": rows[SHARE] * len(rows)})
    return ChunkGRPOLoss(policy, clip_epsilon=CLIP, functional=False)(rows)["loss_objective"]


def test_the_gradient_is_that_of_all_slots(policy):
    data = collected(policy)
    kept = trimmed(data)
    assert len(kept) == sum(-(-end // LENGTH) for end in ENDS) < COUNT * SLOTS
    expected = gradient(policy, its_objective(policy, data.batch))
    torch.testing.assert_close(gradient(policy, loss_of(policy, kept)), expected)
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("selection", ["pcm", "top-advantage"])
def test_a_choice_has_the_weights_of_its_rule(policy, selection):
    """Its objective is a mean over trajectories, as ours is."""
    rows = LabelPhases(close_above=BINS / 2)(simplevla_rows(collected(policy), action_dim=ACTION_DIM))
    kept = choose_rows(rows, PCMSampler(2, selection=selection))
    ours = PCMSampler(2, selection=selection)(rows)
    assert torch.equal(kept["chunk_id"], ours["chunk_id"]) and len(kept) < len(rows)
    torch.testing.assert_close(kept["weight"], ours["weight"])


@pytest.mark.parametrize("sampler", [None, PCMSampler(2)], ids=["all", "pcm"])
@pytest.mark.parametrize("sizes", [(4, 1), (3, 4)])
def test_its_own_loss_takes_the_weights(policy, sampler, sizes):
    data = collected(policy)
    kept = trimmed(data, sampler)
    back = simplevla_batch(kept, slots=sizes[0], multiple_of=sizes[1])
    packed = len(back["responses"])
    assert packed % sizes[1] == 0 and back["old_log_probs"].shape == (packed, sizes[0] * LENGTH * ACTION_DIM)
    expected = gradient(policy, loss_of(policy, kept))
    torch.testing.assert_close(gradient(policy, its_objective(policy, back)), expected, rtol=1e-5, atol=1e-8)
    assert "acc" not in back and back["state"].shape == (packed, sizes[0], STATE_DIM)


def test_other_advantages_reach_its_loss(policy):
    """A clipped objective is proportional to its advantage."""
    data = collected(policy)
    kept = trimmed(data)
    kept["advantage"] = 2 * kept["advantage"]
    expected = 2 * gradient(policy, its_objective(policy, data.batch))
    back = simplevla_batch(kept, slots=4)
    torch.testing.assert_close(gradient(policy, its_objective(policy, back)), expected, rtol=1e-5, atol=1e-8)


def test_rows_are_those_of_their_place(policy):
    data = collected(policy)
    kept = trimmed(data)
    assert torch.equal(kept["state"], data.batch["state"][kept["episode_id"], kept["chunk_id"]])
    assert kept["group_id"].unique_consecutive().tolist() == [1, 0]
    assert torch.equal(kept["success"], data.batch["complete"][kept["episode_id"]])
    given = simplevla_rows(data.batch, action_dim=ACTION_DIM, groups=torch.tensor([1, 1, 1, 0, 0, 0]))
    assert torch.equal(given["group_id"], kept["group_id"])


def test_with_verls_data_proto(policy):
    pytest.importorskip("ray")  # verl's protocol imports it
    proto = pytest.importorskip("verl").DataProto
    data = collected(policy)
    given = proto.from_dict(tensors=data.batch, non_tensors=data.non_tensor_batch)
    kept = trimmed(given)
    assert bool((kept == trimmed(data)).all())
    back = proto.from_dict(tensors=simplevla_batch(kept, slots=4))
    expected = gradient(policy, its_objective(policy, data.batch))
    torch.testing.assert_close(gradient(policy, its_objective(policy, back.batch)), expected, rtol=1e-5, atol=1e-8)


def test_what_it_refuses(policy):
    data = collected(policy)

    def refused(message: str, error=ValueError, **changes) -> None:
        batch = {**data.batch, **{key: value for key, value in changes.items() if key != "actions"}}
        given = SimpleNamespace(batch=batch, non_tensor_batch=data.non_tensor_batch)
        with pytest.raises(error, match=message):
            simplevla_rows(given, action_dim=ACTION_DIM, actions=changes.get("actions"))

    refused("lacks the tensor 'finish_step'", KeyError, finish_step=None)
    refused("finish_step must be in 1..20, got 0 to 20", finish_step=torch.tensor([0, 20, 3, 12, 9, 20]))
    refused("responses must be", responses=data.batch["responses"][..., :-1])
    refused("actions must be", actions=torch.zeros(COUNT, SLOTS, LENGTH, 7))
    refused("complete must be binary", complete=torch.arange(COUNT))
    refused("a chunk has advantages from", advantages=torch.rand(COUNT, SLOTS * LENGTH * ACTION_DIM))
    with pytest.raises(KeyError, match="uid"):
        simplevla_rows(data.batch, action_dim=ACTION_DIM)
    with pytest.raises(ValueError, match="no rows to train on"):
        simplevla_batch(trimmed(data)[:0], slots=2)
