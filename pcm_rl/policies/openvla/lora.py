"""LoRA on a frozen OpenVLA: which layers have adapters, and their weights in peft's layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pcm_rl.policies.openvla.network.adapter import AdapterGroup, LoraLinear
from pcm_rl.policies.openvla.network.model import OpenVLA

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers of a block that read the same input
_PREFIX = "base_model.model."  # what peft's files put before a module's name


def add_lora(
    model: OpenVLA, *, rank: int = 32, alpha: int = 32, targets: str | Sequence[str] = "all-linear"
) -> list[str]:
    """Freeze ``model`` and add float32 adapters to its linear layers; at first they change nothing.

    Args:
        model: Changed in place.
        rank: r.
        alpha: The adapters' output is scaled by alpha / r.
        targets: ``"all-linear"`` (every linear layer except the head, as in SimpleVLA-RL), ``"language"`` (those of the
            language model), or a list of names or ends of names, such as ``["q_proj", "v_proj"]``.

    Returns:
        Names of the layers with adapters.

    Raises:
        ValueError: If no layer matches ``targets``, or if the model has adapters already.
    """
    if lora_layers(model):
        raise ValueError("the model has adapters already; begin with the base model, or train those that it has")
    names = target_layers(model, targets)
    model.requires_grad_(False)
    device = next(model.parameters()).device  # of a quantized weight too
    for name in names:
        parent, _, last = name.rpartition(".")
        place = model.get_submodule(parent)
        setattr(place, last, LoraLinear(getattr(place, last), rank, alpha, device))
    model.adapters = _groups(model)
    return names


def _groups(model: nn.Module) -> list[AdapterGroup]:
    """The adapters of ``model`` by what they read: layers of one module that :data:`SHARING` names are one group."""
    grouped: dict[tuple[str, str], list[LoraLinear]] = {}
    for name, layer in lora_layers(model).items():
        parent, _, last = name.rpartition(".")
        sharing = next((layers for layers in SHARING if last in layers), (last,))
        grouped.setdefault((parent, sharing[0]), []).append(layer)
    return [AdapterGroup(layers) for layers in grouped.values()]


def target_layers(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Names of the linear layers that ``targets`` means; see :func:`add_lora`."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    linear = [name for name in linear if not name.endswith("lm_head")]
    if targets == "all-linear":
        return linear
    if targets == "language":
        return [name for name in linear if name.startswith("language_model.")]
    ends = [targets] if isinstance(targets, str) else list(targets)
    unknown = [end for end in ends if not any(_is(name, end) for name in linear)]
    if unknown or not ends:
        last = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ValueError(
            f"expected LoRA targets all-linear, language, or names of linear layers ({', '.join(last)}), got {targets}"
        )
    return [name for name in linear if any(_is(name, end) for end in ends)]


def _is(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters with a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters, by the name of the linear layer that they replace."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def save_adapters(model: nn.Module, folder: str | Path, base: str) -> Path:
    """Write the adapters as peft does, so that ``PeftModel.from_pretrained`` reads them too.

    Args:
        model: With adapters.
        folder: Created.
        base: Name or path of the base model, for readers of the file.

    Raises:
        ValueError: If the model has no adapters.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no adapters to save; call add_lora first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, layer in layers.items():
        for part, weight in (("lora_A", layer.down), ("lora_B", layer.up)):
            tensors[f"{_PREFIX}{name}.{part}.weight"] = weight.detach().cpu().contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(layers),
        "inference_mode": True,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1))
    return folder


@torch.no_grad()
def load_adapters(model: OpenVLA, folder: str | Path) -> list[str]:
    """Load the adapters of ``folder`` into ``model``, which has none yet.

    Returns:
        Names of the layers with adapters.

    Raises:
        FileNotFoundError: If the folder holds no adapters.
        ValueError: If they do not fit the model.
    """
    folder = Path(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"expected adapters in {folder}, found no {name}")
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    names = add_lora(model, rank=config["r"], alpha=config["lora_alpha"], targets=config["target_modules"])
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    layers = lora_layers(model)
    expected = {f"{_PREFIX}{name}.{part}.weight" for name in layers for part in ("lora_A", "lora_B")}
    if set(tensors) != expected:
        raise ValueError(f"{folder} does not fit the model: differing tensors {sorted(expected ^ set(tensors))[:4]}")
    for name, layer in layers.items():
        for part, weight in (("lora_A", layer.down), ("lora_B", layer.up)):
            key = f"{_PREFIX}{name}.{part}.weight"
            if weight.shape != tensors[key].shape:
                raise ValueError(f"{folder}: {key} is {tuple(tensors[key].shape)}, the model's {tuple(weight.shape)}")
            weight.copy_(tensors[key])
    return names
