"""A trained model merged into its base checkpoint: written in the same layout."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from pcm_rl.policies.openvla.adapter_folder import Adapters
from pcm_rl.policies.openvla.folder_files import STATISTICS, opened
from pcm_rl.policies.openvla.keys import HEAD, model_key
from pcm_rl.policies.openvla.lora import lora_layers
from pcm_rl.policies.openvla.model_folder import Checkpoint
from pcm_rl.policies.openvla.network.adapter import LoraLinear
from pcm_rl.support.room import check_room
from pcm_rl.support.tensors import save_tensors
from pcm_rl.support.writing import new_folder

COPIED = (".json", ".model", ".txt", ".md")  # beside the weights; neither code nor pickles


def save_merged(model: nn.Module, checkpoint: Checkpoint, folder: str | Path, source: Adapters | None = None) -> Path:
    """Write the checkpoint with the trained parts: adapters added to its weights, trained weights in their place.

    Other weights, also those that the model does not have, are written unchanged: programs that read the original can
    read this. Only one file's weights and one layer's change are in memory at a time.

    Args:
        model: On the weights of ``checkpoint``.
        checkpoint: The base.
        folder: Must be new or empty.
        source: Adapters that the model began with; those of it that are not trained here are added to their weights.

    Returns:
        ``folder``.

    Raises:
        CheckpointError: If a file of ``checkpoint`` is damaged.
        FileExistsError: If ``folder`` holds files.
        OSError: If there is no room for the weights.
        ValueError: If the model is not of this checkpoint.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give another folder or delete it")
    shards = sorted(set(checkpoint.shards.values()))
    check_room(folder, sum((checkpoint.folder / shard).stat().st_size for shard in shards))
    adapted = {f"{name}.weight": layer for name, layer in lora_layers(model).items()}
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad and ".lora_" not in name}
    if unknown := sorted({*adapted, *trained} - {model_key(key) for key in checkpoint.shards}):
        raise ValueError(f"the model belongs to another checkpoint: {checkpoint.folder} has no {unknown[0]}")
    with new_folder(folder) as partial:
        for shard in shards:
            save_tensors(_merged(checkpoint, shard, adapted, trained, source), partial / shard, {"format": "pt"})
        for path in checkpoint.folder.iterdir():
            if path.suffix in COPIED and path.is_file():
                shutil.copyfile(path, partial / path.name)
        if checkpoint.statistics_file is not None:  # those of the adapters' training, where they have some
            shutil.copyfile(checkpoint.statistics_file, partial / STATISTICS)
    return folder


def _merged(
    checkpoint: Checkpoint,
    shard: str,
    adapted: Mapping[str, LoraLinear],
    trained: Mapping[str, Tensor],
    source: Adapters | None,
) -> dict[str, Tensor]:
    """The weights of one file of the checkpoint, with the trained parts."""
    with opened(checkpoint.folder / shard) as file:
        weights: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}
    added = {} if source is None else {f"{layer}.weight": layer for layer in source.shapes}
    for key, weight in weights.items():
        name = model_key(key)
        if name in adapted:
            weight.copy_(adapted[name].delta().cpu().add_(weight))
        elif source is not None and key in added:
            weight.copy_(source.delta(added[key]).add_(weight))
        if name in trained:
            first = checkpoint.sizes.first_action_id if key == HEAD else 0
            weight[first : first + len(trained[name])] = trained[name].detach().cpu()
    return weights
