"""Checkpoints as others publish them: each loads, or is refused with the reason and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file

from pcm_rl.cli import main
from pcm_rl.config import ConfigError, load_config
from pcm_rl.policies.openvla import CheckpointError, open_checkpoint
from pcm_rl.policies.openvla.family import make_policy
from pcm_rl.policies.openvla.lora import lora_layers
from pcm_rl.policies.openvla.tiny import write_tiny_checkpoint
from pcm_rl.training.checkpoint import load_policy, save_policy

TEXTS = ["lift it", "put the bowl on the plate"]
INSIDE = "lora_adapter"
LORA = {"rank": 4, "alpha": 4, "targets": "all-linear", "merge": False}


def made(folder, adapters=None, **options):
    """The policy of a recipe with these settings."""
    pytest.importorskip("tokenizers")
    space = spaces.Box(-1, 1, (2, 7), np.float32)
    adapters = None if adapters is None else str(adapters)
    return make_policy(None, space, checkpoint=str(folder), adapters=adapters, **{"lora": LORA, **options})


@torch.no_grad()
def logits(policy, rows):
    return policy.get_dist(rows.select(*policy.in_keys)).logits


def same(policy, other, record):
    rows = record(policy, TEXTS)
    torch.testing.assert_close(logits(policy, rows), logits(other, rows), rtol=1e-4, atol=1e-4)
    return True


def inside(base: Path, adapters: Path, place: Path) -> Path:
    """A checkpoint whose folder holds adapters, as openvla-oft and SimpleVLA-RL save."""
    shutil.copytree(base, place)
    shutil.copytree(adapters, place / INSIDE)
    return place


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_merged_with_its_adapters_inside_loads_as_it_is(published, tmp_path, record_openvla, make_openvla):
    """The layout of openvla-oft's finetune.py and of SimpleVLA-RL: Haozhan72, Sylvest, RLinf's LIBERO bases."""
    adapters, merged = published
    folder = inside(merged, adapters, tmp_path / "checkpoint")
    assert same(made(folder), make_openvla(merged), record_openvla)
    with pytest.raises(ValueError, match=r"^policy.openvla.adapters: the weights of .* would count twice. Leave"):
        made(folder, folder / INSIDE)


def test_adapters_inside_that_are_not_in_the_weights_must_be_named(
    published, openvla_folder, tmp_path, record_openvla, make_openvla
):
    adapters, merged = published
    folder = inside(openvla_folder, adapters, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=rf"^policy.openvla.checkpoint: .* give policy.openvla.adapters={folder}/lora"):
        made(folder)
    policy = made(folder, folder / INSIDE)
    assert same(policy, make_openvla(merged), record_openvla) and lora_layers(policy.model)
    change(folder / INSIDE / "adapter_config.json", use_dora=True)  # cannot be asked: usually merged when saved
    made(folder)


def test_adapters_alone_on_their_base(published, openvla_folder, record_openvla, make_openvla):
    """RLinf's ManiSkill adapters: a folder of their own, for a base that is another checkpoint."""
    adapters, merged = published
    assert same(made(openvla_folder, adapters), make_openvla(merged), record_openvla)
    with pytest.raises(ValueError, match=rf"adapters without their base model \(.*checkpoint=BASE .*={adapters}$"):
        made(adapters)


def test_an_unmerged_run_of_openvla_oft_brings_its_statistics(published, openvla_folder, tmp_path):
    """With merge_lora_during_training=False its folder has no weights, and statistics of its own data."""
    run = tmp_path / "run"
    shutil.copytree(published[0], run / INSIDE)
    statistics = json.loads((openvla_folder / "dataset_statistics.json").read_text())
    (known,) = statistics.values()
    narrow = {**known, "action": {**known["action"], "q01": [-0.5] * 7, "q99": [0.5] * 7}}
    (run / "dataset_statistics.json").write_text(json.dumps({"libero_goal_no_noops": narrow}))
    with pytest.raises(ValueError, match=r"adapters without their base model .*adapters=.*run/lora_adapter$"):
        made(run)
    policy = made(openvla_folder, run / INSIDE)
    tokens = torch.zeros(1, 2, 7, dtype=torch.long)
    assert (
        policy.action_tokenizer.decode(tokens)[..., 0].max()
        < 0.51
        < made(openvla_folder).action_tokenizer.decode(tokens)[..., 0].max()
    )
    exported = policy.export(tmp_path / "exported")
    assert open_checkpoint(exported).datasets == ("libero_goal_no_noops",)


