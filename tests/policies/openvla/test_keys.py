from __future__ import annotations

from safetensors.torch import load_file

from pcm_rl.policies.openvla.keys import HEAD, is_unused, model_key
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.policies.openvla.sizes import PUBLISHED_TOWERS, ModelSizes

PUBLISHED = ModelSizes(PUBLISHED_TOWERS["dinosiglip-vit-so-224px"])


def test_every_key_is_used_once_or_declared_unused(openvla_folder, openvla_sizes):
    keys = [key for shard in openvla_folder.glob("*.safetensors") for key in load_file(shard)]
    used = [model_key(key) for key in keys if not is_unused(key, openvla_sizes)]
    assert len(set(keys)) == len(keys)
    assert sorted(used) == sorted(OpenVLA(openvla_sizes, 56).state_dict())
    unused = {key for key in keys if is_unused(key, openvla_sizes)}
    towers = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    assert {key.removeprefix(towers[0]).removeprefix(towers[1]).split(".")[0] for key in unused} == {
        "blocks", "norm", "attn_pool",
    }  # fmt: skip
    assert all(".blocks.2." in key for key in unused if "blocks" in key)


def test_layer_scales_have_two_names_and_all_else_one():
    block = "vision_backbone.featurizer.blocks.0."
    for j in (1, 2):
        assert (
            model_key(f"{block}ls{j}.gamma") == f"{block}ls{j}.scale_factor" == model_key(f"{block}ls{j}.scale_factor")
        )
    for key in (HEAD, "projector.fc1.weight", f"{block}attn.qkv.bias", "x.gamma", "ls3.gamma"):
        assert model_key(key) == key


def test_only_the_last_block_and_what_follows_is_unused():
    first, second = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
    for key in (
        first + "blocks.23.attn.qkv.weight", first + "norm.weight", second + "blocks.26.norm1.bias",
        second + "norm.bias", second + "attn_pool.latent", second + "attn_pool.mlp.fc1.weight", first + "head.weight",
    ):  # fmt: skip
        assert is_unused(key, PUBLISHED), key
    for key in (
        first + "blocks.22.attn.qkv.weight", first + "blocks.2.norm1.weight", second + "blocks.25.norm1.bias",
        second + "blocks.23.norm1.bias", first + "pos_embed", "language_model.model.norm.weight", HEAD,
    ):  # fmt: skip
        assert not is_unused(key, PUBLISHED), key
