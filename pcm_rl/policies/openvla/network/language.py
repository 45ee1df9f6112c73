"""Llama without a causal mask, with the names of the published weights.

OpenVLA-OFT's attention goes in both directions over the whole sequence. ``transformers``' Llama is causal by design,
and the ways to change this differ between versions. A causal mask, which gives no error, costs a third of the success
(openvla-oft, issues 5, 12, 106, 135). This module has no causal mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pcm_rl.policies.openvla.network.adapter import project
from pcm_rl.policies.openvla.network.blocks import run_blocks
from pcm_rl.policies.openvla.sizes import LanguageSizes


class LanguageModel(nn.Module):
    """Embeddings ``[M, S, H]`` -> logits ``[M, Q, A]`` of the action tokens, at the given positions only.

    ``lm_head`` holds only the rows of the A action tokens. The last block computes queries and MLP at the Q positions
    only, since no other output of it is used.
    """

    def __init__(self, sizes: LanguageSizes, action_bins: int) -> None:
        super().__init__()
        self.model = _Decoder(sizes)
        self.lm_head = nn.Linear(sizes.hidden_size, action_bins, bias=False)

    def forward(self, embeddings: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits in float32.

        Args:
            embeddings: ``[M, S, H]``.
            positions: Where logits are wanted, ``[M, Q]`` int64.
            keep: Which positions exist, ``[M, S]`` bool; None if all do.
        """
        hidden = self.model(embeddings, positions, keep)
        # log-probs decide ratios: no rounding to bfloat16
        return F.linear(hidden.float(), self.lm_head.weight.float())


class _Decoder(nn.Module):
    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.head_dim, self.theta = sizes.hidden_size // sizes.num_attention_heads, sizes.rope_theta
        self.checkpointing = self.compiled = False
        self.embed_tokens = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.layers = nn.ModuleList([_Layer(sizes) for _ in range(sizes.num_hidden_layers)])
        self.norm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)

    def forward(self, tokens: Tensor, positions: Tensor, keep: Tensor | None) -> Tensor:
        rotary = rotary_table(tokens.shape[1], self.head_dim, self.theta, tokens)
        mask = None if keep is None else keep[:, None, None, :]  # every position attends to all that exist
        tokens = run_blocks(
            list(self.layers)[:-1], tokens, rotary, mask, checkpointing=self.checkpointing, compiled=self.compiled
        )
        last = list(self.layers)[-1:]
        return self.norm(
            run_blocks(last, tokens, rotary, mask, positions, checkpointing=self.checkpointing, compiled=self.compiled)
        )


class _Layer(nn.Module):
    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.self_attn = _Attention(sizes)
        self.post_attention_layernorm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.mlp = _GatedMLP(sizes.hidden_size, sizes.intermediate_size)

    def forward(self, tokens: Tensor, rotary: Tensor, mask: Tensor | None, positions: Tensor | None = None) -> Tensor:
        context = self.input_layernorm(tokens)
        query_tokens = context
        if positions is not None:
            tokens, query_tokens = (take(value, positions) for value in (tokens, context))
        tokens = tokens + self.self_attn(query_tokens, context, rotary, mask, positions)
        return tokens + self.mlp(self.post_attention_layernorm(tokens))


class _Attention(nn.Module):
    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.heads, self.key_heads = sizes.num_attention_heads, sizes.num_key_value_heads
        head_dim = sizes.hidden_size // self.heads
        self.q_proj = nn.Linear(sizes.hidden_size, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(sizes.hidden_size, self.key_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(sizes.hidden_size, self.key_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * head_dim, sizes.hidden_size, bias=False)

    def forward(
        self, query_tokens: Tensor, context: Tensor, rotary: Tensor, mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        if positions is None:
            query, key, value = project([self.q_proj, self.k_proj, self.v_proj], context)
        else:
            query, (key, value) = self.q_proj(query_tokens), project([self.k_proj, self.v_proj], context)
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (part.unflatten(-1, (self.key_heads, -1)).transpose(1, 2) for part in (key, value))
        query_rotary = rotary if positions is None else rotary[:, positions].unsqueeze(2)
        mixed = F.scaled_dot_product_attention(
            rotate(query, query_rotary),
            rotate(key, rotary),
            value,
            attn_mask=mask,
            enable_gqa=self.heads != self.key_heads,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class _GatedMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        gated: Tensor = _Gated.apply(*project([self.gate_proj, self.up_proj], tokens))
        return self.down_proj(gated)


class _Gated(torch.autograd.Function):
    """``silu(gate) * up``; of the three tensors in it the backward pass keeps two and computes the third again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


def rotary_table(length: int, head_dim: int, theta: float, like: Tensor) -> Tensor:
    """Cosines and signed sines of positions below ``length``, ``[2, S, head_dim]`` as ``like`` in type and device.

    The angle of channel i and of channel i + head_dim / 2 at position s is ``s * theta ** (-2 i / head_dim)``; the
    sines of the first half are negative, as a rotation has them.
    """
    channel = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32)
    angle = torch.arange(length, device=like.device, dtype=torch.float32)[:, None] * theta ** (-channel / head_dim)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).to(like.dtype)


def rotate(heads: Tensor, rotary: Tensor) -> Tensor:
    """Rotate ``[M, heads, S, head_dim]`` by a table ``[2, (M, 1,) S, head_dim]``."""
    cos, sin = rotary
    first, second = heads.chunk(2, -1)
    return torch.addcmul(heads * cos, torch.cat([second, first], -1), sin)


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """``[M, S, H]`` at ``[M, Q]`` -> ``[M, Q, H]``."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
