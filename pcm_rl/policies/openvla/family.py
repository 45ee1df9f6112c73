"""The family ``openvla``: the model of a checkpoint, with fresh adapters or with every weight trainable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces

from pcm_rl.policies.openvla.attention_check import check_bidirectional
from pcm_rl.policies.openvla.lora import add_lora
from pcm_rl.policies.openvla.model_folder import open_checkpoint
from pcm_rl.policies.openvla.policy import OpenVLAPolicy
from pcm_rl.policies.openvla.quantize import quantize_language
from pcm_rl.policies.openvla.sizes import CheckpointError


def make_policy(
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Box,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | None = None,
    lora: Mapping[str, Any],
    dtype: str = "float32",
    quantize: str | None = None,
    compile: bool = False,
    **settings: Any,
) -> OpenVLAPolicy:
    """The model of ``checkpoint`` with fresh adapters, or with every weight trainable where their rank is 0.

    Args:
        observation_space: Not used: a row that lacks an image is an error at its decision.
        action_space: ``Box [L, D]``.
        device: Of the weights.
        checkpoint: Folder of the checkpoint.
        lora: ``rank``, ``alpha``, ``targets`` and ``merge``.
        dtype: Of the frozen weights.
        quantize: ``nf4``, or None.
        compile: Compile the blocks.
        settings: Further arguments of :class:`OpenVLAPolicy`.

    Raises:
        ValueError: If the checkpoint is refused, its chunks are not the environment's, or no layer matches
            ``lora["targets"]``.
    """
    if checkpoint is None:
        raise ValueError("policy.openvla.checkpoint is missing; give policy.openvla.checkpoint=FOLDER")
    weights: torch.dtype = getattr(torch, dtype)
    try:
        policy = OpenVLAPolicy(
            open_checkpoint(checkpoint),
            action_space.shape[0],
            dtype=weights,
            merge=lora["merge"],
            device="cpu" if quantize else device,  # so that the GPU never holds the whole model
            **settings,
        )
    except CheckpointError as error:
        raise ValueError(f"policy.openvla.checkpoint: {error}") from error
    if quantize:
        quantize_language(policy.model, compute_dtype=weights)
        policy = policy.to(device)
    check_bidirectional(policy)
    if lora["rank"]:
        try:
            add_lora(policy.model, rank=lora["rank"], alpha=lora["alpha"], targets=lora["targets"])
        except ValueError as error:
            raise ValueError(f"policy.openvla.lora.targets: {error}") from error
    else:
        policy.model.requires_grad_()
    if compile:
        policy.model.compile_blocks()
    return policy
