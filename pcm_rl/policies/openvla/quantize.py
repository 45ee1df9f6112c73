"""The frozen language model in four bits (QLoRA, Dettmers and others 2023), for GPUs too small for the 7B model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pcm_rl.policies.openvla.network.model import OpenVLA


def quantize_language(model: OpenVLA, *, compute_dtype: torch.dtype) -> list[str]:
    """Replace every linear layer of the language model, except its head, by one with an NF4 weight.

    The vision towers, the projector, the embeddings and the norms, a ninth of the 7B model, do not change. Adapters are
    added afterwards and correct for the rounded weights; a merged export adds them to the weights before rounding.

    Args:
        model: Without adapters, on the CPU, where one layer after the other is rounded; changed in place.
        compute_dtype: Of the products.

    Returns:
        Names of the layers.

    Raises:
        ImportError: If bitsandbytes is missing.
    """
    try:
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
    except ImportError as error:
        raise ImportError(
            "policy.openvla.quantize needs the package bitsandbytes: pip install 'pcm_rl[qlora]'"
        ) from error
    decoder = model.language_model.model
    linear = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    for name, old in linear.items():
        options: dict[str, Any] = {"bias": False, "compute_dtype": compute_dtype, "quant_type": "nf4"}
        new: Any = Linear4bit(old.in_features, old.out_features, device="meta", **options)
        new.weight = Params4bit(old.weight.detach(), requires_grad=False, quant_type="nf4")
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, new.to("cpu"))  # this rounds
    return [f"language_model.model.{name}" for name in linear]
