from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import ClipPPOLoss

from pcm_rl import RULES
from pcm_rl.algos import ChunkGRPOLoss, PCMSampler
from pcm_rl.episodes import pad_episodes

LENGTHS, SUCCESS, GROUP = [5, 2, 7, 3, 4, 6], [1, 0, 1, 0, 0, 1], [0, 0, 0, 9, 9, 9]


@pytest.fixture
def moved(policy):
    """The policy a little away from the one that acted, so that ratios and clipping matter."""
    other = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return other


def gradients(loss, batch, key="loss_objective"):
    loss.zero_grad()
    out = loss(batch)
    out[key].backward()
    return out[key].detach(), [p.grad.clone() for p in loss.parameters() if p.grad is not None]


def assert_same(left, right, tolerance=1e-10):
    torch.testing.assert_close(left[0], right[0], rtol=0, atol=tolerance)
    assert len(left[1]) == len(right[1]) > 0
    for a, b in zip(left[1], right[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def full_grpo(policy, batch, low=0.2, high=0.4):
    """Mean over trajectories of the mean over executed tokens, with loops: the definition."""
    new = policy.get_dist(batch).log_prob(batch["vla_action", "tokens"])
    trajectories = []
    for episode in batch["episode_id"].unique():
        terms = []
        for row in (batch["episode_id"] == episode).nonzero().squeeze(-1):
            for step in range(new.shape[1]):
                if batch["action_is_pad"][row, step]:
                    continue
                rho = (new[row, step] - batch["vla_action", "log_probs"][row, step]).exp()
                a = batch["advantage"][row]
                terms.append(torch.minimum(rho * a, rho.clamp(1 - low, 1 + high) * a))
        trajectories.append(torch.cat(terms).mean())
    policy.zero_grad()
    objective = -torch.stack(trajectories).mean()
    objective.backward()
    return objective.detach(), [p.grad.clone() for p in policy.parameters()]


@pytest.mark.parametrize("selection", ["pcm", "random", "none"])
def test_budget_of_all_chunks_is_full_grpo(policy, moved, make_batch, selection):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    kept = PCMSampler(max(LENGTHS), selection=selection)(batch)
    kept["weight"] = kept["weight"].double()
    assert_same(gradients(ChunkGRPOLoss(moved), kept), full_grpo(copy.deepcopy(moved), batch), 1e-7)
    exact = exact_weights(kept)
    assert_same(gradients(ChunkGRPOLoss(moved), exact), full_grpo(copy.deepcopy(moved), batch))


def exact_weights(kept):
    """The same weights in float64: the schema's float32 would bound the comparison at 1e-8."""
    from pcm_rl.selection import trajectory_weights

    kept = kept.clone()
    valid = ~kept["action_is_pad"]
    _, trajectory = kept["episode_id"].unique(return_inverse=True)
    steps = valid.sum(-1).double()
    total = torch.zeros(int(trajectory.max()) + 1, dtype=torch.float64).index_add_(0, trajectory, steps)
    kept["weight"] = steps / total[trajectory] * len(kept) / (total > 0).sum()
    torch.testing.assert_close(kept["weight"].float(), trajectory_weights(kept["episode_id"], valid))
    return kept


def test_dropping_padding_is_masking_it(policy, moved, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    padded = pad_episodes(batch, 9)
    dropped = PCMSampler(99, selection="none", padding="drop")(padded)
    masked = PCMSampler(99, selection="none", padding="keep")(padded)
    assert len(dropped) == sum(LENGTHS) and len(masked) == 9 * len(LENGTHS)
    loss = ChunkGRPOLoss(moved)
    assert_same(gradients(loss, exact_weights(dropped)), gradients(loss, exact_weights(masked)))


@pytest.mark.parametrize("sizes", [[27], [1] * 27, [13, 14], [20, 6, 1]])
def test_any_split_gives_the_same_gradient(policy, moved, make_batch, sizes):
    batch = exact_weights(PCMSampler(99, selection="none")(make_batch(policy, LENGTHS, SUCCESS, GROUP)))
    loss = ChunkGRPOLoss(moved, entropy_coeff=1e-3)
    whole = gradients(loss, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    loss.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for rows in order.split(sizes):
        part = loss(batch[rows])["loss_objective"] * len(rows) / len(batch)
        part.backward()
        total += part.detach()
    assert_same((total, [p.grad for p in loss.parameters() if p.grad is not None]), whole)


def test_trimmed_equals_torchrls_masked_clip_ppo(policy, moved, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    batch["action_is_pad"][:] = False
    kept = PCMSampler(2)(batch)
    kept["weight"] = torch.ones(len(kept), dtype=torch.float64)  # the peer knows no trajectories: a flat mean

    mask = torch.zeros(len(batch), 1, dtype=torch.bool)
    for row in range(len(kept)):
        mask |= ((batch["episode_id"] == kept["episode_id"][row]) & (batch["chunk_id"] == kept["chunk_id"][row]))[
            :, None
        ]
    assert int(mask.sum()) == len(kept) == 12
    peer = ClipPPOLoss(moved, None, clip_epsilon=(0.2, 0.4), entropy_bonus=False)
    peer.set_keys(action=("vla_action", "tokens"), sample_log_prob=("vla_action", "log_probs"))
    for name, value in (("clip_epsilon_low", 0.2), ("clip_epsilon_high", 0.4)):  # its float32 buffers cost 1e-8
        peer.register_buffer(name, torch.tensor(value, dtype=torch.float64))
    masked = batch.clone()
    masked["collector", "mask"] = mask
    masked["advantage"] = masked["advantage"].unsqueeze(-1)
    assert_same(gradients(ChunkGRPOLoss(moved), kept), gradients(peer, masked), 1e-10)


def test_loss_and_diagnostics_against_numpy(policy, moved, make_batch):
    batch = PCMSampler(3)(make_batch(policy, LENGTHS, SUCCESS, GROUP))
    reference = torch.randn(batch["vla_action", "log_probs"].shape, dtype=torch.float64)
    batch["vla_action", "ref_log_probs"] = reference
    out = ChunkGRPOLoss(moved, entropy_coeff=0.01, kl_coeff=0.1)(batch)

    dist = moved.get_dist(batch)
    new = dist.log_prob(batch["vla_action", "tokens"]).detach().numpy()
    old = batch["vla_action", "log_probs"].numpy()
    mask = np.broadcast_to(~batch["action_is_pad"].numpy()[..., None], new.shape)
    ratio = np.exp(new - old)
    a = batch["advantage"].numpy()[:, None, None]
    gain = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.4) * a)
    gap = reference.numpy() - new
    weight = batch["weight"].numpy()

    def rows(value):
        return np.mean([w * v[m].mean() for v, m, w in zip(value, mask, weight, strict=True)])

    expected = {
        "loss_objective": -rows(gain),
        "loss_entropy": -0.01 * rows(dist.entropy().detach().numpy()),
        "loss_kl": 0.1 * rows(np.exp(gap) - gap - 1),
        "clip_fraction": ((ratio < 0.8) | (ratio > 1.4))[mask].mean(),
        "kl_approx": (ratio - 1 - np.log(ratio))[mask].mean(),
        "mean_ratio": ratio[mask].mean(),
        "max_ratio": ratio[mask].max(),
        "entropy": dist.entropy().detach().numpy()[mask].mean(),
    }
    assert set(out.keys()) == set(expected)
    for key, value in expected.items():
        assert float(out[key].detach()) == pytest.approx(value, rel=1e-6), key
    assert out["clip_fraction"] > 0


def test_ratio_is_one_before_the_first_update_and_not_after(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    loss = ChunkGRPOLoss(policy)
    before = loss(batch)
    assert float(before["max_ratio"]) == float(before["mean_ratio"]) == 1.0
    assert float(before["kl_approx"]) == float(before["clip_fraction"]) == 0.0
    before["loss_objective"].backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 0.1 * parameter.grad
    assert float(loss(batch)["max_ratio"].detach()) > 1.0


def test_groups_of_one_outcome_give_no_gradient(policy, moved, make_batch):
    batch = make_batch(policy, [3, 4, 2, 5], [1, 1, 0, 0], [0, 0, 1, 1])
    objective, grads = gradients(ChunkGRPOLoss(moved), batch)
    assert float(objective) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in grads)


def test_values_in_padded_steps_never_reach_a_gradient(policy, moved, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    loss = ChunkGRPOLoss(moved)
    clean = gradients(loss, batch)
    log_probs = batch["vla_action", "log_probs"]
    log_probs[batch["action_is_pad"]] = -1e30
    assert_same(clean, gradients(loss, batch), 0.0)


def test_keys_dispatch_and_sequence_log_probs(policy, moved, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    expected = ChunkGRPOLoss(moved)(batch)["loss_objective"].detach()

    loss = ChunkGRPOLoss(moved)
    renamed = batch.clone().rename_key_("advantage", "signal")
    loss.set_keys(advantage="signal")
    assert "signal" in loss.in_keys
    torch.testing.assert_close(loss(renamed)["loss_objective"].detach(), expected)

    out = ChunkGRPOLoss(moved)(
        observation_state=batch["observation", "state"],
        vla_action_tokens=batch["vla_action", "tokens"],
        vla_action_log_probs=batch["vla_action", "log_probs"],
        action_is_pad=batch["action_is_pad"],
        advantage=batch["advantage"],
    )
    torch.testing.assert_close(out[0].detach(), expected)

    moved.log_probs_mode = "sequence"  # an Independent distribution: the loss still works a token at a time
    torch.testing.assert_close(ChunkGRPOLoss(moved)(batch)["loss_objective"].detach(), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"clip_epsilon": 1.5}, "clip_epsilon"),
        ({"clip_epsilon": (0.2, 0.0)}, "clip_epsilon"),
        ({"entropy_coeff": -1.0}, "negative"),
        ({"reduction": "median"}, "unknown reduction"),
    ],
)
def test_bad_options(policy, options, text):
    with pytest.raises(ValueError, match=text):
        ChunkGRPOLoss(policy, **options)


def test_bad_shapes_and_actors(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    batch["action_is_pad"] = torch.zeros(len(batch), 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"is_pad \[M, L\]"):
        ChunkGRPOLoss(policy)(batch)
    with pytest.raises(ValueError, match="get_dist"):
        ChunkGRPOLoss(torch.nn.Linear(2, 2))


def test_calling_the_network_as_it_is_gives_the_same_gradient(make_openvla, record_openvla):
    network = make_openvla()
    network.model.requires_grad_()
    batch = record_openvla(network, ["lift it", "put the bowl on the plate", "go"])
    batch["vla_action", "log_probs"] += 0.1 * torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(3))
    found = []
    for functional in (True, False):
        network.zero_grad()
        out = ChunkGRPOLoss(network, entropy_coeff=1e-2, functional=functional)(batch)
        (out["loss_objective"] + out["loss_entropy"]).backward()
        found.append((out, {name: parameter.grad for name, parameter in network.named_parameters()}))
    (out, expected), (other, gradients) = found
    assert set(out.keys()) == set(other.keys()) and all(torch.equal(out[key], other[key]) for key in out.keys())
    assert set(gradients) == set(expected)
    for name, value in expected.items():
        assert value.abs().sum() > 0 and torch.equal(gradients[name], value), name


def test_no_rows_are_zero_with_a_word_and_no_gradient(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    loss = ChunkGRPOLoss(policy, entropy_coeff=0.1)
    with pytest.warns(UserWarning, match="the loss got no rows"):
        out = loss(batch[:0])
    assert {key: float(value.detach()) for key, value in out.items()} == {
        "loss_objective": 0.0, "loss_entropy": 0.0, "clip_fraction": 0.0, "kl_approx": 0.0, "mean_ratio": 0.0,
        "max_ratio": 1.0, "entropy": 0.0,
    }  # fmt: skip
    (out["loss_objective"] + out["loss_entropy"]).backward()
    assert not any(p.grad is not None and p.grad.any() for p in loss.parameters())


@pytest.mark.parametrize("shape", [(3, 4), (1, 27), (27, 4, 3), (27, 1, 1)])
@pytest.mark.parametrize("key", ["advantage", "weight"])
def test_advantage_and_weight_are_one_number_a_row(policy, make_batch, key, shape):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    batch["weight"] = batch["advantage"].clone()
    value = torch.ones(27, dtype=torch.float64).view(shape) if math.prod(shape) == 27 else torch.ones(shape)
    wrong = TensorDict({**batch, key: value}, batch_size=[])
    with pytest.raises(ValueError, match=rf"{key} must have shape \[27\] or \[27, 1\], one entry a row"):
        ChunkGRPOLoss(policy)(wrong)


@pytest.mark.parametrize("key", [("vla_action", "tokens"), ("vla_action", "log_probs"), "action_is_pad", "advantage"])
def test_a_missing_entry_is_named(policy, make_batch, key):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP).exclude(key)
    name = key if isinstance(key, str) else key[1]
    with pytest.raises(KeyError, match=rf"the batch lacks .*{name}"):
        ChunkGRPOLoss(policy)(batch)
    with pytest.raises(KeyError, match=r"the batch lacks .*ref_log_probs"):
        ChunkGRPOLoss(policy, kl_coeff=0.1)(make_batch(policy, LENGTHS, SUCCESS, GROUP))


def test_tokens_of_padded_steps_are_never_looked_up(policy, moved, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    loss = ChunkGRPOLoss(moved, entropy_coeff=1e-3)
    clean = gradients(loss, batch)
    batch["vla_action", "tokens"][batch["action_is_pad"]] = -100
    assert_same(clean, gradients(loss, batch), 0.0)
    batch["vla_action", "tokens"][batch["action_is_pad"]] = 10**6
    assert_same(clean, gradients(loss, batch), 0.0)


def test_the_largest_ratio_is_of_executed_steps(policy, make_batch):
    batch = make_batch(policy, LENGTHS, SUCCESS, GROUP)
    batch["vla_action", "log_probs"] += 0.5  # every ratio is below 1
    out = ChunkGRPOLoss(policy)(batch)
    assert float(out["max_ratio"]) == pytest.approx(math.exp(-0.5)) == pytest.approx(float(out["mean_ratio"]))


def test_the_weight_by_keyword_counts(policy, moved, make_batch):
    batch = PCMSampler(2)(make_batch(policy, LENGTHS, SUCCESS, GROUP))
    expected = ChunkGRPOLoss(moved)(batch)["loss_objective"].detach()
    tensors = {
        "observation_state": batch["observation", "state"],
        "vla_action_tokens": batch["vla_action", "tokens"],
        "vla_action_log_probs": batch["vla_action", "log_probs"],
        "action_is_pad": batch["action_is_pad"],
        "advantage": batch["advantage"],
    }
    for weight in (batch["weight"], batch["weight"].unsqueeze(-1)):
        assert torch.equal(ChunkGRPOLoss(moved)(**tensors, weight=weight)[0].detach(), expected)
        assert torch.equal(ChunkGRPOLoss(moved)(*tensors.values(), weight)[0].detach(), expected)
    assert not torch.equal(ChunkGRPOLoss(moved)(**tensors)[0].detach(), expected)
    loss = ChunkGRPOLoss(moved)
    loss.set_keys(weight="importance")
    assert torch.equal(loss(**tensors, importance=batch["weight"])[0].detach(), expected)
    assert "weight" not in loss.in_keys


@pytest.mark.parametrize("coefficient", [0.0, 1e-3])
def test_the_entropy_has_a_graph_only_where_it_is_used(policy, make_batch, monkeypatch, coefficient):
    graph = []
    entropy = torch.distributions.Categorical.entropy
    monkeypatch.setattr(
        torch.distributions.Categorical, "entropy", lambda d: graph.append(torch.is_grad_enabled()) or entropy(d)
    )
    out = ChunkGRPOLoss(policy, entropy_coeff=coefficient)(make_batch(policy, LENGTHS, SUCCESS, GROUP))
    assert graph == [coefficient > 0]
    assert not out["entropy"].requires_grad and float(out["entropy"]) > 0


@pytest.mark.parametrize("selection", RULES)
def test_all_of_it_is_all_of_it_whichever_rule_takes_it(policy, moved, make_batch, selection):
    """Also where a group has one outcome: one mean over trajectories for all rules."""
    batch = make_batch(policy, LENGTHS, [1, 0, 1, 1, 1, 1], GROUP)
    keep = {"top-phase": {"num_phases": 1}}.get(selection, {})
    if keep:
        batch["phase"][:] = 0
    kept = PCMSampler(max(LENGTHS), selection=selection, **keep)(batch)
    everything = gradients(ChunkGRPOLoss(moved), PCMSampler(1, selection="none")(batch))
    assert_same(gradients(ChunkGRPOLoss(moved), kept), everything, 1e-7)
    assert_same(everything, full_grpo(copy.deepcopy(moved), batch), 1e-7)
