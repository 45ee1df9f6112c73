"""Keys of a published checkpoint <-> parameters of the model."""

from __future__ import annotations

import re

from pcm_rl.policies.openvla.sizes import ModelSizes

HEAD = "language_model.lm_head.weight"  # the model has only its rows of action tokens
ADAPTER_PREFIX = "base_model.model."  # what peft's files put before a layer's name
_TOWERS = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")


def model_key(key: str) -> str:
    """Parameter of the model for ``key`` of a checkpoint.

    The names are the same, except that a layer scale is ``gamma`` in a checkpoint with timm's names.
    """
    return re.sub(r"\.(ls[12])\.gamma$", r".\1.scale_factor", key)


def adapter_key(layer: str, part: str) -> str:
    """Key of A or B of a layer in a file of adapters."""
    return f"{ADAPTER_PREFIX}{layer}.lora_{part}.weight"


def is_unused(key: str, sizes: ModelSizes) -> bool:
    """Whether ``key`` of a checkpoint is never used.

    These are a tower's last block, its final norm, and its head (SigLIP's ``attn_pool``), and the value head that RLinf
    trains with PPO.
    """
    if key.startswith("value_head."):
        return True
    for tower, size in zip(_TOWERS, sizes.towers, strict=True):
        if key.startswith(tower + "."):
            part = key[len(tower) + 1 :]
            return part.startswith((f"blocks.{size.depth - 1}.", "norm.", "fc_norm.", "attn_pool.", "head."))
    return False
