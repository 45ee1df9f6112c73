"""Which parts of pi0 are trained: the action expert, all of it, or LoRA adapters by peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pcm_rl.policies.pi0.model_folder import INSTALL

VLM = "model.vlm."  # all else is the expert: its transformer, the embeddings of state, actions and time, the output
EMBEDDINGS = "embed_action_time."


def unread(model: Any) -> list[str]:
    """Beginnings of the names of parts that no velocity depends on: they are never trained.

    The expert's word embeddings, and all that follows the last layer's keys and values in the VLM.
    """
    language = f"{VLM}language_model"
    last = f"{language}.layers.{len(model.model.vlm.language_model.layers) - 1}"
    parts = ("self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp")
    return ["model.dit.embed_tokens.", f"{language}.norm.", *(f"{last}.{part}." for part in parts)]


def train_part(model: Any, part: str, dtype: torch.dtype) -> None:
    """Have ``expert``, ``all`` or nothing (``none``) trained.

    Args:
        model: ``PI0ForConditionalGeneration`` in float32, changed in place.
        part: Its name.
        dtype: Of the frozen weights; those that are trained stay float32.
    """
    never = tuple(unread(model))
    for name, parameter in model.named_parameters():
        chosen = part == "all" or (part == "expert" and not name.startswith(VLM))
        parameter.requires_grad_(chosen and not name.startswith(never))
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def add_lora(model: Any, *, rank: int, alpha: int, targets: str | Sequence[str]) -> Any:
    """Freeze ``model`` and add float32 adapters to its linear layers by peft; at first they change nothing.

    Args:
        model: Changed in place.
        rank: r.
        alpha: The adapters' output is scaled by alpha / r.
        targets: ``expert``, ``vlm``, ``all``, or a list of names or ends of names of linear layers. The small ones that
            embed state, actions and time have none: peft would look for them under their names in lerobot's layout.

    Returns:
        ``PeftModel`` around ``model``, which saves and merges them.

    Raises:
        ImportError: If peft is missing.
        ValueError: If no layer matches ``targets``.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(f"policy.pi0.train=lora needs peft: {INSTALL}") from error
    names = target_layers(model, targets)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=names))


def target_layers(model: Any, targets: str | Sequence[str]) -> list[str]:
    """Names of the linear layers that ``targets`` means; see :func:`add_lora`."""
    never = (EMBEDDINGS, *unread(model))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    linear = [name for name in linear if not f"{name}.".startswith(never)]
    if isinstance(targets, str) and targets in ("expert", "vlm", "all"):
        return [name for name in linear if targets == "all" or name.startswith(VLM) == (targets == "vlm")]
    ends = [targets] if isinstance(targets, str) else list(targets)
    unknown = [end for end in ends if not any(_is(name, end) for name in linear)]
    if unknown or not ends:
        last = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ValueError(
            f"expected expert, vlm, all, or a list of names of linear layers ({', '.join(last)}), got {targets}"
        )
    return [name for name in linear if any(_is(name, end) for end in ends)]


def _is(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)
