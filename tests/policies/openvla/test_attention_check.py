from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F

from pcm_rl.policies.openvla.attention_check import check_bidirectional
from pcm_rl.policies.openvla.network import language


def causal(query, key, value, attn_mask=None, enable_gqa=False):
    """Attention that only looks back, of all positions or of those where a chunk's logits are read."""
    asked, seen = query.shape[-2], key.shape[-2]
    first = 0 if asked == seen else seen - 1 - asked - 1  # before the last placeholder and </s>
    mask = torch.arange(seen) <= first + torch.arange(asked).unsqueeze(-1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=enable_gqa)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_passes_and_a_causal_mask_does_not(make_openvla, monkeypatch, dtype):
    policy = make_openvla(dtype=dtype)
    weights = {key: value.clone() for key, value in policy.state_dict().items()}
    check_bidirectional(policy)
    assert all(torch.equal(value, weights[key]) for key, value in policy.state_dict().items())
    masked = types.SimpleNamespace(**{name: getattr(F, name) for name in ("linear", "silu")})
    masked.scaled_dot_product_attention = causal
    monkeypatch.setattr(language, "F", masked)
    with pytest.raises(RuntimeError, match="expected attention in both directions"):
        check_bidirectional(policy)
