"""The loss and the trim work with TorchRL's own token policy, whose actions come in its container class."""

from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from torchrl.data.vla import UniformActionTokenizer
from torchrl.modules.vla import TinyVLA

from pcm_rl import group_advantage
from pcm_rl.algos import ChunkGRPOLoss, LabelPhases, PCMSampler


@pytest.mark.parametrize("log_probs_mode", ["token", "sequence"])
@pytest.mark.parametrize("container", [True, False])
def test_tiny_vla(log_probs_mode, container):
    torch.manual_seed(0)
    policy = TinyVLA(
        action_dim=7,
        chunk_size=8,
        action_head="tokens",
        vocab_size=16,
        output_mode="both",
        log_probs_mode=log_probs_mode,
        action_tokenizer=UniformActionTokenizer(16, low=-1.0, high=1.0),
        mode="sample",
        return_vla_action_container=container,
    )
    rows = 24
    episode = torch.arange(rows) // 6
    batch = TensorDict(
        {
            ("observation", "image"): torch.randint(0, 255, (rows, 3, 16, 16), dtype=torch.uint8),
            ("observation", "state"): torch.randn(rows, 5),
            "language_instruction": NonTensorStack(*["pick"] * rows),
            "action_is_pad": torch.zeros(rows, 8, dtype=torch.bool),
            "episode_id": episode,
            "group_id": torch.zeros(rows, dtype=torch.int64),
            "success": episode % 2 == 0,
        },
        batch_size=[rows],
    )
    with torch.no_grad():
        policy(batch)
    if log_probs_mode == "sequence":  # one number a chunk cannot be clipped by the token: record the tokens' own
        dist = policy.get_dist(batch).base_dist
        batch["vla_action", "log_probs"] = dist.log_prob(batch["vla_action", "tokens"]).detach()
    batch["advantage"] = group_advantage(torch.tensor([1, 0, 1, 0]), torch.zeros(4, dtype=torch.int64))[episode]
    kept = PCMSampler(budget=2)(LabelPhases()(batch))
    assert len(kept) == 8
    out = ChunkGRPOLoss(policy)(kept)
    assert float(out["max_ratio"]) == pytest.approx(1.0, abs=1e-5)
    out["loss_objective"].backward()
    assert sum(float(p.grad.abs().sum()) for p in policy.parameters() if p.grad is not None) > 0
