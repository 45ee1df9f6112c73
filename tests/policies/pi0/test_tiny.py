"""The tiny checkpoint is one that transformers reads alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pcm_rl.policies.pi0.tiny import Sizes, main, write_tiny_checkpoint

SMALL = Sizes(image_size=14, width=16, depth=1, chunk_size=3, numbers=8, steps=2)


def test_transformers_reads_it_alone(pi0_folder):
    from transformers import PI0ForConditionalGeneration

    model, report = PI0ForConditionalGeneration.from_pretrained(pi0_folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.chunk_size == 6 and model.config.num_inference_steps == 3


def test_the_default_has_a_few_million_parameters(tmp_path):
    pytest.importorskip("transformers", minversion="5.24")
    weights = load_file(write_tiny_checkpoint(tmp_path / "tiny") / "model.safetensors")
    assert 2e6 < sum(value.numel() for value in weights.values()) < 4e6


def test_the_command_writes_what_it_is_told(pi0_folder, tmp_path, capsys):
    from pcm_rl.policies.pi0 import open_checkpoint

    state = torch.get_rng_state()
    options = ["--image-size", "14", "--width", "16", "--depth", "1", "--chunk-size", "3", "--numbers", "8"]
    main([str(tmp_path / "a"), *options, "--steps", "2", "--seed", "4"])
    assert "written" in capsys.readouterr().out and torch.equal(state, torch.get_rng_state())
    found = open_checkpoint(tmp_path / "a")
    assert (found.image_size, found.config.chunk_size, found.config.max_action_dim) == (14, 3, 8)
    same = load_file(write_tiny_checkpoint(tmp_path / "b", SMALL, seed=4) / "model.safetensors")
    other = load_file(write_tiny_checkpoint(tmp_path / "c", SMALL, seed=5) / "model.safetensors")
    first = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
    with pytest.raises(FileExistsError, match="not empty"):
        write_tiny_checkpoint(tmp_path / "a", SMALL)
