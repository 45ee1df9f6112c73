"""Write a small pi0 with random weights, in the layout of ``transformers``.

For tests, and for trying commands on a machine that is too small for the true model::

    python -m pcm_rl.policies.pi0.tiny checkpoints/tiny-pi0
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pcm_rl.policies.pi0.export import write_processor
from pcm_rl.policies.pi0.model_folder import Checkpoint, add_tokens, read_transformers, without_progress
from pcm_rl.policies.pi0.statistics import Statistics
from pcm_rl.support.writing import new_folder

LIBERO = Statistics(  # of its eight numbers and seven controls, rounded; true data sets have other values
    state_mean=(0.0, 0.0, 0.9, 3.0, 0.0, 0.0, 0.03, -0.03),  # position (m), axis-angle (rad), fingers (m)
    state_std=(0.1, 0.15, 0.3, 0.3, 0.9, 0.3, 0.02, 0.02),
    actions_mean=(0.0,) * 7,
    actions_std=(0.35, 0.35, 0.45, 0.1, 0.1, 0.1, 1.0),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model.

    Attributes:
        image_size: Pixels a side, a multiple of 14.
        width: Of the VLM and the expert, a multiple of 8.
        depth: Blocks of each of the three parts.
        chunk_size: H, steps of the horizon.
        numbers: W, that states and actions are padded to.
        steps: Denoising steps.
    """

    image_size: int = 56
    width: int = 128
    depth: int = 3
    chunk_size: int = 8
    numbers: int = 32
    steps: int = 4


def write_tiny_checkpoint(
    folder: str | Path, sizes: Sizes | None = None, *, statistics: Statistics = LIBERO, seed: int = 0
) -> Path:
    """Write weights in float32, configuration, tokenizer and processor.

    Args:
        folder: New or empty.
        sizes: Of the model.
        statistics: Of states and actions.
        seed: Of the weights.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: If ``folder`` holds files.
        ImportError: If transformers is missing or too old.
    """
    folder, transformers = Path(folder), read_transformers()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give another folder or delete it")
    tokenizer = _tokenizer(transformers)
    config = _config(transformers, sizes or Sizes(), len(tokenizer), tokenizer.convert_tokens_to_ids("<image>"))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = transformers.PI0ForConditionalGeneration(config)
    with new_folder(folder) as partial, without_progress():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_processor(partial, Checkpoint(partial, config), statistics)
    return folder


def _config(transformers: Any, sizes: Sizes, vocabulary: int, image_token: int) -> Any:
    width, heads = sizes.width, 4
    layers = {
        "model_type": "gemma",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "head_dim": width // heads,
        "initializer_range": width**-0.5,  # a layer keeps the size of what it reads
        "vocab_size": vocabulary,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": heads,
        "patch_size": 14,
        "image_size": sizes.image_size,
        "vision_use_head": False,
        "projection_dim": width,
    }
    return transformers.PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": layers,
            "vision_config": vision,
            "projection_dim": width,
            "image_token_id": image_token,
            "initializer_range": width**-0.5,
        },
        dit_config=dict(layers),
        chunk_size=sizes.chunk_size,
        max_state_dim=sizes.numbers,
        max_action_dim=sizes.numbers,
        num_inference_steps=sizes.steps,
        initializer_range=width**-0.5,
    )


def _tokenizer(transformers: Any) -> Any:
    """A tokenizer of bytes, with the names that PaliGemma's has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<bos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    add_tokens(transformers, tokenizer)
    return tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one from the command line."""
    parser = argparse.ArgumentParser(description="Write a tiny pi0 checkpoint with random weights.")
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    options = vars(parser.parse_args(arguments))
    folder, seed = options.pop("folder"), options.pop("seed")
    print(f"written: {write_tiny_checkpoint(folder, Sizes(**options), seed=seed)}")


if __name__ == "__main__":
    main()
