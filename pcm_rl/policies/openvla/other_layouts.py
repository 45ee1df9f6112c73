"""Folders of OpenVLA that are not a checkpoint with action tokens: each is refused with its reason and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pcm_rl.policies.checkpoint_files import CheckpointError, read_json
from pcm_rl.policies.openvla.folder_files import (
    ADAPTER_CONFIG,
    INDEX,
    INSIDE,
    PROPRIO,
    SINGLE,
)

PROJECTOR = "proprio_projector.fc1.weight"


def adapters_inside(folder: Path) -> Path | None:
    """The folder of the adapters that lie in a checkpoint's folder; None if there are none."""
    places = (folder, folder / INSIDE)
    return next((place for place in places if (place / ADAPTER_CONFIG).is_file()), None)


def refuse_adapters_alone(folder: Path) -> None:
    """Refuse adapters without their base model, as RLinf publishes some and openvla-oft writes them unmerged."""
    adapters = adapters_inside(folder)
    if adapters is None or (folder / INDEX).is_file() or (folder / SINGLE).is_file():
        return
    base = read_json(adapters / ADAPTER_CONFIG).get("base_model_name_or_path")
    raise CheckpointError(
        f"{folder}: expected a checkpoint, got adapters without their base model ({base}, as {ADAPTER_CONFIG} says); "
        f"give policy.openvla.checkpoint=BASE policy.openvla.adapters={adapters}"
    )


def refuse_other_heads(folder: Path, config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse what openvla-oft keeps beside the weights, as pickles, and without which the policy is another one."""
    keys = list(keys)
    found = sorted(path.name for path in folder.glob("action_head*"))
    found += ["keys under action_head."] * any(key.startswith("action_head.") for key in keys)
    if found:
        raise CheckpointError(
            f"{folder}: expected a checkpoint that emits action tokens, got one with a regression head ({found[0]}), "
            "as the official OpenVLA-OFT release is: it has no action probabilities to train with GRPO. SimpleVLA-RL "
            "publishes checkpoints with tokens (Haozhan72/Openvla-oft-SFT-libero-object-traj1 and others)"
        )
    if film := sorted(path.name for path in folder.glob("vision_backbone--*")):
        raise CheckpointError(
            f"{folder}: expected the vision towers of OpenVLA, got ones with FiLM ({film[0]}), which are not "
            "supported; take a checkpoint trained with use_film=False"
        )
    projector = sorted(path.name for path in folder.glob("proprio_projector--*"))
    projector += ["use_proprio in config.json"] * bool(config.get("use_proprio"))
    if projector and PROJECTOR not in keys:
        raise CheckpointError(
            f"{folder}: expected {PROJECTOR} among the weights, got a policy that reads proprioception with a pickled "
            f"projector ({projector[0]}), and pickles are never opened; convert it to {PROPRIO} where you trust it "
            "(docs/openvla.md)"
        )


def refuse_wrapped(folder: Path, keys: Iterable[str]) -> None:
    """Refuse weights saved from inside of a wrapper, whose keys are not the model's."""
    for key in keys:
        if key.startswith("base_model.") or ".base_layer." in key or ".lora_A." in key:
            raise CheckpointError(
                f"{folder}: expected the weights of the model, got a peft model saved whole ({key}); merge it "
                "(merge_and_unload, save_pretrained), or save its adapters alone and give policy.openvla.adapters"
            )
        if key.startswith(("module.", "_fsdp_wrapped_module.")):
            raise CheckpointError(
                f"{folder}: expected the weights of the model, got keys of a wrapper ({key}); save the model inside of "
                "it (model.module.save_pretrained)"
            )
