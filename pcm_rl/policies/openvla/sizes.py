"""The sizes of all parts of an OpenVLA model, read from its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pcm_rl.policies.checkpoint_files import CheckpointError

TOWERS_FIELD = "pcm_rl_towers"  # of config.json: tower sizes where vision_backbone_id does not name them


@dataclass(frozen=True)
class TowerSizes:
    """A vision transformer on square images.

    Attributes:
        width: Channels.
        depth: Blocks that the checkpoint has; the last is never used (see
            :mod:`~pcm_rl.policies.openvla.network.vision`).
        heads: Attention heads.
        mlp: Hidden width of a block's MLP.
        prefix: Tokens before the patches: class token and registers. 0 has neither.
        layer_scale: Whether a block scales its branches.
        patch: Pixels a side of a patch.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    prefix: int = 0
    layer_scale: bool = False
    patch: int = 14


@dataclass(frozen=True)
class LanguageSizes:
    """A Llama. The defaults are Llama-2-7B's, since a published ``text_config`` leaves them out.

    Attributes:
        hidden_size: Channels.
        num_hidden_layers: Blocks.
        num_attention_heads: Heads of the queries.
        num_key_value_heads: Heads of keys and values.
        intermediate_size: Hidden width of a block's MLP.
        vocab_size: Rows of the embedding, padded.
        rms_norm_eps: Added to the mean square.
        rope_theta: Base of the rotary frequencies.
    """

    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    intermediate_size: int = 11008
    vocab_size: int = 32064
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class ModelSizes:
    """A whole model.

    Attributes:
        towers: The two vision towers, in the order of their channels.
        language: The language model.
        image_size: Pixels a side of an image.
        num_images: Images that the model sees at a decision.
        action_bins: Bins an action dimension: the last ids of the vocabulary without its padding.
        vocab_padding: Rows that pad the vocabulary.
        proprio_dim: Size of the proprioception that the model reads; 0 reads none.
    """

    towers: tuple[TowerSizes, TowerSizes]
    language: LanguageSizes = LanguageSizes()
    image_size: int = 224
    num_images: int = 1
    action_bins: int = 256
    vocab_padding: int = 64
    proprio_dim: int = 0

    @property
    def patches(self) -> int:
        """Vision tokens of all images together."""
        return self.num_images * (self.image_size // self.towers[0].patch) ** 2

    @property
    def first_action_id(self) -> int:
        """Vocabulary id of the first action token."""
        return self.language.vocab_size - self.vocab_padding - self.action_bins


PUBLISHED_TOWERS = {
    "dinosiglip-vit-so-224px": (
        TowerSizes(width=1024, depth=24, heads=16, mlp=4096, prefix=5, layer_scale=True),
        TowerSizes(width=1152, depth=27, heads=16, mlp=4304),
    )
}


def read_sizes(config: Mapping[str, Any], *, proprio_dim: int = 0) -> ModelSizes:
    """Sizes from a checkpoint's ``config.json``.

    Args:
        config: Its content.
        proprio_dim: See :class:`ModelSizes`; known from the weights, not from the configuration.

    Raises:
        CheckpointError: If the architecture is not supported.
    """
    if config.get("model_type") != "openvla":
        remote = " It would need the remote code of its auto_map, which is never run." if "auto_map" in config else ""
        raise CheckpointError(
            f"expected config.json of model_type 'openvla', got {config.get('model_type')!r}.{remote}"
        )
    if not config.get("use_fused_vision_backbone", True):
        raise CheckpointError("expected a fused vision backbone (two towers), got use_fused_vision_backbone=false")
    sizes = {*config.get("image_sizes", [224])}
    if len(sizes) != 1:
        raise CheckpointError(f"expected one image size for both towers, got {sorted(sizes)}")
    return ModelSizes(
        towers=_towers(config),
        language=_language(config.get("text_config", {})),
        image_size=sizes.pop(),
        num_images=config.get("num_images_in_input", 1),
        action_bins=config.get("n_action_bins", 256),
        vocab_padding=config.get("pad_to_multiple_of", 64),
        proprio_dim=proprio_dim,
    )


def _towers(config: Mapping[str, Any]) -> tuple[TowerSizes, TowerSizes]:
    if TOWERS_FIELD in config:
        first, second = (TowerSizes(**tower) for tower in config[TOWERS_FIELD])
        return first, second
    backbone = config.get("vision_backbone_id")
    if backbone not in PUBLISHED_TOWERS:
        raise CheckpointError(
            f"expected vision_backbone_id to be one of {', '.join(PUBLISHED_TOWERS)}, or tower sizes under "
            f"{TOWERS_FIELD!r}, got {backbone!r}"
        )
    return PUBLISHED_TOWERS[backbone]


def _language(text: Mapping[str, Any]) -> LanguageSizes:
    if text.get("model_type", "llama") != "llama":
        raise CheckpointError(f"expected text_config of model_type 'llama', got {text['model_type']!r}")
    if text.get("rope_scaling") is not None:
        raise CheckpointError(f"rope_scaling is not supported, got {text['rope_scaling']}")
    known = asdict(LanguageSizes())
    settings = {key: value for key, value in text.items() if key in known}
    if "num_attention_heads" in settings:  # as in Llama: no grouping unless it is configured
        settings.setdefault("num_key_value_heads", settings["num_attention_heads"])
    settings.setdefault("rope_theta", (text.get("rope_parameters") or {}).get("rope_theta", known["rope_theta"]))
    return LanguageSizes(**settings)
