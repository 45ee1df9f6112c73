"""Files of a checkpoint's folder: their names, and reading them with errors that name the file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pcm_rl.policies.openvla.sizes import CheckpointError

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


def read_json(path: Path) -> dict[str, Any]:
    """A mapping; errors name the file."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: expected {path.name}, which is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise CheckpointError(f"{path} is damaged: {error}; was the download complete?") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content


@contextlib.contextmanager
def fits(path: Path, expected: str) -> Iterator[None]:
    """What goes wrong while a file's content is taken apart becomes an error that names the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{path}: expected {expected}, got {type(error).__name__}: {error}") from error
