"""LoRA on a frozen OpenVLA: which layers have adapters, and their weights in peft's layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pcm_rl.policies.checkpoint_files import CheckpointError
from pcm_rl.policies.openvla.adapter_folder import Adapters
from pcm_rl.policies.openvla.folder_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from pcm_rl.policies.openvla.keys import HEAD, adapter_key, is_unused
from pcm_rl.policies.openvla.network.adapter import AdapterGroup, LoraLinear
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.support.tensors import save_tensors

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers of a block that read the same input


def add_lora(
    model: OpenVLA, *, rank: int = 32, alpha: float = 32, targets: str | Sequence[str] = "all-linear"
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


def save_adapters(model: nn.Module, folder: str | Path, base: str, source: Adapters | None = None) -> Path:
    """Write the adapters as peft does, so that ``PeftModel.from_pretrained`` reads them too.

    Args:
        model: With adapters.
        folder: Created.
        base: Name or path of the base model, for readers of the file.
        source: Where the adapters began; those of it that are not trained here are written as they are there.

    Raises:
        ValueError: If the model has no adapters.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no adapters to save; call add_lora first")
    pairs = {} if source is None else {name: source.pair(name) for name in source.shapes if name not in layers}
    pairs |= {name: (layer.down, layer.up) for name, layer in layers.items()}
    tensors = {
        adapter_key(name, part): weight.detach().cpu().contiguous()
        for name, pair in pairs.items()
        for part, weight in zip("AB", pair, strict=True)
    }
    if source is not None:
        tensors |= source.base_weights()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(pairs),
        "inference_mode": True,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1))
    return folder


@torch.no_grad()
def load_adapters(model: OpenVLA, source: Adapters, *, train: bool = True) -> list[str]:
    """Put adapters of a folder into ``model``, which has none yet.

    Those of linear layers go on being trained. The others change what :func:`add_lora` leaves alone, the head and the
    towers' first convolutions: they are added to the frozen weights. Those of parts that are never used are left out.

    Args:
        model: Changed in place.
        source: The adapters.
        train: False adds all of them to the weights.

    Returns:
        Names of the layers whose adapters are trained.

    Raises:
        CheckpointError: If they are not of this model.
    """
    places = _places(model, source)
    linear = set(target_layers(model, "all-linear"))
    trained = [name for name in places if train and name in linear]
    for name in places:
        if name not in trained:
            _add_to_weight(model, name, source)
    if trained:
        add_lora(model, rank=source.rank, alpha=source.alpha, targets=trained)
    elif train:
        raise CheckpointError(f"{source.folder}: expected adapters of linear layers, got {sorted(places)[:3]}")
    for name, layer in lora_layers(model).items():
        down, up = source.pair(name)
        layer.down.copy_(down)
        layer.up.copy_(up)
    return trained


def _places(model: OpenVLA, source: Adapters) -> list[str]:
    """The layers of the model that ``source`` changes."""
    language = model.sizes.language
    shapes = {name: _shape(module) for name, module in model.named_modules()}
    shapes[HEAD.removesuffix(".weight")] = (language.vocab_size, language.hidden_size)  # the model has some rows of it
    places = []
    for name, shape in source.shapes.items():
        if is_unused(f"{name}.weight", model.sizes):
            continue
        if (expected := shapes.get(name)) is None:
            raise CheckpointError(f"{source.folder}: expected adapters of an OpenVLA, got one for {name}")
        if shape != expected:
            raise CheckpointError(
                f"{source.folder}: expected an adapter of {expected} for {name}, got {shape}; are base and adapters of "
                "one model?"
            )
        places.append(name)
    return places


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """Of the weight of a layer that adapters can change, as it is before it is quantized."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return tuple(module.weight.shape) if isinstance(module, nn.Conv2d) else None


def _add_to_weight(model: OpenVLA, name: str, source: Adapters) -> None:
    weight = model.get_parameter(f"{name}.weight")
    delta = source.delta(name)
    if f"{name}.weight" == HEAD:
        delta = delta[model.sizes.first_action_id :][: len(weight)]
    weight.copy_(delta.to(weight.device).add_(weight))
