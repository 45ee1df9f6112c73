"""Write a small checkpoint with random weights, in exactly the layout of the published ones.

For tests, and for trying commands on a machine that is too small for the 7B model::

    python -m pcm_rl.policies.openvla.tiny checkpoints/tiny
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pcm_rl.policies.openvla.folder_files import INDEX
from pcm_rl.policies.openvla.keys import HEAD
from pcm_rl.policies.openvla.model_folder import NORMALISATION
from pcm_rl.policies.openvla.network.model import OpenVLA
from pcm_rl.policies.openvla.prompt import SPACE
from pcm_rl.policies.openvla.sizes import TOWERS_FIELD, LanguageSizes, ModelSizes, TowerSizes

TINY = ModelSizes(
    towers=(
        TowerSizes(width=32, depth=3, heads=2, mlp=64, prefix=5, layer_scale=True),
        TowerSizes(width=48, depth=3, heads=2, mlp=96),
    ),
    language=LanguageSizes(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=128
    ),
)
ACTIONS = {"q01": [-1.0] * 6 + [0.0], "q99": [1.0] * 7}  # a controller's range; real checkpoints have other values
PROPRIO = {  # of LIBERO's eight numbers, rounded: position (m), axis-angle (rad), fingers (m)
    "q01": [-0.5, -0.5, 0.0, -4.0, -4.0, -4.0, -0.05, -0.05],
    "q99": [0.5, 0.5, 1.5, 4.0, 4.0, 4.0, 0.05, 0.05],
}


def write_tiny_checkpoint(
    folder: str | Path, sizes: ModelSizes = TINY, *, seed: int = 0, shards: int = 2, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write weights, configuration, statistics, preprocessor and tokenizer.

    The unused parts of the towers are there too, as they are in the published files.

    Args:
        folder: Created; must not hold a checkpoint yet.
        sizes: Of every part.
        seed: Of the weights.
        shards: Number of weight files.
        dtype: Of the weights.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: If ``folder`` holds files.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give another folder or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.to(dtype) for key, value in _random_weights(sizes, seed).items()}
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    _write(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
    _write(folder / "config.json", _config(sizes, dtype))
    action: dict[str, Any] = {**ACTIONS, "mask": [True] * 6 + [False]}
    action |= {"mean": [0.0] * 7, "std": [1.0] * 7, "min": action["q01"], "max": action["q99"]}
    statistics: dict[str, Any] = {"action": action, "num_transitions": 0, "num_trajectories": 0}
    if sizes.proprio_dim:
        statistics["proprio"] = PROPRIO
    _write(folder / "dataset_statistics.json", {"libero_object_no_noops": statistics})
    _write(folder / "preprocessor_config.json", _preprocessor(sizes))
    _write(folder / "tokenizer.json", _tokenizer(sizes.language.vocab_size - sizes.vocab_padding))
    return folder


def _random_weights(sizes: ModelSizes, seed: int) -> dict[str, Tensor]:
    """Random weights under the published keys, the unused ones among them."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = OpenVLA(_one_block_more(sizes), action_tokens=1)
        for name, parameter in model.named_parameters():
            if name.endswith(("pos_embed", "cls_token", "reg_token")):
                nn.init.normal_(parameter, std=0.02)
        weights = dict(model.state_dict())
        vocabulary, hidden = sizes.language.vocab_size, sizes.language.hidden_size
        weights[HEAD] = torch.randn(vocabulary, hidden) * hidden**-0.5
        weights["language_model.model.embed_tokens.weight"] *= 0.02
        for tower, size in zip(("featurizer", "fused_featurizer"), sizes.towers, strict=True):
            weights[f"vision_backbone.{tower}.norm.weight"] = torch.ones(size.width)
            weights[f"vision_backbone.{tower}.norm.bias"] = torch.zeros(size.width)
        weights["vision_backbone.fused_featurizer.attn_pool.latent"] = torch.zeros(1, 1, sizes.towers[1].width)
    return {key: value.detach().contiguous() for key, value in weights.items()}


def _one_block_more(sizes: ModelSizes) -> ModelSizes:
    """Sizes whose model has the last block of each tower as well."""
    first, second = (replace(tower, depth=tower.depth + 1) for tower in sizes.towers)
    return replace(sizes, towers=(first, second))


def _config(sizes: ModelSizes, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "model_type": "openvla",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [sizes.image_size] * 2,
        "llm_max_length": 2048,
        "n_action_bins": sizes.action_bins,
        "num_images_in_input": sizes.num_images,
        "pad_to_multiple_of": sizes.vocab_padding,
        "pad_token_id": 32000,
        "text_config": {"model_type": "llama", "pad_token_id": 32000, **asdict(sizes.language)},
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "custom",
        TOWERS_FIELD: [asdict(tower) for tower in sizes.towers],
    }


def _preprocessor(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "input_sizes": [[3, sizes.image_size, sizes.image_size]] * 2,
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(mean), "std": list(std)} for mean, std in NORMALISATION
        ],
        "use_fused_vision_backbone": True,
    }


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    """A tokenizer of letters with Llama's conventions: ``<s>`` = 1, ``</s>`` = 2, a lone space = 29871."""
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    ids |= {chr(code): 259 + i for i, code in enumerate(range(33, 127))}
    ids["▁"] = SPACE
    taken = set(ids.values())
    ids |= {f"<extra_{i}>": i for i in range(vocabulary) if i not in taken}
    special = [("<unk>", 0), ("<s>", 1), ("</s>", 2)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": dict(sorted(ids.items(), key=lambda item: item[1])),
            "merges": [],
        },
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one from the command line."""
    parser = argparse.ArgumentParser(description="Write a tiny OpenVLA checkpoint with random weights.")
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=TINY.image_size, help="pixels, a multiple of 14")
    parser.add_argument("--proprio", action="store_true", help="read LIBERO's proprioception too")
    options = parser.parse_args(arguments)
    sizes = replace(TINY, image_size=options.image_size, proprio_dim=len(PROPRIO["q01"]) if options.proprio else 0)
    print(f"written: {write_tiny_checkpoint(options.folder, sizes, seed=options.seed)}")


if __name__ == "__main__":
    main()
