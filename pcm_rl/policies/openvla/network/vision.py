"""The two vision towers, as one module with the names of the published weights.

Plain torch rather than ``transformers``: the published weights are in timm's layout (one ``qkv``, no position for the
class token and the registers, exact GELU), which the classes there do not have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcm_rl.policies.openvla.network.blocks import run_blocks
from pcm_rl.policies.openvla.sizes import TowerSizes

LAYER_NORM_EPS = 1e-6


class VisionBackbone(nn.Module):
    """Images ``[M, 6 * C, H, W]`` -> patch features ``[M, C * P, W_1 + W_2]``, C images a row.

    Six channels an image: normalised for the first tower, then for the second. The features of the two towers lie side
    by side; the patches of several images come one after the other.
    """

    def __init__(self, towers: tuple[TowerSizes, TowerSizes], image_size: int) -> None:
        super().__init__()
        self.featurizer = VisionTower(towers[0], image_size)
        self.fused_featurizer = VisionTower(towers[1], image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        rows = pixels.shape[0]
        first, second = pixels.unflatten(1, (-1, 6)).flatten(0, 1).split(3, 1)
        features = torch.cat([self.featurizer(first), self.fused_featurizer(second)], -1)
        return features.unflatten(0, (rows, -1)).flatten(1, 2)


class VisionTower(nn.Module):
    """Images ``[M, 3, H, W]`` -> the output of the last block but one, ``[M, P, W]``, patches only and not normalised.

    The last block and the final norm are never used: they are neither built nor run.
    """

    def __init__(self, sizes: TowerSizes, image_size: int) -> None:
        super().__init__()
        self.prefix = sizes.prefix
        self.checkpointing = self.compiled = False
        self.patch_embed = _PatchEmbedding(sizes.patch, sizes.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // sizes.patch) ** 2, sizes.width))
        if sizes.prefix:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
            self.reg_token = nn.Parameter(torch.zeros(1, sizes.prefix - 1, sizes.width))
        self.blocks = nn.ModuleList([_Block(sizes) for _ in range(sizes.depth - 1)])

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        tokens = self.patch_embed(pixels) + self.pos_embed
        if self.prefix:  # neither the class token nor the registers have a position
            first = torch.cat([self.cls_token, self.reg_token], 1).expand(len(tokens), -1, -1)
            tokens = torch.cat([first, tokens], 1)
        return run_blocks(self.blocks, tokens, checkpointing=self.checkpointing, compiled=self.compiled)[
            :, self.prefix :
        ]


class _PatchEmbedding(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPS)
        self.attn = _Attention(sizes.width, sizes.heads)
        self.ls1 = _LayerScale(sizes.width) if sizes.layer_scale else _Sum()
        self.norm2 = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(sizes.width, sizes.mlp, sizes.width)
        self.ls2 = _LayerScale(sizes.width) if sizes.layer_scale else _Sum()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.ls1(tokens, self.attn(self.norm1(tokens)))
        return self.ls2(tokens, self.mlp(self.norm2(tokens)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with exact GELU between them, under the names that the published weights have for them."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[..., inputs]`` -> ``[..., outputs]``."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor, change: Tensor) -> Tensor:
        return torch.addcmul(tokens, change, self.scale_factor)


class _Sum(nn.Module):
    def forward(self, tokens: Tensor, change: Tensor) -> Tensor:
        return tokens + change
