from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from pcm_rl.policies.openvla import open_checkpoint
from pcm_rl.policies.openvla.tiny import TINY, main, write_tiny_checkpoint


def test_sizes_come_back_from_the_files(openvla_folder, openvla_sizes):
    assert open_checkpoint(openvla_folder).sizes == openvla_sizes


def test_the_layout_is_the_published_one(openvla_folder):
    assert {path.name for path in openvla_folder.iterdir()} == {
        "config.json", "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json",
        "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }  # fmt: skip
    index = json.loads((openvla_folder / "model.safetensors.index.json").read_text())
    stored = {shard.name: load_file(shard) for shard in openvla_folder.glob("*.safetensors")}
    assert index["weight_map"] == {key: name for name, tensors in stored.items() for key in tensors}
    total = sum(tensor.nbytes for tensors in stored.values() for tensor in tensors.values())
    assert index["metadata"]["total_size"] == total
    statistics = json.loads((openvla_folder / "dataset_statistics.json").read_text())["libero_object_no_noops"]
    assert statistics["action"]["mask"] == [True] * 6 + [False]
    assert {len(statistics["action"][key]) for key in ("q01", "q99", "mean", "std", "min", "max")} == {7}


def test_the_seed_decides_the_weights_and_leaves_the_global_state(openvla_sizes, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weights = [
        load_file(write_tiny_checkpoint(tmp_path / str(i), openvla_sizes, seed=seed, shards=1) / name)
        for i, (seed, name) in enumerate([(s, "model-00001-of-00001.safetensors") for s in (0, 0, 1)])
    ]
    assert torch.equal(torch.rand(3), expected)
    key = "language_model.lm_head.weight"
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0][key], weights[2][key]) and weights[0][key].dtype == torch.bfloat16


def test_files_are_not_written_over(openvla_folder):
    with pytest.raises(FileExistsError, match="is not empty"):
        write_tiny_checkpoint(openvla_folder)


def test_command_line(tmp_path, capsys):
    main([str(tmp_path / "new"), "--image-size", "28", "--proprio", "--seed", "3"])
    assert str(tmp_path / "new") in capsys.readouterr().out
    sizes = open_checkpoint(tmp_path / "new").sizes
    assert (sizes.image_size, sizes.proprio_dim, sizes.towers) == (28, 8, TINY.towers)
