"""Adapters that peft itself wrote: they act as they do there, are trained further, and are written as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcm_rl.policies.openvla import CheckpointError, open_checkpoint
from pcm_rl.policies.openvla.adapter_folder import already_added, check_base, open_adapters
from pcm_rl.policies.openvla.lora import load_adapters, lora_layers, save_adapters
from pcm_rl.policies.openvla.merged import save_merged

TEXTS = ["lift it", "put the bowl on the plate"]


@torch.no_grad()
def logits(policy, rows):
    return policy.get_dist(rows.select(*policy.in_keys)).logits


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for shard in folder.glob("model*.safetensors") for key, value in load_file(shard).items()}


@pytest.fixture
def adapters(published, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(published[0], tmp_path / "adapters"))


def change(folder: Path, **entries: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("train", [True, False])
def test_they_act_as_the_checkpoint_that_peft_merged(make_openvla, record_openvla, published, train):
    folder, merged = published
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    before = logits(policy, rows)
    trained = load_adapters(policy.model, open_adapters(folder), train=train)
    expected = logits(make_openvla(merged), rows)
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(logits(policy, rows), expected, rtol=1e-4, atol=1e-4)
    assert set(trained) == set(lora_layers(policy.model))
    assert len(trained) == (2 * 2 * 4 + 3 + 2 * 7) * train, "the head and two convolutions are added to the weights"
    assert all(parameter.requires_grad == (".lora_" in name) for name, parameter in policy.named_parameters())


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"r": 3, "lora_alpha": 5}, {"targets": ["q_proj"]}])
def test_rank_scale_and_layers_are_the_folders(by_peft, make_openvla, record_openvla, options):
    folder, merged = by_peft(**options)
    policy = make_openvla()
    rows = record_openvla(policy, TEXTS)
    load_adapters(policy.model, open_adapters(folder))
    torch.testing.assert_close(logits(policy, rows), logits(make_openvla(merged), rows), rtol=1e-4, atol=1e-4)


def test_written_again_they_are_those_that_were_read(make_openvla, record_openvla, published, tmp_path):
    """Also those of layers that are not built here; and peft reads the file."""
    peft = pytest.importorskip("peft")
    folder, merged = published
    source, policy = open_adapters(folder), make_openvla()
    rows = record_openvla(policy, TEXTS)
    load_adapters(policy.model, source)
    written = save_adapters(policy.model, tmp_path / "written", "some/base", source)
    old, new = (load_file(place / "adapter_model.safetensors") for place in (folder, written))
    assert set(old) == set(new) and all(torch.equal(old[key], new[key]) for key in old)
    assert peft.LoraConfig.from_pretrained(str(written)).lora_alpha == 8
    torch.testing.assert_close(logits(policy, rows), logits(make_openvla(merged), rows), rtol=1e-4, atol=1e-4)


def test_a_merged_export_has_all_of_them(make_openvla, published, tmp_path):
    """Every tensor is the one that peft's merge has, the unused ones among them."""
    folder, merged = published
    source, expected = open_adapters(folder), weights_of(merged)
    for train in (True, False):
        policy = make_openvla()
        load_adapters(policy.model, source, train=train)
        if not train:  # as policy.openvla.lora.rank=0 trains
            policy.model.requires_grad_()
        found = weights_of(save_merged(policy.model, policy.checkpoint, tmp_path / f"merged-{train}", source))
        assert set(found) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=key)


def test_what_was_trained_further_is_exported(make_openvla, record_openvla, published, tmp_path):
    source, policy = open_adapters(published[0]), make_openvla()
    rows = record_openvla(policy, TEXTS)
    load_adapters(policy.model, source)
    with torch.no_grad():
        for layer in lora_layers(policy.model).values():
            layer.up.add_(0.05)
    expected = logits(policy, rows)
    merged = save_merged(policy.model, policy.checkpoint, tmp_path / "merged", source)
    torch.testing.assert_close(logits(make_openvla(merged), rows), expected, rtol=1e-4, atol=1e-4)
    other = make_openvla()
    load_adapters(other.model, open_adapters(save_adapters(policy.model, tmp_path / "adapters", "base", source)))
    assert torch.equal(logits(other, rows), expected)


