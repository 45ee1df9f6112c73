"""Read a folder of adapters as peft writes it: which layers they change, and by how much.

Only plain LoRA is read, with or without the scale of rsLoRA. What else peft can do is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcm_rl.policies.checkpoint_files import CheckpointError, read_json
from pcm_rl.policies.openvla.folder_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INSIDE,
    STATISTICS,
    fits,
    opened,
)
from pcm_rl.policies.openvla.keys import ADAPTER_PREFIX, adapter_key
from pcm_rl.policies.openvla.model_folder import Checkpoint

_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights", "base_model_name_or_path"}
_HARMLESS = {  # where the tensors say it, or what does not change the adapters' output
    "auto_mapping", "eva_config", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform",
    "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
}  # fmt: skip
_SAME_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # other starts of adapters change the base's weights
_LAYERS = 8  # that are looked at to see whether adapters are in the weights
_SURE = 0.1  # standard error of the projection above which it says nothing


@dataclass(frozen=True)
class Adapters:
    """Adapters in a folder; their numbers stay on disk.

    Attributes:
        folder: The folder.
        base: Name or path of the model that they were trained on, as the folder says.
        rank: r.
        alpha: The output is scaled by alpha / r; of rsLoRA it is ``lora_alpha * sqrt(r)``, which is the same scale.
        shapes: Shape of the weight of each layer, by the layer's name.
        copies: Weights of the base in the file, by their key in the base; peft writes the head's where it has an
            adapter.
    """

    folder: Path
    base: str
    rank: int
    alpha: float
    shapes: Mapping[str, tuple[int, ...]]
    copies: Mapping[str, str]

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """A and B of a layer, float32; ``[r, in]`` and ``[out, r]``, of a convolution with its kernel's axes."""
        with opened(self.folder / ADAPTER_WEIGHTS) as file:
            down, up = (file.get_tensor(adapter_key(layer, part)) for part in "AB")
        return down.float(), up.float()

    def delta(self, layer: str) -> Tensor:
        """What a layer's adapter adds to its weight, float32, in the weight's shape."""
        down, up = self.pair(layer)
        return (up.flatten(1) @ down.flatten(1)).mul_(self.alpha / self.rank).view(self.shapes[layer])

    def base_weights(self) -> dict[str, Tensor]:
        """The base's weights in the file, by their keys there."""
        with opened(self.folder / ADAPTER_WEIGHTS) as file:
            return {key: file.get_tensor(key) for key in self.copies.values()}


