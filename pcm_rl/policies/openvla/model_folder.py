"""Read a checkpoint folder of OpenVLA-OFT with action tokens, in the layout of openvla-oft and SimpleVLA-RL.

Weights come from safetensors, everything else from JSON. Nothing is unpickled, and no code of the folder is run:
published folders contain a ``modeling_prismatic.py``, which is not needed and not opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcm_rl.policies.checkpoint_files import CheckpointError, read_json
from pcm_rl.policies.openvla.folder_files import INDEX, PROPRIO, SINGLE, STATISTICS, fits, opened
from pcm_rl.policies.openvla.keys import HEAD, is_unused, model_key
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.policies.openvla.other_layouts import PROJECTOR, refuse_adapters_alone, refuse_other_heads, refuse_wrapped
from pcm_rl.policies.openvla.sizes import ModelSizes, read_sizes

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NORMALISATION = (  # per channel, of images in [0, 1]: DINOv2's, then SigLIP's
    ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)


@dataclass(frozen=True)
class Checkpoint:
    """The description of a model in a folder; the weights stay on disk.

    Attributes:
        folder: The folder.
        config: ``config.json``.
        sizes: Of every part of the model.
        shards: File of each key.
        statistics: For each dataset the quantiles of its actions, and more: ``dataset_statistics.json``, and what
            only ``norm_stats`` of the configuration has.
        datasets: Names in ``dataset_statistics.json``; without this file, those of the configuration.
        mean: Of each channel, ``[6]``: the first tower's normalisation, then the second's.
        std: Likewise.
        statistics_file: What is read as ``dataset_statistics.json``; None without one.
    """

    folder: Path
    config: Mapping[str, Any]
    sizes: ModelSizes
    shards: Mapping[str, str]
    statistics: Mapping[str, Any]
    datasets: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    statistics_file: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """The file of the tokenizer."""
        return self.folder / "tokenizer.json"

    def dataset(self, name: str | None) -> str:
        """Key of the statistics for ``name``, such as ``libero_object``; None takes the only one.

        Raises:
            CheckpointError: If there is no such dataset, or None is ambiguous.
        """
        if name is None and len(self.datasets) == 1:
            name = self.datasets[0]
        for key in (name, f"{name}_no_noops"):
            if key is not None and key in self.statistics:
                self._check_quantiles(key)
                return key
        raise CheckpointError(
            f"{self.folder}: expected policy.openvla.statistics to name one of {', '.join(self.datasets)} (the dataset "
            f"whose quantiles scale the actions), got {name!r}"
        )

    def _check_quantiles(self, name: str) -> None:
        path = self.statistics_file or self.folder / "config.json"
        with fits(path, f"quantiles of {name}'s actions"):
            action = self.statistics[name]["action"]
            low, high = ([float(value) for value in action[key]] for key in ("q01", "q99"))
            mask = list(action.get("mask", low))
            if not len(low) == len(high) == len(mask) > 0 or not all(map(math.isfinite, low + high)):
                raise ValueError(f"q01 {low}, q99 {high} and mask {mask} do not belong together")

    def with_statistics(self, path: Path) -> Checkpoint:
        """The same with the datasets of another ``dataset_statistics.json``, in the place of those it has."""
        own = read_json(path)
        others = {name: of for name, of in self.statistics.items() if name not in self.datasets}
        return replace(self, statistics={**others, **own}, datasets=tuple(sorted(own)), statistics_file=path)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read everything but the weights.

    Raises:
        CheckpointError: If the folder is no checkpoint of an OpenVLA with action tokens in safetensors, or a file is
            damaged.
        FileNotFoundError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}")
    refuse_adapters_alone(folder)
    config = read_json(folder / "config.json")
    refuse_other_heads(folder, config, shards := _shards(folder))
    refuse_wrapped(folder, shards)
    proprio_dim = _shape(folder, shards, PROJECTOR)[1] if PROJECTOR in shards else 0
    with fits(folder / "config.json", "sizes of an OpenVLA"):
        sizes = read_sizes(config, proprio_dim=proprio_dim)
    mean, std = _normalisation(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder}: expected tokenizer.json; transformers writes it: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    known = config.get("norm_stats") or {}
    checkpoint = Checkpoint(folder, config, sizes, shards, known, tuple(sorted(known)), mean, std)
    if known and not (folder / STATISTICS).is_file():
        return checkpoint
    return replace(checkpoint, datasets=()).with_statistics(folder / STATISTICS)


def load_model(
    checkpoint: Checkpoint, action_tokens: int, *, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> OpenVLA:
    """Build the model with the checkpoint's weights, tensor by tensor, without a second copy of 15 GB.

    Args:
        checkpoint: From :func:`open_checkpoint`.
        action_tokens: L * D, tokens of a chunk.
        dtype: Of the weights.
        device: Of the weights.

    Raises:
        CheckpointError: If a key is missing or unknown, a tensor has another shape, or a file is damaged.
    """
    with torch.device("meta"), fits(checkpoint.folder / "config.json", "sizes of an OpenVLA"):
        model = OpenVLA(checkpoint.sizes, action_tokens)
    wanted = model.state_dict()
    keys = {key: model_key(key) for key in checkpoint.shards if not is_unused(key, checkpoint.sizes)}
    _compare(checkpoint.folder, list(keys.values()), set(wanted))
    loaded: dict[str, Tensor] = {}
    for shard in sorted({checkpoint.shards[key] for key in keys}):
        with opened(checkpoint.folder / shard, device) as file:
            for key in (key for key in keys if checkpoint.shards[key] == shard):
                loaded[keys[key]] = _tensor(checkpoint, file, key, wanted[keys[key]].shape).to(dtype)
    model.load_state_dict(loaded, assign=True)
    return model.requires_grad_(False)


def _tensor(checkpoint: Checkpoint, file: Any, key: str, expected: torch.Size) -> Tensor:
    part = file.get_slice(key)
    shape = tuple(part.get_shape())
    full: tuple[int, ...]
    if key == HEAD:
        sizes = checkpoint.sizes
        full = (sizes.language.vocab_size, expected[1])
        tensor = part[sizes.first_action_id : sizes.first_action_id + sizes.action_bins] if shape == full else None
    else:
        full = tuple(expected)
        tensor = part[...] if shape == full else None
    if tensor is None:
        raise CheckpointError(
            f"{checkpoint.folder}: expected {key} of shape {full} by config.json, got {shape}; do the two belong "
            "together?"
        )
    # a slice shares the memory of the whole head: copy the rows, so that the head can be freed
    return tensor.clone() if key == HEAD else tensor


def _compare(folder: Path, names: list[str], wanted: set[str]) -> None:
    name_set = set(names)
    if repeated := sorted(name for name in name_set if names.count(name) > 1):
        raise CheckpointError(f"{folder}: {repeated[0]} is there twice, under its own name and under timm's (gamma)")
    if missing := sorted(wanted - name_set):
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]}; is a shard or "
            f"{INDEX} incomplete, or is it an adapter without its base model?"
        )
    if unknown := sorted(name_set - wanted):
        raise CheckpointError(
            f"{folder}: {len(unknown)} tensors have no place in an OpenVLA of these sizes, such as {unknown[0]}"
        )


def _shards(folder: Path) -> dict[str, str]:
    """File of each key."""
    shards = _weight_files(folder)
    if (folder / PROPRIO).is_file():
        with opened(folder / PROPRIO) as file:
            shards |= dict.fromkeys(file.keys(), PROPRIO)
    return shards


def _weight_files(folder: Path) -> dict[str, str]:
    if (folder / INDEX).is_file():
        with fits(folder / INDEX, 'a file for each key under "weight_map"'):
            shards = {str(key): str(file) for key, file in read_json(folder / INDEX)["weight_map"].items()}
        for name in sorted(set(shards.values())):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{folder / INDEX}: expected names of safetensors beside it, got {name!r}")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {INDEX} names {name}, which is missing; was the download complete?")
        return shards
    if (folder / SINGLE).is_file():
        with opened(folder / SINGLE) as file:
            return dict.fromkeys(file.keys(), SINGLE)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: expected safetensors, got pickled weights ({', '.join(pickles[:3])}), which can run any code "
            "and are never opened; convert them where you trust them (safetensors.torch.save_file)"
        )
    raise CheckpointError(f"{folder}: expected {INDEX} or {SINGLE}, found neither")


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of six channels; ``preprocessor_config.json`` replaces the usual values."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path).get("tvf_normalize_params") if path.is_file() else None
    with fits(path, "two normalisations of three channels"):
        pairs = NORMALISATION if settings is None else [(item["mean"], item["std"]) for item in settings]
        mean, std = ([float(value) for pair in pairs for value in pair[i]] for i in (0, 1))
    if len(mean) != 6 or len(std) != 6:
        raise CheckpointError(f"{path}: expected two normalisations of three channels, got {settings}")
    return tuple(mean), tuple(std)


def _shape(folder: Path, shards: Mapping[str, str], key: str) -> tuple[int, ...]:
    with opened(folder / shards[key]) as file:
        return tuple(file.get_slice(key).get_shape())
