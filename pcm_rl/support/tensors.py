"""Writing safetensors, with errors as any other file's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors on the CPU as one file.

    Raises:
        OSError: The disk is full, or cannot be written to.
    """
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:  # the package has one class for a full disk and for tensors that do not fit
        raise OSError(f"cannot write {path}: {error}") from error
