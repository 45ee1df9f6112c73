"""Folders of checkpoints: both layouts load, all else is refused in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pcm_rl.episodes import CHUNK

STATISTICS = "policy_preprocessor_step_5_normalizer_processor.safetensors"


def change(path: Path, **entries: object) -> None:
    content = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.fixture
def copied(pi0_folder, tmp_path) -> Path:
    return Path(shutil.copytree(pi0_folder, tmp_path / "copied"))


def to_lerobot(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights under lerobot's names, as its checkpoints on the hub have them."""
    parts = {
        "model.vlm.language_model.embed_tokens": "paligemma_with_expert.paligemma.lm_head",
        "model.vlm.vision_tower": "paligemma_with_expert.paligemma.model.vision_tower.vision_model",
        "model.vlm": "paligemma_with_expert.paligemma.model",
        "model.dit.embed_tokens": "paligemma_with_expert.gemma_expert.lm_head",
        "model.dit": "paligemma_with_expert.gemma_expert.model",
        "embed_action_time": "",
        "action_out_proj": "action_out_proj",
    }
    weights = {}
    for name, value in model.state_dict().items():
        part = next(part for part in parts if name.startswith(f"{part}."))
        weights[f"model.{parts[part]}{name.removeprefix(part)}".replace("..", ".")] = value.contiguous()
    return weights


@pytest.fixture
def lerobot(copied, pi0) -> Path:
    """The tiny checkpoint in lerobot's layout, but for its configuration, which has no such sizes."""
    save_file(to_lerobot(pi0.model), copied / "model.safetensors")
    (copied / "processor_config.json").unlink()
    statistics = {
        f"{feature}.{what}": getattr(pi0, f"{name}_{what}").clone()
        for feature, name in (("observation.state", "state"), ("action", "action"))
        for what in ("mean", "std")
    }
    save_file(statistics | {"observation.images.image.mean": torch.zeros(3, 1, 1)}, copied / STATISTICS)
    return copied


def test_lerobots_layout_is_the_same_policy(lerobot, make_pi0, pi0, record_pi0):
    policy = make_pi0(lerobot, cameras=2)
    assert policy.statistics == pi0.statistics
    state = pi0.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in policy.state_dict().items())
    assert torch.equal(record_pi0(policy)[CHUNK], record_pi0(pi0)[CHUNK])


def test_lerobots_configuration_gives_the_published_sizes(lerobot):
    from pcm_rl.policies.pi0 import open_checkpoint

    content = {"type": "pi0", "chunk_size": 10, "max_state_dim": 32, "max_action_dim": 32, "dtype": "float32"}
    content |= {"n_action_steps": 10, "paligemma_variant": "gemma_2b", "normalization_mapping": {"ACTION": "MEAN_STD"}}
    (lerobot / "config.json").write_text(json.dumps(content))
    found = open_checkpoint(lerobot)
    assert (found.image_size, found.image_tokens, found.config.chunk_size) == (224, 256, 10)
    assert found.config.dit_config.hidden_size == 1024 and found.image_scale[0] == [127.5] * 3


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"normalization_mapping": {"ACTION": "QUANTILES"}},
            "scaled by MEAN_STD, as pi0's are, got .'ACTION': 'QUANTILES'",
        ),
        ({"use_relative_actions": True}, "as the environment executes them, got use_relative_actions=true"),
    ],
)
def test_other_conventions_of_lerobot_are_refused(lerobot, entries, message):
    from pcm_rl.policies.pi0 import CheckpointError, open_checkpoint

    change(lerobot / "config.json", **entries)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(lerobot)


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("config.json", {"model_type": "openvla"}, "expected a checkpoint of pi0, got 'openvla'.*give the folder"),
        ("config.json", {"model_type": None}, "expected a checkpoint of pi0, got None"),
        ("config.json", {"chunk_size": "many"}, "config.json does not describe a pi0"),
        ("processor_config.json", {"image_processor": {"do_rescale": False}}, "got do_rescale=false"),
        (
            "processor_config.json",
            {"image_processor": {"image_seq_length": 256}},
            "counts 256 tokens an image.* 4; are",
        ),
        ("processor_config.json", {"actions_std": [1.0]}, "as many numbers in actions_mean as in actions_std"),
        ("processor_config.json", {"state_std": None}, "expected state_std as a list of numbers, got None"),
        ("processor_config.json", {"state_std": [-1.0] * 8}, "expected finite state_mean and state_std, not below 0"),
        ("processor_config.json", {"state_mean": [0.0] * 33, "state_std": [1.0] * 33}, "33 numbers .* the model's 32"),
    ],
)
def test_files_that_do_not_fit_are_refused(copied, name, entries, message):
    from pcm_rl.policies.pi0 import CheckpointError, open_checkpoint

    change(copied / name, **entries)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(copied)
    assert "\n" not in str(caught.value)