def test_a_rank_of_zero_adds_them_and_trains_every_weight(published, openvla_folder, record_openvla, make_openvla):
    policy = made(openvla_folder, published[0], lora={**LORA, "rank": 0})
    assert same(policy, make_openvla(published[1]), record_openvla) and not lora_layers(policy.model)
    assert all(parameter.requires_grad for parameter in policy.model.parameters())


def test_a_saved_policy_goes_on_from_the_same_weights(published, openvla_folder, record_openvla, tmp_path):
    """The file has the trained adapters; what was added to the frozen weights comes from the recipe again."""
    policy = made(openvla_folder, published[0])
    rows = record_openvla(policy, TEXTS)
    with torch.no_grad():
        for layer in lora_layers(policy.model).values():
            layer.up.mul_(1.5)
    save_policy(policy, tmp_path / "policy.safetensors")
    again = made(openvla_folder, published[0])
    load_policy(again, tmp_path / "policy.safetensors")
    assert torch.equal(logits(again, rows), logits(policy, rows))


def test_on_the_command_line_it_is_one_line(published, capsys, tmp_path):
    run = ["env.id=pcm_rl/Reach-v0", "policy.family=openvla", "sft.steps=0", "logger=none", f"run_dir={tmp_path}"]
    assert main(["train", *run, f"policy.openvla.checkpoint={published[0]}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pcm-rl: policy.family=openvla: policy.openvla.checkpoint: ") and error.count("\n") == 1
    assert "adapters without their base model" in error


def test_settings_of_fresh_adapters_beside_others_are_refused():
    folder = ["policy.family=openvla", "policy.openvla.checkpoint=a", "policy.openvla.adapters=b"]
    load_config(None, [*folder, "policy.openvla.lora.rank=32", "policy.openvla.lora.merge=true"])
    load_config(None, [*folder, "policy.openvla.lora.rank=0"])
    with pytest.raises(ConfigError, match=r"have their own rank, alpha and layers; leave policy.openvla.lora out"):
        load_config(None, [*folder, "policy.openvla.lora.rank=16"])


def test_features_are_recorded_only_where_they_stay(published, by_peft, openvla_folder):
    with pytest.raises(ValueError, match=r"record_features keeps .* changes in training"):
        made(openvla_folder, published[0], record_features=True)
    with pytest.raises(ValueError, match="record_features keeps"):
        made(openvla_folder, record_features=True, lora={**LORA, "targets": ["attn.qkv"]})
    made(openvla_folder, by_peft(["q_proj"])[0], record_features=True)


def test_rlinfs_unified_base_and_its_name_for_the_statistics(copied):
    """One dataset of all 130 tasks; the configuration keeps those of the pretraining, RLinf reads both."""
    (known,) = copied.read("dataset_statistics.json").values()
    copied.write("dataset_statistics.json", {"libero_130_no_noops_trajall": known})
    copied.change("config.json", norm_stats={"bridge_orig": known, "fractal20220817_data": known})
    checkpoint = open_checkpoint(copied.path)
    assert (
        checkpoint.dataset(None) == "libero_130_no_noops_trajall" == checkpoint.dataset("libero_130_no_noops_trajall")
    )
    assert checkpoint.dataset("bridge_orig") == "bridge_orig"
    with pytest.raises(CheckpointError, match=r"one of libero_130_no_noops_trajall .*got 'libero_goal'"):
        checkpoint.dataset("libero_goal")
    (copied.path / "dataset_statistics.json").unlink()
    checkpoint = open_checkpoint(copied.path)
    assert checkpoint.dataset("bridge_orig") == "bridge_orig"
    with pytest.raises(CheckpointError, match=r"one of bridge_orig, fractal20220817_data .*got None"):
        checkpoint.dataset(None)


def test_the_value_head_of_ppo_is_left_out(copied, make_openvla, record_openvla, openvla_folder):
    """RLinf trains one with PPO, and saves it among the weights."""
    shard = min(copied.path.glob("*.safetensors"))
    save_file(load_file(shard) | {"value_head.head_l1.weight": torch.ones(2, 2)}, shard)
    index = copied.read("model.safetensors.index.json")
    copied.change("model.safetensors.index.json",
                  weight_map=index["weight_map"] | {"value_head.head_l1.weight": shard.name})  # fmt: skip
    assert same(make_openvla(copied.path), make_openvla(openvla_folder), record_openvla)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("action_head--150000_checkpoint.pt", r"regression head \(action_head--150000_checkpoint.pt\)"),
        ("vision_backbone--150000_checkpoint.pt", r"FiLM \(vision_backbone--150000_checkpoint.pt\)"),
        ("proprio_projector--50000_checkpoint.pt", r"pickled projector \(proprio_projector--50000_checkpoint.pt\)"),
    ],
)
def test_pickles_beside_the_weights_that_are_part_of_the_policy(copied, name, text):
    """Sylvest's LIBERO-plus checkpoint and moojink's have the first and the last."""
    (copied.path / name).write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(copied.path)


