from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.episodes import FEATURES
from pcm_rl.policies import StateTokenPolicy, calls_of, critic_input
from pcm_rl.policies.family import RecordsFeatures


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_shapes_and_recorded_log_probs(network):
    torch.manual_seed(0)
    policy = StateTokenPolicy(5, 3, 4, network=network, width=32, num_bins=6).double()
    batch = policy(TensorDict({"observation": {"state": torch.randn(7, 5).double()}}, [7]))
    tokens, chunk = batch["vla_action", "tokens"], batch["vla_action", "chunk"]
    assert tokens.shape == chunk.shape == batch["vla_action", "log_probs"].shape == (7, 4, 3)
    assert tokens.min() >= 0 and tokens.max() < 6
    torch.testing.assert_close(chunk, (-1 + (2 * tokens + 1) / 6).to(chunk.dtype))  # bin centres of [-1, 1]
    expected = torch.log_softmax(policy._action_logits(batch), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(batch["vla_action", "log_probs"], expected, rtol=0, atol=1e-12)


def test_sampling_by_default_and_the_mode_on_request():
    torch.manual_seed(0)
    policy = StateTokenPolicy(5, 3, 4, width=16)
    batch = TensorDict({"observation": {"state": torch.zeros(500, 5)}}, [500])
    assert policy(batch.clone())["vla_action", "tokens"].float().std(0).min() > 0
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert policy(batch.clone())["vla_action", "tokens"].float().std(0).max() == 0


def test_temperature_scales_the_logits():
    torch.manual_seed(0)
    cold = StateTokenPolicy(5, 3, 4, width=16)
    hot = StateTokenPolicy(5, 3, 4, width=16, temperature=1.6)
    hot.load_state_dict(cold.state_dict())
    batch = TensorDict({"observation": {"state": torch.randn(2, 5)}}, [2])
    torch.testing.assert_close(hot._action_logits(batch) * 1.6, cold._action_logits(batch))


def test_steps_of_the_transformer_see_the_state_and_differ():
    torch.manual_seed(0)
    policy = StateTokenPolicy(5, 3, 4, network="transformer", width=32)
    batch = TensorDict({"observation": {"state": torch.randn(2, 5)}}, [2])
    logits = policy._action_logits(batch)
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[:, 0], logits[:, 1])


def acted(policy, rows=7):
    """What it did in ``rows`` states, the same ones each time and with the same random numbers."""
    state = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1))
    batch = TensorDict({"observation": {"state": state}}, [rows]).to(next(policy.parameters()).dtype)
    torch.manual_seed(3)
    with torch.no_grad():
        return policy(batch)


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_features_recorded_are_features_recomputed_and_cost_no_forward(network):
    torch.manual_seed(0)
    policy = StateTokenPolicy(5, 3, 4, network=network, width=32)
    assert isinstance(policy, RecordsFeatures)
    plain, keys = acted(policy), list(policy.out_keys)
    policy.record_critic_features(True)
    assert policy.out_keys == [*keys, FEATURES]
    first = next(layer for layer in policy.modules() if isinstance(layer, nn.Linear))
    with calls_of(first) as of_first, calls_of(policy.model.head) as of_head:
        rows = acted(policy)
    assert len(of_first) == len(of_head) == 1
    seen = rows[FEATURES]
    assert (seen.shape, seen.dtype, seen.requires_grad) == ((7, 32), torch.float32, False)
    assert torch.equal(seen, policy.features(rows))
    assert (rows.exclude(FEATURES) == plain).all(), "the same actions and log-probs"
    read = rows.select(*policy.in_keys)
    policy.get_dist(read)
    assert FEATURES not in read.keys() and not policy.model.head._forward_hooks
    policy.record_critic_features(False)
    assert policy.out_keys == keys and FEATURES not in acted(policy).keys()


def test_features_of_a_policy_in_another_precision_are_float32():
    policy = StateTokenPolicy(5, 3, 4, width=16).to(torch.bfloat16)
    policy.record_critic_features(True)
    rows = acted(policy)
    assert rows[FEATURES].dtype == torch.float32 and torch.equal(rows[FEATURES], policy.features(rows))


def test_a_critics_input_keeps_no_larger_tensor_in_memory():
    states = torch.randn(6, 56, 8, requires_grad=True)
    seen = critic_input(states[:, 0])
    assert torch.equal(seen, states[:, 0]) and not seen.requires_grad
    assert seen.untyped_storage().nbytes() == 6 * 8 * 4


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_recording_changes_no_gradient(network):
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        policy = StateTokenPolicy(5, 3, 4, network=network, width=32)
        policy.record_critic_features(enabled)
        rows = acted(policy)
        rows["action_is_pad"] = torch.zeros(7, 4, dtype=torch.bool)
        rows["advantage"] = torch.linspace(-1, 1, 7)
        ChunkGRPOLoss(policy, functional=False)(rows)["loss_objective"].backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    acts = policy(rows.select(*policy.in_keys))  # with a graph, as a caller without no_grad has it
    assert acts["vla_action", "log_probs"].requires_grad and not acts[FEATURES].requires_grad


def test_bad_options():
    with pytest.raises(ValueError, match="unknown network"):
        StateTokenPolicy(5, network="cnn")
    with pytest.raises(ValueError, match="temperature"):
        StateTokenPolicy(5, temperature=0.0)
