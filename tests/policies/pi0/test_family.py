"""``policy.family=pi0``: made for an environment, or refused in a line."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pcm_rl.config import ConfigError, load_config
from pcm_rl.training.build import load_start, policy_for
from pcm_rl.training.checkpoint import load_policy, save_policy


def images(size: int = 28) -> spaces.Box:
    return spaces.Box(0, 255, (size, size, 3), np.uint8)


def observation(state: int = 8, **parts: spaces.Space[Any]) -> spaces.Dict:
    return spaces.Dict({"state": spaces.Box(-9, 9, (state,)), "image": images(), **parts})


def actions(length: int = 4, numbers: int = 7) -> spaces.Box:
    return spaces.Box(-1, 1, (length, numbers))


@pytest.fixture
def make(pi0_folder):
    def build(*overrides: str, seen=None, acts=None, checkpoint=pi0_folder):
        own = ["policy.family=pi0", f"policy.pi0.checkpoint={checkpoint}", *overrides]
        torch.manual_seed(0)
        return policy_for(load_config(None, own).policy, seen or observation(), acts or actions(), "cpu")

    return build


def test_settings_of_a_recipe(make):
    policy = make("policy.pi0.steps=5", "policy.pi0.noise_level=0.3", seen=observation(wrist_image=images()))
    assert (policy.steps, policy.noise_level, len(policy.image_keys)) == (5, 0.3, 2)
    assert make().steps == 3 and len(make().image_keys) == 1
    assert torch.equal(policy.action_low, torch.full((4, 7), -1.0))


def test_one_camera_of_two(make):
    assert len(make("policy.pi0.cameras=1", seen=observation(wrist_image=images(56))).image_keys) == 1


def test_liberos_state_has_another_name(make):
    # where an observation has two vectors, the row's state is the first by these names, and the other is not read
    libero = spaces.Dict({"image": images(), "proprio": spaces.Box(-9, 9, (8,))})
    assert len(make(seen=libero).image_keys) == 1
    with pytest.raises(ConfigError, match=r"state of 8 numbers.*gives \(40,\)"):
        make(seen=spaces.Dict({**libero.spaces, "state": spaces.Box(-9, 9, (40,))}))


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ("expert", {"model.model.dit", "model.embed_action_time", "model.action_out_proj"}),
        ("all", {"model.model.dit", "model.embed_action_time", "model.action_out_proj", "model.model.vlm"}),
        ("lora", {"model.model.dit", "model.action_out_proj"}),
    ],
)
def test_what_is_trained(make, train, parts):
    policy = make(f"policy.pi0.train={train}")
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert {part for part in ("model.model.dit", "model.model.vlm", "model.embed_action_time", "model.action_out_proj")
            if any(name.startswith(part) for name in trained)} == parts  # fmt: skip
    assert all((".lora_" in name) == (train == "lora") for name in trained)


def test_lora_on_named_layers(make):
    options = ["policy.pi0.train=lora", "policy.pi0.lora.rank=2"]
    policy = make(*options, "policy.pi0.lora.targets=[q_proj,model.action_out_proj]".replace("model.", ""))
    named = {name.split(".lora_")[0] for name, p in policy.named_parameters() if p.requires_grad}
    assert "model.action_out_proj" in named and len(named) == 1 + 2 + 1 + 2  # expert, VLM without its last, towers
    with pytest.raises(ConfigError, match=r"policy\.pi0\.checkpoint: expected expert, vlm, all, .* got \['nothing'\]"):
        make(*options, "policy.pi0.lora.targets=[nothing]")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acts": actions(7)}, r"chunks have 7 steps, more than the 6 .*; give env\.chunk_length=6 or less"),
        ({"acts": actions(4, 6)}, r"actions have 6 numbers, the statistics of .* 7; give policy\.pi0\.statistics=FILE"),
        (
            {"seen": observation(image=images(56))},
            r"28 x 28 pixels, those of the environment are \(56, 56, 3\); give .env.images={prepare: pi0, size: 28}",
        ),
        ({"seen": observation(9)}, r"a state of 8 numbers, .* gives \(9,\); give policy\.pi0\.statistics=FILE"),
        ({"seen": spaces.Dict({"image": images()})}, "a state of 8 numbers, .* gives none"),
        ({"seen": spaces.Box(-1, 1, (8,))}, r"expected images from 1 cameras .* gives 0; with LIBERO give"),
        ({"checkpoint": "/nowhere"}, r"policy\.pi0\.checkpoint: /nowhere is no folder"),
    ],
)
def test_environments_that_do_not_fit_are_refused(make, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(**options)
    assert str(caught.value).startswith("policy.family=pi0: ") and "\n" not in str(caught.value)


def test_two_cameras_where_there_is_one_are_refused(make):
    with pytest.raises(ConfigError, match="expected images from 2 cameras"):
        make("policy.pi0.cameras=2")


def test_no_checkpoint_is_refused(make):
    with pytest.raises(ConfigError, match=r"give policy\.pi0\.checkpoint=FOLDER"):
        make("policy.pi0.checkpoint=null")


def test_missing_statistics_are_refused_and_those_of_a_file_taken(make, pi0_folder, tmp_path):
    bare = shutil.copytree(pi0_folder, tmp_path / "bare")
    content = json.loads((bare / "processor_config.json").read_text())
    statistics = {name: content.pop(name) for name in ("state_mean", "state_std", "actions_mean", "actions_std")}
    (bare / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"has no statistics .*; give policy\.pi0\.statistics=FILE"):
        make(checkpoint=bare)
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(statistics | {"actions_mean": [0.25] * 7}))
    policy = make(f"policy.pi0.statistics={file}", checkpoint=bare)
    assert torch.equal(policy.action_mean, torch.full((7,), 0.25))
    with pytest.raises(ConfigError, match=r"policy\.pi0\.statistics: cannot read .*none\.json"):
        make(f"policy.pi0.statistics={tmp_path}/none.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.pi0.noise_level=0", r"policy\.pi0\.noise_level must be above 0, got 0.*log-prob"),
        ("policy.pi0.train=some", r"policy\.pi0\.train must be one of expert, all, lora"),
        ("policy.pi0.dtype=int8", r"policy\.pi0\.dtype must be one of"),
        ("policy.pi0.cameras=3", r"policy\.pi0\.cameras must be in \[1, 2\], got 3"),
        ("policy.pi0.steps=0", r"policy\.pi0\.steps must be at least 1"),
        ("policy.pi0.lora.rank=0", r"policy\.pi0\.lora\.rank must be at least 1"),
        ("policy.pi0.lora.rank=8", r"policy\.pi0\.lora is set .*train=expert; give policy\.pi0\.train=lora"),
        ("update.entropy_coeff=0.1", r"update\.entropy_coeff=0\.1 means nothing for policy\.family=pi0.*; give 0"),
        ("policy.openvla.checkpoint=x", r"policy\.openvla is set and means nothing for policy\.family=pi0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["policy.family=pi0", override])


def test_a_checkpoint_begins_trained(pi0_folder):
    config = load_config(None, ["policy.family=pi0", f"policy.pi0.checkpoint={pi0_folder}", "sft.steps=0"])
    assert config.begins_trained


@pytest.mark.parametrize("train", ["expert", "lora"])
def test_trained_weights_are_saved_and_loaded(make, tmp_path, train):
    option = f"policy.pi0.train={train}"
    policy = make(option)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    save_policy(policy, tmp_path / "policy.safetensors")
    other = make(option)
    with torch.no_grad():
        load_policy(other, tmp_path / "policy.safetensors")
    expected = policy.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_weights_of_other_units_are_refused(make, tmp_path, pi0_folder):
    save_policy(make(), tmp_path / "policy.safetensors")
    content = json.loads((pi0_folder / "processor_config.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(content | {"actions_std": [2.0] * 7}))
    other = make(f"policy.pi0.statistics={tmp_path}/other.json")
    with pytest.raises(ConfigError, match=r"its units are others \(action_std is"):
        load_start(other, str(tmp_path / "policy.safetensors"))


def test_a_missing_package_is_named(make, monkeypatch):
    import transformers

    monkeypatch.delattr(transformers, "PI0ForConditionalGeneration", raising=False)
    monkeypatch.setattr(type(transformers), "__getattr__", _missing, raising=False)
    with pytest.raises(ImportError, match=r"transformers of at least 5\.24.*pip install 'pcm_rl\[pi0\]'"):
        make()


def _missing(module: Any, name: str) -> Any:
    raise AttributeError(name)


@pytest.mark.parametrize(("train", "package"), [("expert", "transformers"), ("lora", "peft")])
def test_the_check_of_a_recipe_names_a_missing_package(monkeypatch, train, package):
    from pcm_rl.checks import recipe

    config = load_config(None, ["policy.family=pi0", f"policy.pi0.train={train}", "logger=none"])
    pytest.importorskip(package)
    assert recipe._check_extras(config)
    monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(ConfigError, match=rf"policy\.family=pi0 needs {package}; run: pip install 'pcm_rl\[pi0\]'"):
        recipe._check_extras(config)
