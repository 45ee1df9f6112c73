"""Files of a checkpoint's folder: their names, and reading them with errors that name the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pcm_rl.policies.checkpoint_files import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PROPRIO = "proprio_projector.safetensors"  # openvla-oft's projector, which is a pickle there, once it is converted
STATISTICS = "dataset_statistics.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
INSIDE = "lora_adapter"  # where openvla-oft and SimpleVLA-RL put adapters, inside a checkpoint


@contextlib.contextmanager
def opened(path: Path, device: str | torch.device = "cpu") -> Iterator[Any]:
    """An open file of weights; errors name the file."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:  # safetensors takes the first card, and not the current one
        device = torch.device("cuda", torch.cuda.current_device())
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {error}; was the download complete?") from error


@contextlib.contextmanager
def fits(path: Path, expected: str) -> Iterator[None]:
    """What goes wrong while a file's content is taken apart becomes an error that names the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{path}: expected {expected}, got {type(error).__name__}: {error}") from error
