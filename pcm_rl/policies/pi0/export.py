"""A trained pi0 as a folder that transformers loads, or its adapters as one that peft loads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcm_rl.policies.pi0.model_folder import PROCESSOR, Checkpoint, without_progress
from pcm_rl.policies.pi0.statistics import Statistics
from pcm_rl.support.room import check_room
from pcm_rl.support.writing import new_folder

if TYPE_CHECKING:
    from pcm_rl.policies.pi0.policy import Pi0Policy


def save_policy_folder(policy: Pi0Policy, folder: str | Path, *, adapters: bool = False) -> Path:
    """Write model, tokenizer and processor with the statistics in use; see :meth:`Pi0Policy.export`.

    Raises:
        FileExistsError: If ``folder`` holds files.
        OSError: If there is no room for the weights.
        ValueError: If ``adapters`` is true and there are none.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give another folder or delete it")
    if adapters and policy.adapters is None:
        raise ValueError("the model has no adapters to save; they need policy.pi0.train=lora")
    saved = policy.adapters if adapters else _whole(policy)
    check_room(folder, sum(p.nbytes for p in saved.parameters() if p.requires_grad or not adapters))
    with new_folder(folder) as partial, without_progress():
        saved.save_pretrained(partial)
        if not adapters:
            policy.prompter.tokenizer.save_pretrained(partial)
            write_processor(partial, policy.checkpoint, policy.statistics)
    return folder


def _whole(policy: Pi0Policy) -> Any:
    """The model with its adapters in its weights."""
    if policy.adapters is None:
        return policy.model
    return copy.deepcopy(policy.adapters).merge_and_unload()


def write_processor(folder: Path, checkpoint: Checkpoint, statistics: Statistics) -> None:
    """``processor_config.json`` as ``PI0Processor`` saves it, with these statistics.

    Not by the class itself: it needs torchvision, which breaks other imports where its build is not that of torch.
    """
    size, config = checkpoint.image_size, checkpoint.config
    images = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "PI0ImageProcessor",
        "image_std": [0.5] * 3,
        "pad_size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "size": {"max_height": size, "max_width": size},
    }
    content = {
        "chunk_size": config.chunk_size,
        "max_state_dim": config.max_state_dim,
        "processor_class": "PI0Processor",
        **checkpoint.processor,
        **statistics.as_dict(),
        "image_processor": {
            **images,
            **checkpoint.processor.get("image_processor", {}),
            "image_seq_length": checkpoint.image_tokens,
        },
    }
    (folder / PROCESSOR).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