def test_dropout_is_refused(copied):
    from pcm_rl.policies.pi0 import CheckpointError, open_checkpoint

    config = json.loads((copied / "config.json").read_text())
    config["dit_config"]["attention_dropout"] = 0.1
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"expected attention_dropout=0, got 0\.1.*set it to 0"):
        open_checkpoint(copied)


@pytest.mark.parametrize(
    ("lost", "made", "message"),
    [
        ("model.safetensors", "pytorch_model.bin", r"expected safetensors, got pickled weights \(pytorch_model\.bin\)"),
        ("model.safetensors", None, "expected model.safetensors, which is missing"),
        ("config.json", None, "expected config.json, which is missing"),
        ("tokenizer.json", None, "expected tokenizer.json, which is missing.*put the tokenizer of PaliGemma there"),
        (None, "config.json", "config.json is damaged"),
        (None, "adapter_config.json", "expected a whole model, got adapters .*; merge them into their base"),
    ],
)
def test_folders_that_lack_something_are_refused(copied, lost, made, message):
    from pcm_rl.policies.pi0 import CheckpointError, open_checkpoint

    if lost:
        (copied / lost).unlink()
    if made:
        (copied / made).write_bytes(b"{")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(copied)


def test_no_folder_is_refused(tmp_path, pi0_folder):
    from pcm_rl.policies.pi0 import CheckpointError, open_checkpoint

    with pytest.raises(CheckpointError, match="is no folder; download a checkpoint first, or write a tiny one"):
        open_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("kind", ["less", "other", "cut"])
def test_weights_that_do_not_fit_are_refused(copied, make_pi0, kind):
    from pcm_rl.policies.pi0 import CheckpointError

    path = copied / "model.safetensors"
    weights = load_file(path)
    message = "its weights do not fit config.json"
    if kind == "less":
        del weights["action_out_proj.bias"]
        message = "lacks 1 weights of a pi0, such as action_out_proj.bias"
    else:
        weights["state_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, path, {"format": "pt"})
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=message) as caught:
        make_pi0(copied)
    assert "\n" not in str(caught.value)


def test_another_models_tokenizer_is_refused(copied, make_pi0):
    from pcm_rl.policies.pi0 import CheckpointError

    config = json.loads((copied / "config.json").read_text())
    config["vlm_config"]["image_token_index"] = 7
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"<image> is 260, expected 7.*put the tokenizer of this checkpoint"):
        make_pi0(copied)


def test_statistics_of_a_file(tmp_path, pi0_folder):
    from pcm_rl.policies.pi0 import open_checkpoint

    known = open_checkpoint(pi0_folder)
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(known.statistics.as_dict() | {"state_mean": [1.0] * 8}))
    assert known.with_statistics(path).statistics.state_mean == (1.0,) * 8
    part = {"mean": [0.5] * 3, "std": [2.0] * 3, "count": [7]}
    path.write_text(json.dumps({"observation.state": part, "action": part}))
    assert known.with_statistics(path).statistics.actions_std == (2.0,) * 3
    path.write_text(json.dumps({"action": part}))
    with pytest.raises(ValueError, match=r"statistics\.json: expected state_mean as a list of numbers, got None"):
        known.with_statistics(path)
    path.write_text("[")
    with pytest.raises(ValueError, match="is no JSON"):
        known.with_statistics(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"statistics\.json"):
        known.with_statistics(path)
    with pytest.raises(ValueError, match=r"cannot read .*none"):
        known.with_statistics(tmp_path / "none")
