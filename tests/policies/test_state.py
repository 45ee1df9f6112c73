from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from pcm_rl.policies import StateTokenPolicy


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


def test_bad_options():
    with pytest.raises(ValueError, match="unknown network"):
        StateTokenPolicy(5, network="cnn")
    with pytest.raises(ValueError, match="temperature"):
        StateTokenPolicy(5, temperature=0.0)