def test_a_projector_is_converted_once(openvla_sizes, make_openvla, record_openvla, tmp_path):
    """As docs/openvla.md says, from the keys that openvla-oft's pickle has."""
    import dataclasses

    sizes = dataclasses.replace(openvla_sizes, proprio_dim=8)
    whole = write_tiny_checkpoint(tmp_path / "whole", sizes, shards=1, dtype=torch.float32)
    apart = Path(shutil.copytree(whole, tmp_path / "apart"))
    (shard,) = apart.glob("model*.safetensors")
    tensors = load_file(shard)
    projector = {key: tensors.pop(key) for key in list(tensors) if key.startswith("proprio_projector.")}
    save_file(tensors, shard)
    index = json.loads((apart / "model.safetensors.index.json").read_text())
    index["weight_map"] = {key: file for key, file in index["weight_map"].items() if key in tensors}
    (apart / "model.safetensors.index.json").write_text(json.dumps(index))
    pickled = apart / "proprio_projector--50000_checkpoint.pt"
    torch.save({f"module.{key.removeprefix('proprio_projector.')}": v for key, v in projector.items()}, pickled)
    with pytest.raises(CheckpointError, match=r"convert it to proprio_projector.safetensors"):
        open_checkpoint(apart)
    weights = torch.load(pickled, weights_only=True)
    named = {f"proprio_projector.{key.removeprefix('module.')}": value for key, value in weights.items()}
    save_file(named, apart / "proprio_projector.safetensors")
    policy = make_openvla(apart)
    assert policy.reads_proprio and same(policy, make_openvla(whole), record_openvla)
    again = make_openvla(policy.export(tmp_path / "exported"))
    assert same(policy, again, record_openvla)


@pytest.mark.parametrize(
    ("prefix", "text"),
    [("base_model.model.", "a peft model saved whole"), ("module.", "keys of a wrapper"),
     ("_fsdp_wrapped_module.", "keys of a wrapper")],
)  # fmt: skip
def test_weights_saved_from_inside_of_a_wrapper(copied, prefix, text):
    for shard in copied.path.glob("*.safetensors"):
        save_file({prefix + key: value for key, value in load_file(shard).items()}, shard)
    weight_map = copied.read("model.safetensors.index.json")["weight_map"]
    copied.change("model.safetensors.index.json", weight_map={prefix + key: file for key, file in weight_map.items()})
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(copied.path)
