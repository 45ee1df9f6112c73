"""Random weights that let every parameter count, and folders to damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def randomise():
    """``randomise(module)``: fill all parameters; scales of norms and layers lie around 1."""

    def fill(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.normal_(std=std, generator=generator)
                if parameter.ndim == 1 and not name.endswith("bias"):
                    parameter.add_(1.0)
        return module

    return fill


class Folder:
    """A copy of a checkpoint that a test may change."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> dict:
        return json.loads((self.path / name).read_text())

    def write(self, name: str, content: dict) -> None:
        (self.path / name).write_text(json.dumps(content))

    def change(self, name: str, **entries: object) -> None:
        self.write(name, {**self.read(name), **entries})


@pytest.fixture
def copied(openvla_folder, tmp_path) -> Folder:
    return Folder(Path(shutil.copytree(openvla_folder, tmp_path / "copied")))
