"""OpenVLA-OFT with random weights, the tiny one and the 7B, in memory alone: time and memory do not depend on weights.

``policy.family=random_openvla:make_policy`` trains it by any recipe, with ``benchmarks`` on ``PYTHONPATH``; ``options``
are those of :func:`make_policy`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces

from pcm_rl.policies.openvla import Checkpoint, OpenVLAPolicy, add_lora, open_checkpoint
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.policies.openvla.prompt import Prompter
from pcm_rl.policies.openvla.sizes import PUBLISHED_TOWERS, ModelSizes
from pcm_rl.policies.openvla.tiny import TINY as LARGE_IMAGES
from pcm_rl.policies.openvla.tiny import write_tiny_checkpoint

TINY = dataclasses.replace(LARGE_IMAGES, image_size=112)  # whole-vocabulary logits of 345 positions do not fit here
PROMPT_IDS = 34  # of "pick up the alphabet soup and place it in the basket" under Llama's tokenizer, about
FLAT = 0.1  # of the head's weights: how a forward pass rounds then hardly shows in the probabilities


def sizes_of(model: str) -> ModelSizes:
    """Of ``tiny`` or ``7b``.

    Raises:
        ValueError: It is neither.
    """
    if model not in ("tiny", "7b"):
        raise ValueError(f"model is {model!r}; expected tiny or 7b")
    return TINY if model == "tiny" else ModelSizes(PUBLISHED_TOWERS["dinosiglip-vit-so-224px"])


def build_policy(
    name: str, folder: Path, dtype: torch.dtype, device: str | torch.device, **settings: Any
) -> OpenVLAPolicy:
    """The model with adapters of rank 32 on all linear layers.

    Args:
        name: ``tiny`` or ``7b``.
        folder: New; gets a tokenizer and statistics, which the policy has read when it is there.
        dtype: Of the frozen weights.
        device: Of all weights.
        settings: Further arguments of ``OpenVLAPolicy``.
    """
    sizes = sizes_of(name)
    write_tiny_checkpoint(folder, dataclasses.replace(TINY, image_size=sizes.image_size))
    checkpoint: Checkpoint = dataclasses.replace(open_checkpoint(folder), sizes=sizes)
    with torch.device("meta"):
        model = OpenVLA(sizes, action_tokens=56)
    model = model.to(dtype).to_empty(device=device).requires_grad_(False)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if key.endswith("bias") else 1.0)
            else:
                parameter.normal_(std=0.02)
    policy = OpenVLAPolicy(checkpoint, dtype=dtype, device=device, model=model, **settings)
    add_lora(policy.model)
    return policy


def make_policy(
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Box,
    *,
    device: str = "cpu",
    model: str = "7b",
    dtype: str = "bfloat16",
    merge: bool = False,
    compile: bool = False,
    temperature: float = 1.6,
) -> OpenVLAPolicy:
    """A policy family: prompts are as long as those of the published checkpoints, and actions nearly uniform."""
    with tempfile.TemporaryDirectory() as folder:
        path, kind = Path(folder) / "checkpoint", getattr(torch, dtype)
        policy = build_policy(model, path, kind, device, merge=merge, temperature=temperature)
        policy.prompter = ShortPrompts(policy.checkpoint.tokenizer)
    with torch.no_grad():
        policy.model.language_model.lm_head.weight.mul_(FLAT)
    if compile:
        policy.model.compile_blocks()
    return policy


class ShortPrompts(Prompter):
    """As many ids as Llama's tokenizer makes of an instruction of LIBERO; the tiny one has an id for each letter."""

    def ids(self, instruction: str) -> list[int]:
        """The first :data:`PROMPT_IDS` of the prompt."""
        return super().ids(instruction)[:PROMPT_IDS]
