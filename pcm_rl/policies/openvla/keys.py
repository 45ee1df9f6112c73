"""Keys of a published checkpoint <-> parameters of the model."""

from __future__ import annotations

import re

from pcm_rl.policies.openvla.sizes import ModelSizes

HEAD = "language_model.lm_head.weight"  # of which the model holds the rows of the action tokens
_TOWERS = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")


def model_key(key: str) -> str:
    """Parameter of the model that ``key`` of a checkpoint goes to.

    The names are the same, but that a layer scale is ``gamma`` where a checkpoint was saved under timm's own names.
    """
    return re.sub(r"\.(ls[12])\.gamma$", r".\1.scale_factor", key)


def is_unused(key: str, sizes: ModelSizes) -> bool:
    """Whether a checkpoint holds ``key`` though nothing ever reads it.

    These are a tower's last block, its final norm, and its head (SigLIP's ``attn_pool``).
    """
    for tower, size in zip(_TOWERS, sizes.towers, strict=True):
        if key.startswith(tower + "."):
            part = key[len(tower) + 1 :]
            return part.startswith((f"blocks.{size.depth - 1}.", "norm.", "fc_norm.", "attn_pool.", "head."))
    return False
