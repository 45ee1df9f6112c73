"""What the VLM says of an observation: the keys and values that the action expert attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # keys and values of a layer, [M, heads, N, size]


@dataclass(frozen=True)
class Prefix:
    """Of M observations, N tokens each.

    Attributes:
        layers: Keys and values of every layer.
        real: Tokens that are no padding, ``[M, N]`` bool.
        hidden: Output of the last layer, ``[M, N, H]``.
    """

    layers: dict[int, Pair]
    real: Tensor
    hidden: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the output over the tokens that are no padding, ``[M, H]`` float32."""
        real = self.real.unsqueeze(-1)
        return self.hidden.float().mul(real).sum(1) / real.sum(1)


class KeyValues:
    """In the place of transformers' cache: attention sees the prefix and its own tokens, and nothing is added to it.

    So a denoising step leaves nothing behind that had to be cropped, and a layer that is computed again in the backward
    pass sees what it saw.
    """

    is_initialized = False  # what PaliGemma asks before it lets all of the prefix see all of it

    def __init__(self, before: dict[int, Pair] | None = None) -> None:
        self._before = before or {}
        self.layers: dict[int, Pair] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> Pair:
        """A layer's own keys and values -> all that it attends to."""
        self.layers[layer] = keys, values
        if layer not in self._before:
            return keys, values
        first_keys, first_values = self._before[layer]
        return torch.cat([first_keys.to(keys), keys], 2), torch.cat([first_values.to(values), values], 2)

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens before its own."""
        return self._before[layer][0].shape[2] if self._before else 0

    def get_query_offset(self, layer: int = 0) -> int:
        """Where its own tokens begin."""
        return self.get_seq_length(layer)

    def get_mask_sizes(self, queries: int, layer: int = 0) -> tuple[int, int]:
        """All tokens, and the first of them."""
        return self.get_seq_length(layer) + queries, 0


def read_prefix(model: Any, ids: Tensor, real: Tensor, pixels: Tensor) -> Prefix:
    """One forward pass of the VLM.

    Args:
        model: ``PI0ForConditionalGeneration``.
        ids: ``[M, N]`` int64.
        real: ``[M, N]`` bool.
        pixels: Normalised, ``[M, cameras, 3, H, W]``.
    """
    cameras = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
    embedded = model.model.embed_prefix(ids, pixels, cameras)
    seen = KeyValues()
    out = model.model.vlm(
        inputs_embeds=embedded,
        attention_mask=real,
        position_ids=real.cumsum(-1) - 1,
        token_type_ids=torch.zeros_like(ids),
        cache=seen,
        use_cache=False,  # transformers makes no cache of its own; the layers use the given one
    )
    return Prefix(seen.layers, real, out.last_hidden_state)


def velocity_of(model: Any, prefix: Prefix, state: Tensor, x: Tensor, time: Tensor) -> Tensor:
    """One forward pass of the action expert.

    Args:
        model: ``PI0ForConditionalGeneration``.
        prefix: Of the M observations.
        state: Normalised and padded, ``[M, S]``.
        x: ``[M, H, W]``.
        time: ``[M]``, from 1, noise, to 0, the action.

    Returns:
        ``[M, H, W]`` float32.
    """
    weights = model.embed_action_time.state_proj.weight.dtype
    out = model(
        state=state.to(weights),
        noise=x.to(weights),
        timestep=time,
        attention_mask=prefix.real,
        cache=KeyValues(prefix.layers),
        use_cache=False,
    )
    velocity: Tensor = out.logits.float()
    return velocity