def open_adapters(folder: str | Path) -> Adapters:
    """Read everything but the numbers.

    Raises:
        CheckpointError: If the folder holds no adapters, they are not plain LoRA, or a file is damaged.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        inside = (folder / INSIDE / ADAPTER_CONFIG).is_file()
        raise CheckpointError(
            f"expected adapters in {folder}, found no {ADAPTER_CONFIG}"
            + (f"; did you mean {folder / INSIDE}?" if inside else "")
        )
    config = read_json(folder / ADAPTER_CONFIG)
    _refuse_variants(folder / ADAPTER_CONFIG, config)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"expected adapters in {folder}, found no {ADAPTER_WEIGHTS}; pickles (adapter_model.bin) are never "
            "opened: convert them where you trust them (safetensors.torch.save_file)"
        )
    with fits(folder / ADAPTER_CONFIG, "r and lora_alpha"):
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        if config.get("use_rslora"):
            alpha *= math.sqrt(rank)
    base, (shapes, copies) = str(config.get("base_model_name_or_path")), _layers(folder, rank)
    return Adapters(folder, base, rank, alpha, shapes, copies)


def _refuse_variants(path: Path, config: Mapping[str, Any]) -> None:
    found = {key: value for key, value in config.items() if value and key not in _READ | _HARMLESS}
    found |= {key: config[key] for key in ("bias",) if config.get(key, "none") != "none"}
    found |= {key: config[key] for key in ("init_lora_weights",) if config.get(key) not in _SAME_BASE}
    if config.get("peft_type") != "LORA":
        found = {"peft_type": config.get("peft_type")}
    if found:
        named = ", ".join(f"{key}={value}" for key, value in sorted(found.items()))
        raise CheckpointError(
            f"{path}: expected plain LoRA, got {named}; merge these adapters into their base with peft "
            "(merge_and_unload, save_pretrained) and give that checkpoint"
        )


def _layers(folder: Path, rank: int) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape of each layer's weight, and the base's weights that are there too."""
    path = folder / ADAPTER_WEIGHTS
    with opened(path) as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    layers = sorted(
        key.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight") for key in found if ".lora_A." in key
    )
    expected = {adapter_key(layer, part) for layer in layers for part in "AB"}
    copies = {
        key.removeprefix(ADAPTER_PREFIX).replace(".base_layer.", "."): key
        for key in found
        if ".lora_" not in key and key.startswith(ADAPTER_PREFIX)
    }
    if odd := sorted(expected ^ (set(found) - set(copies.values()))) or not layers:
        raise CheckpointError(f"{path}: expected a lora_A and a lora_B for each layer, differing: {odd}")
    shapes = {}
    for layer in layers:
        down, up = (found[adapter_key(layer, part)] for part in "AB")
        if len(down) != len(up) or down[0] != rank or up[1] != rank or any(size != 1 for size in up[2:]):
            raise CheckpointError(
                f"{path}: expected lora_A [r, in] and lora_B [out, r] of r={rank} for {layer}, got {down} and {up}; do "
                f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} belong together?"
            )
        shapes[layer] = (up[0], *down[1:])
    return shapes, copies


def statistics_beside(adapters: Adapters) -> Path | None:
    """The statistics of the adapters' training, where their folder or the checkpoint around it has some."""
    places = [adapters.folder] + [adapters.folder.parent] * (adapters.folder.name == INSIDE)
    return next((place / STATISTICS for place in places if (place / STATISTICS).is_file()), None)


def check_base(checkpoint: Checkpoint, adapters: Adapters) -> None:
    """Refuse adapters whose copies of the base's weights are not those of ``checkpoint``.

    Raises:
        CheckpointError: Naming the weight, and the base that they were trained on.
    """
    theirs = adapters.base_weights()
    for key, copy in adapters.copies.items():
        ours = None
        if key in checkpoint.shards:
            with opened(checkpoint.folder / checkpoint.shards[key]) as file:
                ours = file.get_tensor(key)
        if ours is None or not torch.equal(ours, theirs[copy].to(ours.dtype)):
            raise CheckpointError(
                f"{adapters.folder}: expected adapters of {checkpoint.folder}, got some whose base has another {key}; "
                f"they were trained on {adapters.base}"
            )


@torch.no_grad()
def already_added(checkpoint: Checkpoint, adapters: Adapters) -> bool | None:
    """Whether the weights of ``checkpoint`` have ``adapters`` in them; None if this cannot be told.

    The projection ``<W, D> / <D, D>`` of a weight on its adapter's change D is 1 larger where D was added, and near 0
    where it was not: D points where the base's weights are small (Hu and others 2021, section 7.3). The middle value of
    some layers decides. It cannot be told where D is so small that a random W of this size would blur it.
    """
    keys = {f"{name}.weight": name for name, shape in adapters.shapes.items() if len(shape) == 2}
    known = [key for key in keys if key in checkpoint.shards]
    projections = []
    for key in known[:: -(-len(known) // _LAYERS) or 1]:
        with opened(checkpoint.folder / checkpoint.shards[key]) as file:
            weight, delta = file.get_tensor(key).float(), adapters.delta(keys[key])
        if weight.shape == delta.shape and bool(delta.any()):
            size = float(delta.norm())
            if float(weight.norm()) < _SURE * size * math.sqrt(weight.numel()):
                projections.append(float((weight * delta).sum()) / size**2)
    return sorted(projections)[len(projections) // 2] > 0.5 if projections else None
