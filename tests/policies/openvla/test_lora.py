"""Adapters: where they are, that they begin as nothing, and that peft reads them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from pcm_rl.policies.openvla import add_lora
from pcm_rl.policies.openvla.adapter_folder import open_adapters
from pcm_rl.policies.openvla.lora import load_adapters, lora_layers, save_adapters, target_layers

TEXTS = ["lift it", "put the bowl on the plate"]


@pytest.fixture
def policy(make_openvla):
    return make_openvla()


def trained(policy, rank=4, alpha=8, targets="all-linear"):
    """Adapters that do something."""
    add_lora(policy.model, rank=rank, alpha=alpha, targets=targets)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=generator)
    return policy


@torch.no_grad()
def logits(policy, rows):
    return policy.get_dist(rows.select(*policy.in_keys)).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_adapters_change_nothing(make_openvla, record_openvla, dtype):
    policy = make_openvla(dtype=dtype)
    rows = record_openvla(policy, TEXTS)
    before = logits(policy, rows)
    add_lora(policy.model, rank=4)
    assert torch.equal(logits(policy, rows), before)


def test_adapters_are_float32_on_a_bfloat16_base_and_alone_have_gradients(make_openvla, record_openvla):
    policy = make_openvla(dtype=torch.bfloat16)
    rows = record_openvla(policy, TEXTS)
    add_lora(policy.model, rank=4)
    policy.get_dist(rows.select(*policy.in_keys)).log_prob(rows["vla_action", "tokens"]).sum().backward()
    for name, parameter in policy.named_parameters():
        adapter = ".lora_" in name
        assert parameter.dtype == (torch.float32 if adapter else torch.bfloat16), name
        assert parameter.requires_grad == adapter and (parameter.grad is not None) == adapter, name
    moved = [name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) == len(lora_layers(policy.model)), "every B, and no A while B is zero"
    assert all(".lora_B." in name for name in moved)


@pytest.mark.parametrize(
    ("targets", "number"),
    [
        ("all-linear", 2 * 2 * 4 + 3 + 2 * 7),  # qkv, proj, fc1, fc2 of two blocks of two towers; projector; Llama
        ("language", 2 * 7),
        (["q_proj", "v_proj"], 2 * 2),
        (["projector.fc1"], 1),
        ("attn.qkv", 4),
        (["language_model.model.layers.1.mlp.up_proj", "o_proj"], 3),
    ],
)
def test_targets(policy, targets, number):
    names = add_lora(policy.model, rank=2, targets=targets)
    assert len(names) == number and set(lora_layers(policy.model)) == set(names)
    if targets == "language":
        assert all(name.startswith("language_model.model.layers.") for name in names)
    linear = [name for name, module in policy.model.named_modules() if isinstance(module, nn.Linear)]
    assert "language_model.lm_head" in linear and "language_model.lm_head" not in names


@pytest.mark.parametrize("targets", ["all", ["q_proj", "nothing"], [], ["proj_q"], "lm_head"])
def test_unknown_targets(policy, targets):
    with pytest.raises(ValueError, match=r"all-linear, language, or names of linear layers \(down_proj, fc1, .*got"):
        add_lora(policy.model, targets=targets)
    assert not lora_layers(policy.model)


def test_deltas_are_alpha_over_rank_times_b_a(policy):
    trained(policy, rank=4, alpha=8)
    for layer in lora_layers(policy.model).values():
        expected = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(layer.delta(), expected)


def test_saved_adapters_come_back(make_openvla, record_openvla, tmp_path):
    policy = trained(make_openvla())
    rows = record_openvla(policy, TEXTS)
    folder = save_adapters(policy.model, tmp_path / "adapters", "some/base")
    other = make_openvla()
    plain = logits(other, rows)
    names = load_adapters(other.model, open_adapters(folder))
    assert set(names) == set(lora_layers(policy.model))
    assert torch.equal(logits(other, rows), logits(policy, rows))
    assert (logits(other, rows) - plain).abs().max() > 1e-2, "they do something"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/base"


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_peft_reads_saved_adapters(make_openvla, record_openvla, tmp_path, targets):
    PeftModel = pytest.importorskip("peft").PeftModel

    policy = trained(make_openvla(), targets=targets)
    rows = record_openvla(policy, TEXTS)
    folder = save_adapters(policy.model, tmp_path / "adapters", "some/base")
    other = make_openvla()
    wrapped = PeftModel.from_pretrained(other.model, str(folder))
    torch.testing.assert_close(logits(other, rows), logits(policy, rows))  # peft adds in another order
    expected = {name: value for name, value in policy.model.named_parameters() if ".lora_" in name}
    found = {name: value for name, value in wrapped.base_model.model.named_parameters() if ".lora_" in name}
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_nothing_to_save(policy, tmp_path):
    with pytest.raises(ValueError, match="has no adapters to save"):
        save_adapters(policy.model, tmp_path / "none", "base")


def test_layers_are_named_from_the_model_without_adapters(policy):
    names = target_layers(policy.model, "all-linear")
    copied = copy.deepcopy(policy.model)
    assert add_lora(copied, rank=2) == names
