"""The towers against transformers' models with the same weights."""

from __future__ import annotations

import pytest
import torch

from pcm_rl.policies.openvla.network.vision import VisionBackbone, VisionTower
from pcm_rl.policies.openvla.sizes import TowerSizes

IMAGE, DEPTH = 42, 3
DINO = TowerSizes(width=32, depth=DEPTH, heads=2, mlp=64, prefix=5, layer_scale=True)
SIGLIP = TowerSizes(width=24, depth=DEPTH, heads=3, mlp=40)


def split_blocks(weights, own, theirs, norms):
    """Timm's blocks under transformers' names: one ``qkv`` becomes three projections."""
    found = {}
    for i in range(DEPTH - 1):
        block = f"blocks.{i}."
        for kind in ("weight", "bias"):
            parts = weights[f"{block}attn.qkv.{kind}"].chunk(3)
            names = [theirs[0].format(i) + f".{part}_proj.{kind}" for part in "qkv"]
            found |= dict(zip(names, parts, strict=True))
            found[theirs[1].format(i) + f".{kind}"] = weights[f"{block}attn.proj.{kind}"]
            for name, other in {**norms, "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items():
                found[f"{own.format(i)}.{other}.{kind}"] = weights[f"{block}{name}.{kind}"]
    return found


def loaded(oracle, found, allowed):
    missing, unknown = oracle.load_state_dict(found, strict=False)
    assert not unknown and all(any(part in name for part in allowed) for name in missing), (missing, unknown)
    return oracle.eval()


@torch.no_grad()
def test_dinov2_is_that_of_transformers(randomise):
    pytest.importorskip("transformers")
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    tower = randomise(VisionTower(DINO, IMAGE))
    weights = tower.state_dict()
    oracle = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=32,
            num_hidden_layers=DEPTH,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=IMAGE,
            patch_size=14,
            num_register_tokens=4,
            layer_norm_eps=1e-6,
        )
    )
    layer = "encoder.layer.{}"
    found = split_blocks(
        weights, layer, (layer + ".attention", layer + ".attention.o_proj"), {"norm1": "norm1", "norm2": "norm2"}
    )
    for i in range(DEPTH - 1):
        for j in (1, 2):
            found[f"encoder.layer.{i}.layer_scale{j}.lambda1"] = weights[f"blocks.{i}.ls{j}.scale_factor"]
    for kind in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{kind}"] = weights[f"patch_embed.proj.{kind}"]
    found["embeddings.cls_token"], found["embeddings.register_tokens"] = weights["cls_token"], weights["reg_token"]
    no_position = torch.zeros(1, 1, 32)  # timm's class token has none
    found["embeddings.position_embeddings"] = torch.cat([no_position, weights["pos_embed"]], 1)
    loaded(oracle, found, (f"layer.{DEPTH - 1}.", "layernorm.", "mask_token"))
    pixels = torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
    expected = oracle(pixels, output_hidden_states=True).hidden_states[-2][:, 5:]
    assert expected.shape == (2, 9, 32) and expected.std() > 0.5
    torch.testing.assert_close(tower(pixels), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_siglip_is_that_of_transformers(randomise):
    pytest.importorskip("transformers")
    from transformers import SiglipVisionConfig, SiglipVisionModel

    tower = randomise(VisionTower(SIGLIP, IMAGE))
    weights = tower.state_dict()
    oracle = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=24,
            num_hidden_layers=DEPTH,
            num_attention_heads=3,
            intermediate_size=40,
            image_size=IMAGE,
            patch_size=14,
            layer_norm_eps=1e-6,
            hidden_act="gelu",
        )
    )
    layer = "encoder.layers.{}"
    found = split_blocks(
        weights,
        layer,
        (layer + ".self_attn", layer + ".self_attn.out_proj"),
        {"norm1": "layer_norm1", "norm2": "layer_norm2"},
    )
    for kind in ("weight", "bias"):
        found[f"embeddings.patch_embedding.{kind}"] = weights[f"patch_embed.proj.{kind}"]
    found["embeddings.position_embedding.weight"] = weights["pos_embed"][0]
    loaded(oracle, found, (f"layers.{DEPTH - 1}.", "post_layernorm.", "head."))
    pixels = torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
    expected = oracle(pixels, output_hidden_states=True).hidden_states[-2]
    assert expected.shape == (2, 9, 24) and expected.std() > 0.5
    torch.testing.assert_close(tower(pixels), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_channels_go_to_their_tower_and_images_stand_one_after_the_other(randomise):
    backbone = randomise(VisionBackbone((DINO, SIGLIP), IMAGE))
    pixels = torch.randn(2, 12, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
    expected = [
        torch.cat([backbone.featurizer(image[:, :3]), backbone.fused_featurizer(image[:, 3:])], -1)
        for image in (pixels[:, :6], pixels[:, 6:])
    ]
    torch.testing.assert_close(backbone(pixels), torch.cat(expected, 1), rtol=1e-5, atol=1e-5)


def test_nothing_is_built_that_nothing_reads():
    tower = VisionTower(DINO, IMAGE)
    assert len(tower.blocks) == DEPTH - 1
    assert {name.split(".")[0] for name, _ in tower.named_parameters()} == {
        "patch_embed", "pos_embed", "cls_token", "reg_token", "blocks",
    }  # fmt: skip
