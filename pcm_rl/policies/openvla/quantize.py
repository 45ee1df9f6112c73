"""The frozen language model in four bits (QLoRA, Dettmers and others 2023), for GPUs that the 7B does not fit."""

from __future__ import annotations

import torch
from torch import nn

from pcm_rl.policies.openvla.model import OpenVLA


def quantize_language(model: OpenVLA, *, compute_dtype: torch.dtype) -> list[str]:
    """Replace every linear layer of the language model but its head by one whose weight is kept as NF4.

    What is left as it is: the vision towers, the projector, the embeddings and the norms, a ninth of the 7B. Adapters
    are added afterwards, and learn what the rounded weights lack; a merged export adds them to the weights as they were
    before rounding.

    Args:
        model: Without adapters, on the CPU, where the weights are rounded one layer after the other; changed in place.
        compute_dtype: Of the products.

    Returns:
        Names of the layers.

    Raises:
        ImportError: If bitsandbytes is missing.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise ImportError("policy.quantize needs the package bitsandbytes: pip install 'pcm_rl[qlora]'") from error
    names = [name for name, module in model.language_model.model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        parent, _, last = name.rpartition(".")
        old = model.language_model.model.get_submodule(name)
        new = Linear4bit(
            old.in_features, old.out_features, bias=False, compute_dtype=compute_dtype, quant_type="nf4", device="meta"
        )
        new.weight = Params4bit(old.weight.detach(), requires_grad=False, quant_type="nf4")
        setattr(model.language_model.model.get_submodule(parent), last, new.to(old.weight.device))
    return [f"language_model.model.{name}" for name in names]
