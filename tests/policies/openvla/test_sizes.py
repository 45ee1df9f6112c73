from __future__ import annotations

import pytest

from pcm_rl.policies.openvla.sizes import (
    TOWERS_FIELD,
    CheckpointError,
    LanguageSizes,
    ModelSizes,
    TowerSizes,
    read_sizes,
)

PUBLISHED = {
    "model_type": "openvla",
    "image_sizes": [224, 224],
    "n_action_bins": 256,
    "pad_to_multiple_of": 64,
    "text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064},
    "use_fused_vision_backbone": True,
    "vision_backbone_id": "dinosiglip-vit-so-224px",
}


def test_a_published_configuration_is_the_published_model():
    expected = ModelSizes(
        towers=(
            TowerSizes(width=1024, depth=24, heads=16, mlp=4096, prefix=5, layer_scale=True, patch=14),
            TowerSizes(width=1152, depth=27, heads=16, mlp=4304, prefix=0, layer_scale=False, patch=14),
        ),
        language=LanguageSizes(
            hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
            intermediate_size=11008, vocab_size=32064, rms_norm_eps=1e-6, rope_theta=10000.0,
        ),
        image_size=224, num_images=1, action_bins=256, vocab_padding=64, proprio_dim=0,
    )  # fmt: skip
    sizes = read_sizes(PUBLISHED)
    assert sizes == expected
    assert sizes.patches == 256 and sizes.first_action_id == 31744
    assert read_sizes({key: PUBLISHED[key] for key in ("model_type", "vision_backbone_id")}) == expected


def test_what_text_config_says_wins():
    text = {"num_attention_heads": 8, "hidden_size": 64, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 5e5}}
    language = read_sizes({**PUBLISHED, "text_config": text}).language
    assert (language.hidden_size, language.rms_norm_eps, language.rope_theta) == (64, 1e-5, 5e5)
    assert (language.num_attention_heads, language.num_key_value_heads) == (8, 8), "no grouping unless asked for"
    grouped = read_sizes({**PUBLISHED, "text_config": {**text, "num_key_value_heads": 2, "rope_theta": 7.0}}).language
    assert (grouped.num_key_value_heads, grouped.rope_theta) == (2, 7.0)


def test_several_images_and_proprioception():
    sizes = read_sizes({**PUBLISHED, "num_images_in_input": 2, "image_sizes": [56, 56]}, proprio_dim=8)
    assert (sizes.patches, sizes.num_images, sizes.proprio_dim) == (2 * 16, 2, 8)


def test_towers_by_their_sizes():
    tower = {"width": 8, "depth": 2, "heads": 2, "mlp": 16}
    sizes = read_sizes({**PUBLISHED, "vision_backbone_id": "custom", TOWERS_FIELD: [tower, {**tower, "prefix": 3}]})
    assert sizes.towers == (TowerSizes(8, 2, 2, 16), TowerSizes(8, 2, 2, 16, prefix=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, r"expected config.json of model_type 'openvla', got 'llava'\.$"),
        ({"model_type": "x", "auto_map": {"AutoModel": "m.X"}}, r"got 'x'.*remote code of its auto_map.*never run"),
        ({"use_fused_vision_backbone": False}, "expected a fused vision backbone"),
        ({"image_sizes": [224, 384]}, r"one image size for both towers, got \[224, 384\]"),
        ({"vision_backbone_id": "clip-vit-l"}, r"one of dinosiglip-vit-so-224px.*got 'clip-vit-l'"),
        ({"text_config": {"model_type": "mistral"}}, "model_type 'llama', got 'mistral'"),
        ({"text_config": {"rope_scaling": {"factor": 2.0}}}, r"rope_scaling is not supported, got \{'factor': 2.0\}"),
    ],
)
def test_other_architectures_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        read_sizes({**PUBLISHED, **changes})
