"""Random weights that let every parameter count, and folders to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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


RLINF = [  # layers of RLinf's adapters (rlinf/models/__init__.py), also what all-linear was in openvla-oft's peft
    "proj", "qkv", "fc1", "fc2", "q", "kv", "fc3", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
    "up_proj", "down_proj", "lm_head",
]  # fmt: skip


class _Node(nn.Module):
    """A part of the published model's tree of names; peft asks the root of a transformers model for its embeddings."""

    def enable_input_require_grads(self) -> None: ...

    def get_input_embeddings(self) -> None:
        return None

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head


def _tree(weights: dict[str, torch.Tensor]) -> nn.Module:
    """The published model so far as adapters see it: every linear layer and convolution, used or not."""
    root = _Node()
    for key, weight in weights.items():
        if not key.endswith(".weight") or weight.ndim not in (2, 4) or "embed_tokens" in key:
            continue
        if weight.ndim == 2:
            layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        else:
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
        layer.weight.data = weight.clone()
        *parents, last = key.removesuffix(".weight").split(".")
        place = root
        for name in parents:
            if not hasattr(place, name):
                setattr(place, name, _Node())
            place = getattr(place, name)
        setattr(place, last, layer)
    return root


@pytest.fixture(scope="session")
def by_peft(openvla_folder, tmp_path_factory):
    """``by_peft(targets=RLINF, **options)``: adapters of the base checkpoint, and that merged, both written by peft."""
    peft = pytest.importorskip("peft")

    def make(targets: Sequence[str] = RLINF, **options: object) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("peft")
        shards = {shard.name: load_file(shard) for shard in openvla_folder.glob("*.safetensors")}
        weights = {key: value for shard in shards.values() for key, value in shard.items()}
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": list(targets), **options})
        model = peft.get_peft_model(_tree(weights), config)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(std=0.15, generator=generator)
        model.save_pretrained(str(folder / "adapters"))
        merged = Path(shutil.copytree(openvla_folder, folder / "merged"))
        changed = {f"{name}.weight": m.weight.detach() for name, m in model.merge_and_unload().named_modules()
                   if isinstance(m, nn.Linear | nn.Conv2d)}  # fmt: skip
        for name, shard in shards.items():
            save_file({key: changed.get(key, value).contiguous() for key, value in shard.items()}, merged / name)
        return folder / "adapters", merged

    return make


@pytest.fixture(scope="session")
def published(by_peft) -> tuple[Path, Path]:
    """Adapters on every layer that RLinf's and openvla-oft's have, and the merged checkpoint; not to be changed."""
    return by_peft()
