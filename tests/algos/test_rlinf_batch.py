"""RLinf's batch trimmed: the gradient of its masked objective on all rows is that of the rows that count."""

from __future__ import annotations

import pytest
import torch
from conftest import ACTION_DIM, BINS, LENGTH, STATE_DIM
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.algos import ChunkGRPOLoss, LabelPhases, PCMSampler
from pcm_rl.algos.rlinf_batch import rlinf_batch, rlinf_rows
from pcm_rl.algos.shares import SHARE, choose_rows
from pcm_rl.selection import trajectory_weights

STEPS, ENVS, GROUP_SIZE, LONGEST = 5, 9, 3, 5 * LENGTH
# executed steps of each environment; the last group only fails
ENDS = [7, 20, 3, 12, 9, 20, 20, 20, 20]
WON = [1, 0, 1, 1, 1, 0, 0, 0, 0]
CLIP = (0.2, 0.28)
OPTIONS = {"group_size": GROUP_SIZE, "action_dim": ACTION_DIM}


def rollout(policy, *, chunk_mask: bool = False, sums: bool = True) -> dict:
    """What RLinf's actor holds before ``run_training``, as its ``compute_loss_mask`` and reward filter leave it."""
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(STEPS, ENVS, STATE_DIM, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        acted = policy(TensorDict({"observation": {"state": states.flatten(0, 1)}}, [STEPS * ENVS]))
    old = acted["vla_action", "log_probs"].view(STEPS, ENVS, -1)
    old = old + 0.3 * torch.randn(old.shape, generator=generator, dtype=old.dtype)  # some ratios are clipped
    ends, won = torch.tensor(ENDS), torch.tensor(WON, dtype=torch.bool)
    time = torch.arange(LONGEST).view(STEPS, 1, LENGTH)
    executed = (time < ends.view(1, -1, 1)).expand(STEPS, ENVS, LENGTH)
    mask, total = executed.clone(), executed.sum((0, 2), keepdim=True).expand(STEPS, ENVS, LENGTH)
    if chunk_mask:
        mask, total = mask.any(-1, keepdim=True), total[..., -1:]
    mixed = torch.tensor([True, True, False]).repeat_interleave(GROUP_SIZE)
    credit = torch.randn(ENVS, generator=generator, dtype=torch.float64)
    dones = torch.zeros(STEPS + 1, ENVS, LENGTH, dtype=torch.bool)
    dones[1:] = time == (ends - 1).view(1, -1, 1)
    return {
        "prev_logprobs": old,
        "prev_values": torch.arange((STEPS + 1) * ENVS).view(STEPS + 1, ENVS, 1).double(),
        "advantages": credit.view(1, -1, 1) * mask,
        "loss_mask": mask & mixed.view(1, -1, 1),
        "loss_mask_sum": total if sums else None,
        "dones": dones,
        "terminations": dones & won.view(1, -1, 1),
        "rewards": (dones & won.view(1, -1, 1))[1:].double(),
        "forward_inputs": {
            "state": states,
            "action_tokens": acted["vla_action", "tokens"].view(STEPS, ENVS, LENGTH, ACTION_DIM),
        },
        "model_weights_id": "some text",
    }


def masked_objective(policy, batch: dict, micro: Tensor | None = None) -> Tensor:
    """RLinf's clipped loss (``losses.py``, ``utils.py`` of 0.3.0) on all rows, written down again in float64."""
    state, tokens = (batch["forward_inputs"][key].flatten(0, 1) for key in ("state", "action_tokens"))
    rows = len(state)
    new = policy.get_dist(TensorDict({"observation": {"state": state}}, [rows])).log_prob(tokens)
    old = batch["prev_logprobs"].view(-1, LENGTH, ACTION_DIM)
    mask, credit = (batch[key].flatten(0, 1).unsqueeze(-1) for key in ("loss_mask", "advantages"))
    ratio = (new - old).exp()
    loss = torch.max(-credit * ratio, -credit * ratio.clamp(1 - CLIP[0], 1 + CLIP[1]))
    if batch["loss_mask_sum"] is not None:
        return (loss / (batch["loss_mask_sum"].flatten(0, 1).unsqueeze(-1) / LONGEST) * mask).mean()
    micro = torch.zeros(rows, dtype=torch.int64) if micro is None else micro
    parts = [
        (loss * mask)[micro == number].sum() / mask[micro == number].sum().clamp_min(1) for number in micro.unique()
    ]
    return torch.stack(parts).mean()


def gradient(policy, objective: Tensor) -> Tensor:
    parts = torch.autograd.grad(objective, [*policy.parameters()], retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def trimmed(policy, batch: dict, sampler: PCMSampler | None = None, **options) -> TensorDict:
    options = {"max_episode_steps": LONGEST, **OPTIONS, **options}
    rows = LabelPhases(close_above=BINS / 2)(rlinf_rows(batch, **options))
    return choose_rows(rows, sampler or PCMSampler(selection="none"))


def loss_of(policy, rows: TensorDict) -> Tensor:
    exact = rows[SHARE] * len(rows)
    torch.testing.assert_close(rows["weight"], exact.float(), rtol=0, atol=0)
    rows = rows.copy().update({"observation": {"state": rows["forward_inputs", "state"]}, "weight": exact})
    return ChunkGRPOLoss(policy, clip_epsilon=CLIP, functional=False)(rows)["loss_objective"]


@pytest.mark.parametrize("chunk_mask", [False, True], ids=["a mask each step", "each chunk"])
@pytest.mark.parametrize("sums", [True, False], ids=["loss_mask_sum", "token-mean"])
@pytest.mark.parametrize("micro_size", [None, 8])
def test_the_gradient_is_that_of_all_rows(policy, chunk_mask, sums, micro_size):
    batch = rollout(policy, chunk_mask=chunk_mask, sums=sums)
    micro = None
    if micro_size is not None:
        micro = torch.randperm(STEPS * ENVS, generator=torch.Generator().manual_seed(0)) // micro_size
    kept = trimmed(policy, batch, micro_batches=micro)
    assert len(kept) == int(batch["loss_mask"].any(-1).sum()) < STEPS * ENVS
    expected = masked_objective(policy, batch, micro)
    torch.testing.assert_close(loss_of(policy, kept), expected)
    torch.testing.assert_close(gradient(policy, loss_of(policy, kept)), gradient(policy, expected))
    assert float(gradient(policy, expected).abs().max()) > 1e-3


def test_rows_are_those_of_their_place(policy):
    batch = rollout(policy)
    kept = trimmed(policy, batch)
    step, env = kept["chunk_id"], kept["episode_id"]
    assert torch.equal(kept["prev_values"], batch["prev_values"][step, env])
    assert torch.equal(kept["forward_inputs", "state"], batch["forward_inputs"]["state"][step, env])
    assert torch.equal(~kept["action_is_pad"], batch["loss_mask"][step, env])
    assert kept["success"].tolist() == [bool(WON[i]) for i in env.tolist()]
    assert torch.equal(kept["group_id"], env // GROUP_SIZE) and set(env.tolist()) == {0, 1, 2, 3, 4, 5}
    assert not {"dones", "model_weights_id"} & set(kept.keys())


@pytest.mark.parametrize("selection", ["pcm", "random", "top-phase", "top-advantage"])
def test_a_choice_has_the_weights_of_its_rule(policy, selection):
    """The objective with ``loss_mask_sum`` is a mean over trajectories, so the weights are ours but for one factor."""
    batch = rollout(policy)
    rows = LabelPhases(close_above=BINS / 2)(rlinf_rows(batch, max_episode_steps=LONGEST, **OPTIONS))
    kept = choose_rows(rows, PCMSampler(2, selection=selection, seed=3))
    ours = PCMSampler(2, selection=selection, seed=3)(rows)
    assert torch.equal(kept["chunk_id"], ours["chunk_id"]) and len(kept) < len(rows)
    episodes = 6 / ENVS  # of the filtered group nothing is left, but it counts in RLinf's mean
    torch.testing.assert_close(kept["weight"], ours["weight"] * episodes)


def test_a_trajectorys_kept_rows_share_what_it_had(policy):
    batch = rollout(policy, sums=False)
    full, kept = trimmed(policy, batch), trimmed(policy, batch, PCMSampler(2))
    shares = [
        torch.zeros(ENVS, dtype=torch.float64).index_add_(0, rows["episode_id"], rows[SHARE]) for rows in (full, kept)
    ]
    torch.testing.assert_close(shares[1], shares[0])
    assert not torch.allclose(kept["weight"], trajectory_weights(kept["episode_id"], ~kept["action_is_pad"]))


@pytest.mark.parametrize("chunk_mask", [False, True], ids=["a mask each step", "each chunk"])
@pytest.mark.parametrize("sums", [True, False], ids=["loss_mask_sum", "token-mean"])
def test_its_own_loss_takes_the_weights(policy, chunk_mask, sums):
    batch = rollout(policy, chunk_mask=chunk_mask, sums=sums)
    expected = gradient(policy, masked_objective(policy, batch))
    back = rlinf_batch(trimmed(policy, batch), max_episode_steps=LONGEST, multiple_of=16)
    total = len(back["prev_logprobs"])
    assert total % 16 == 0 and back["prev_logprobs"].shape == (total, 1, LENGTH * ACTION_DIM)
    assert back["prev_values"].shape == (total + 1, 1, 1) and back["loss_mask"].dtype == torch.bool
    torch.testing.assert_close(gradient(policy, masked_objective(policy, back)), expected, rtol=1e-5, atol=1e-8)
    more = rlinf_batch(trimmed(policy, batch), max_episode_steps=LONGEST, at_least=40)
    assert len(more["loss_mask"]) == 40 and not more["loss_mask"][-1].any()
    torch.testing.assert_close(gradient(policy, masked_objective(policy, more)), expected, rtol=1e-5, atol=1e-8)


def test_other_advantages_reach_its_loss(policy):
    """A clipped objective is proportional to its advantage."""
    batch = rollout(policy)
    rows = LabelPhases(close_above=BINS / 2)(rlinf_rows(batch, max_episode_steps=LONGEST, **OPTIONS))
    rows["advantage"] = 2 * rows["advantage"]
    back = rlinf_batch(choose_rows(rows, PCMSampler(selection="none")), max_episode_steps=LONGEST)
    expected = 2 * gradient(policy, masked_objective(policy, batch))
    torch.testing.assert_close(gradient(policy, masked_objective(policy, back)), expected, rtol=1e-5, atol=1e-8)


def test_without_a_mask_all_rows_count(policy):
    """As with ``ignore_terminations: True`` and no filter; then nobody but the caller knows the outcomes."""
    batch = rollout(policy, sums=False)
    everything = torch.ones(STEPS, ENVS, 1, dtype=torch.bool)
    batch["advantages"] = torch.randn(1, ENVS, 1, dtype=torch.float64).expand(STEPS, ENVS, LENGTH)
    batch["dones"] = torch.zeros_like(batch["dones"])
    expected = gradient(policy, masked_objective(policy, {**batch, "loss_mask": everything.expand(-1, -1, LENGTH)}))
    batch["loss_mask"] = None
    with pytest.raises(ValueError, match="give success="):
        trimmed(policy, {**batch, "terminations": batch["dones"]})
    kept = trimmed(policy, batch, success=torch.tensor(WON))
    assert len(kept) == STEPS * ENVS and kept[kept["episode_id"] == 2]["success"].all()
    # of all elements, and not of the mask's: without one its mean divides by D as well
    torch.testing.assert_close(gradient(policy, loss_of(policy, kept)), expected / ACTION_DIM)
    back = rlinf_batch(kept, max_episode_steps=LONGEST)
    torch.testing.assert_close(
        gradient(policy, masked_objective(policy, back)), expected / ACTION_DIM, rtol=1e-5, atol=1e-8
    )


def test_when_the_filter_leaves_nothing(policy):
    batch = rollout(policy)
    batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
    kept = trimmed(policy, batch, PCMSampler(2))
    assert len(kept) == 0 and kept["weight"].shape == (0,)
    with pytest.raises(ValueError, match="no rows to train on"):
        rlinf_batch(kept, max_episode_steps=LONGEST)


def test_its_value_loss_takes_the_weights(policy):
    pytest.importorskip("ray")
    pytest.importorskip("rlinf")
    from rlinf.algorithms.losses import compute_ppo_critic_loss

    batch = rollout(policy, chunk_mask=True)
    batch["returns"] = torch.randn(STEPS, ENVS, 1, dtype=torch.float64)
    weights = torch.randn(STATE_DIM, dtype=torch.float64, requires_grad=True)

    def its_gradient(batch: dict) -> Tensor:
        batch = {**batch, "prev_values": batch["prev_values"][:-1]}
        flat = {key: batch[key].flatten() for key in ("returns", "prev_values", "loss_mask", "loss_mask_sum")}
        loss, _ = compute_ppo_critic_loss(
            values=batch["forward_inputs"]["state"].flatten(0, 1) @ weights, value_clip=0.2, huber_delta=10.0,
            max_episode_steps=LONGEST, **flat,
        )  # fmt: skip
        return torch.autograd.grad(loss, weights)[0]

    back = rlinf_batch(trimmed(policy, batch), max_episode_steps=LONGEST, multiple_of=8)
    torch.testing.assert_close(its_gradient(back), its_gradient(batch), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sums", [True, False], ids=["loss_mask_sum", "token-mean"])
@pytest.mark.parametrize("reward_type", ["action_level", "chunk_level"])
@pytest.mark.parametrize("logprob_type", ["token_level", "action_level", "chunk_level"])
def test_with_rlinf_itself(policy, sums, reward_type, logprob_type):
    """Its masks, its filter, its advantages and its loss, of both batches; needs its wheel (and Ray, to import it)."""
    pytest.importorskip("ray")
    pytest.importorskip("rlinf")
    from rlinf.algorithms.registry import calculate_adv_and_returns, policy_loss
    from rlinf.utils.utils import flatten_embodied_batch, preprocess_embodied_batch

    if logprob_type == "chunk_level" and reward_type == "action_level":
        pytest.skip("shapes that its loss does not take")
    batch = rollout(policy, sums=sums)
    batch = {key: batch[key] for key in ("prev_logprobs", "dones", "terminations", "rewards", "forward_inputs")}
    levels = {"reward_type": reward_type, "group_size": GROUP_SIZE}
    batch = preprocess_embodied_batch(
        batch, rollout_epoch=1, auto_reset=False, ignore_terminations=False, filter_rewards=True,
        rewards_lower_bound=0.1, rewards_upper_bound=0.9, **levels,
    )  # fmt: skip
    if not sums:
        batch.pop("loss_mask_sum")
    keys = ("rewards", "dones", "loss_mask", "loss_mask_sum")
    # its scores are float32
    given = {key: batch[key].float() if key == "rewards" else batch.get(key) for key in keys}
    batch |= calculate_adv_and_returns(task_type="embodied", adv_type="grpo", values=None, **given, **levels)

    def its_gradient(batch: dict) -> Tensor:
        rows = batch["prev_logprobs"].shape[0] * batch["prev_logprobs"].shape[1]
        flat = flatten_embodied_batch(batch, torch.randperm(rows, generator=torch.Generator().manual_seed(0)))
        seen = TensorDict({"observation": {"state": flat["forward_inputs"]["state"]}}, [rows])
        new = policy.get_dist(seen).log_prob(flat["forward_inputs"]["action_tokens"])
        loss, _ = policy_loss(
            task_type="embodied", loss_type="actor", logprob_type=logprob_type, reward_type=reward_type,
            single_action_dim=ACTION_DIM, logprobs=new.float().flatten(1), old_logprobs=flat["prev_logprobs"].float(),
            advantages=flat["advantages"].float(), loss_mask=flat["loss_mask"],
            loss_mask_sum=flat.get("loss_mask_sum"), max_episode_steps=LONGEST, clip_ratio_low=CLIP[0],
            clip_ratio_high=CLIP[1],
        )  # fmt: skip
        return gradient(policy, loss)

    kept = trimmed(policy, batch, logprob_type=logprob_type)
    assert len(kept) < STEPS * ENVS
    back = rlinf_batch(kept, max_episode_steps=LONGEST, multiple_of=8)
    torch.testing.assert_close(its_gradient(back), its_gradient(batch), rtol=1e-4, atol=1e-6)
    assert float(its_gradient(batch).abs().max()) > 1e-3


def test_what_it_refuses(policy):
    batch = rollout(policy)

    def refused(message: str, error=ValueError, **changes) -> None:
        options = {key: changes.pop(key) for key in ("group_size", "action_dim", "logprob_type") if key in changes}
        with pytest.raises(error, match=message):
            rlinf_rows({**batch, **changes}, max_episode_steps=LONGEST, **{**OPTIONS, **options})

    refused("lacks the tensor 'prev_logprobs'", KeyError, prev_logprobs=None)
    refused("no multiple of action_dim=5", action_dim=5)
    refused("no multiple of group_size=4", group_size=4)
    refused("loss_mask must be bool", loss_mask=batch["loss_mask"].int())
    refused("environment 2 was done before chunk step 1", loss_mask=torch.ones_like(batch["loss_mask"]))
    refused("one loss mask a chunk", logprob_type="chunk_level")
    refused("logprob_type must be one of", logprob_type="token")
    refused("a chunk has advantages from", advantages=torch.rand(STEPS, ENVS, LENGTH))
    refused("no episode terminated", terminations=torch.zeros_like(batch["dones"]))
    refused("give actions=", forward_inputs={})
    with pytest.raises(ValueError, match="no rows to train on"):
        rlinf_batch(trimmed(policy, batch)[:0], max_episode_steps=LONGEST)
    with pytest.raises(KeyError, match="weight"):
        rlinf_batch(rlinf_rows(batch, max_episode_steps=LONGEST, **OPTIONS), max_episode_steps=LONGEST)
