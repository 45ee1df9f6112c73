"""A merged checkpoint: it reloads to the trained policy, and all else in it is as it was."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pcm_rl.policies.openvla import CheckpointError, OpenVLAPolicy, add_lora, open_checkpoint
from pcm_rl.policies.openvla.keys import HEAD, is_unused
from pcm_rl.policies.openvla.lora import lora_layers
from pcm_rl.policies.openvla.merged import save_merged
from pcm_rl.policies.openvla.tiny import write_tiny_checkpoint

TEXTS = ["lift it", "put the bowl on the plate"]


@torch.no_grad()
def logits(policy, rows):
    return policy.get_dist(rows.select(*policy.in_keys)).logits


@torch.no_grad()
def moved(policy) -> OpenVLAPolicy:
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for shard in folder.glob("*.safetensors") for key, value in load_file(shard).items()}


def test_merged_adapters_reload_equal(make_openvla, record_openvla, openvla_folder, tmp_path):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    before = logits(policy, rows)
    names = add_lora(policy.model, rank=4, targets=["q_proj", "projector.fc2", "attn.qkv"])
    expected = logits(moved(policy), rows)
    assert (expected - before).abs().max() > 1e-2
    folder = save_merged(policy.model, policy.checkpoint, tmp_path / "merged")
    torch.testing.assert_close(logits(make_openvla(folder), rows), expected, rtol=1e-5, atol=1e-5)

    old, new = weights_of(openvla_folder), weights_of(folder)
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed == {f"{name}.weight" for name in names} and set(new) == set(old)
    for shard in openvla_folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as mine, safe_open(folder / shard.name, "pt") as theirs:
            assert set(mine.keys()) == set(theirs.keys()), "every tensor is in the file that the index names"
    for path in openvla_folder.glob("*.json"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


class Alive(TorchDispatchMode):
    """The most bytes of tensors made within it that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.sizes:
                self.sizes[key] = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self.sizes.pop, key)
                self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize("shards", [1, 4])
def test_an_export_needs_the_room_of_one_file_and_one_layers_change(make_openvla, openvla_sizes, tmp_path, shards):
    base = write_tiny_checkpoint(tmp_path / "base", openvla_sizes, shards=shards)
    policy = make_openvla(base, dtype=torch.bfloat16)
    add_lora(policy.model, rank=4)
    file = max(path.stat().st_size for path in base.glob("*.safetensors"))
    change = max(4 * layer.up.shape[0] * layer.down.shape[1] for layer in lora_layers(policy.model).values())
    with Alive() as alive:
        save_merged(policy.model, policy.checkpoint, tmp_path / "merged")
    assert 0.9 * file < alive.peak <= file + change, "the file's weights are among what is counted"
    assert not alive.sizes


def test_full_fine_tuning_reloads_equal(make_openvla, record_openvla, openvla_folder, openvla_sizes, tmp_path):
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    policy.model.requires_grad_()
    expected = logits(moved(policy), rows)
    folder = save_merged(policy.model, policy.checkpoint, tmp_path / "merged")
    assert torch.equal(logits(make_openvla(folder), rows), expected)
    old, new = weights_of(openvla_folder), weights_of(folder)
    for key in old:
        assert torch.equal(old[key], new[key]) == is_unused(key, openvla_sizes), key
    head = torch.arange(len(old[HEAD]))
    other = (head < 31744) | (head >= 32000)
    assert torch.equal(old[HEAD][other], new[HEAD][other]), "rows that are no actions"
    assert (old[HEAD][~other] != new[HEAD][~other]).any(-1).all()


def test_timms_names_and_half_precision_stay(make_openvla, record_openvla, openvla_sizes, tmp_path):
    base = write_tiny_checkpoint(tmp_path / "base", openvla_sizes, shards=1)
    (shard,) = base.glob("*.safetensors")
    tensors = {key.replace("scale_factor", "gamma"): value for key, value in load_file(shard).items()}
    for path in (shard, base / "model.safetensors.index.json"):
        path.unlink()
    save_file(tensors, base / "model.safetensors")
    policy = make_openvla(base)
    policy.model.requires_grad_()
    folder = save_merged(moved(policy).model, policy.checkpoint, tmp_path / "merged")
    found = load_file(folder / "model.safetensors")
    assert set(found) == set(tensors) and {value.dtype for value in found.values()} == {torch.bfloat16}
    again = make_openvla(folder).model.state_dict()
    for name, value in policy.model.state_dict().items():
        assert torch.equal(again[name], value.bfloat16().float()), name


def test_code_and_pickles_are_not_copied(make_openvla, copied, tmp_path):
    for name in ("modeling_prismatic.py", "training_args.bin", "README.md", "tokenizer.model"):
        (copied.path / name).write_text("x")
    policy = make_openvla(copied.path)
    policy.model.requires_grad_()
    folder = save_merged(policy.model, policy.checkpoint, tmp_path / "merged")
    left = {path.name for path in copied.path.iterdir()} - {path.name for path in folder.iterdir()}
    assert left == {"modeling_prismatic.py", "training_args.bin"}


def test_nothing_is_written_over_and_strangers_are_refused(make_openvla, openvla_folder, openvla_sizes, tmp_path):
    policy = make_openvla()
    with pytest.raises(FileExistsError, match="is not empty"):
        save_merged(policy.model, policy.checkpoint, openvla_folder)
    policy.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=rf"belongs to another checkpoint: {openvla_folder} has no extra"):
        save_merged(policy.model, open_checkpoint(openvla_folder), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_partial_export_is_written_again(make_openvla, tmp_path):
    policy = make_openvla()
    (tmp_path / "merged.partial").mkdir()
    (tmp_path / "merged.partial" / "old").write_text("x")
    (tmp_path / "merged").mkdir()
    folder = save_merged(policy.model, policy.checkpoint, tmp_path / "merged")
    assert not (folder / "old").exists() and not (tmp_path / "merged.partial").exists()
    assert open_checkpoint(folder).sizes == policy.checkpoint.sizes


def test_a_damaged_base_and_a_full_disk_are_refused(make_openvla, openvla_folder, tmp_path, monkeypatch):
    base = Path(shutil.copytree(openvla_folder, tmp_path / "base"))
    policy = make_openvla(base)
    add_lora(policy.model, rank=4, targets=["q_proj"])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**10))
        with pytest.raises(OSError, match=r"has room for 0\.0 GiB, and .* GiB are to be written there"):
            save_merged(policy.model, policy.checkpoint, tmp_path / "merged")
    shard = min(base.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{shard.name}.*was the download complete"):
        save_merged(policy.model, policy.checkpoint, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