def test_the_weights_tell_whether_they_have_them(published, openvla_folder, by_peft, tmp_path):
    folder, merged = published
    source = open_adapters(folder)
    assert already_added(open_checkpoint(openvla_folder), source) is False
    assert already_added(open_checkpoint(merged), source) is True
    other = open_adapters(by_peft(lora_alpha=9)[0])  # the same directions, another size
    assert already_added(open_checkpoint(merged), other) is True
    tensors = load_file(folder / "adapter_model.safetensors")
    small = Path(shutil.copytree(folder, tmp_path / "small"))
    for scale in (1e-3, 0.0):  # lost in the weights, or nothing at all
        save_file({key: value * scale for key, value in tensors.items()}, small / "adapter_model.safetensors")
        assert already_added(open_checkpoint(merged), open_adapters(small)) is None


def test_adapters_of_another_base_are_refused(adapters, openvla_folder):
    """Where the head has an adapter, peft writes the head of the base too."""
    check_base(open_checkpoint(openvla_folder), open_adapters(adapters))
    weights = adapters / "adapter_model.safetensors"
    head = "base_model.model.language_model.lm_head.base_layer.weight"
    tensors = load_file(weights)
    for changed in (tensors[head] + 1e-3, tensors[head][:-1].clone()):
        save_file(tensors | {head: changed}, weights)
        with pytest.raises(CheckpointError, match=r"another language_model.lm_head.weight; they were trained on"):
            check_base(open_checkpoint(openvla_folder), open_adapters(adapters))


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern="),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern="),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"peft_type": "IA3"}, "peft_type=IA3"),
        ({"of_next_year": {"a": 1}}, "of_next_year="),
    ],
)
def test_other_kinds_are_refused_by_name(adapters, entries, named):
    change(adapters, **entries)
    with pytest.raises(CheckpointError, match=rf"expected plain LoRA, got {named}.*; merge these adapters .*with peft"):
        open_adapters(adapters)


def test_what_is_missing_or_does_not_fit_is_named(adapters, make_openvla, tmp_path):
    with pytest.raises(CheckpointError, match=rf"expected adapters in {tmp_path}, found no adapter_config.json$"):
        open_adapters(tmp_path)
    shutil.copytree(adapters, tmp_path / "run" / "lora_adapter")
    with pytest.raises(CheckpointError, match=r"did you mean .*run/lora_adapter\?"):
        open_adapters(tmp_path / "run")
    weights = adapters / "adapter_model.safetensors"
    tensors = load_file(weights)
    lone = "base_model.model.projector.fc1.lora_A.weight"
    save_file({key: value for key, value in tensors.items() if key != lone}, weights)
    with pytest.raises(CheckpointError, match="expected a lora_A and a lora_B for each layer"):
        open_adapters(adapters)
    save_file(tensors | {"base_model.model.new.lora_A.weight": torch.zeros(4, 2),
                         "base_model.model.new.lora_B.weight": torch.zeros(2, 4)}, weights)  # fmt: skip
    with pytest.raises(CheckpointError, match=r"expected adapters of an OpenVLA, got one for new"):
        load_adapters(make_openvla().model, open_adapters(adapters))
    save_file(tensors | {lone: torch.zeros(4, 9)}, weights)
    with pytest.raises(CheckpointError, match=r"adapter of \(\d+, \d+\) for projector.fc1, got \(\d+, 9\)"):
        load_adapters(make_openvla().model, open_adapters(adapters))
    save_file(tensors, weights)
    change(adapters, r=2)
    with pytest.raises(CheckpointError, match=r"of r=2 for .*, got \(4, .*do .* belong together"):
        open_adapters(adapters)
    weights.rename(adapters / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"found no adapter_model.safetensors; pickles .* are never opened"):
        open_adapters(adapters)
