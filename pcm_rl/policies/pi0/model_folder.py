"""The folder of a pi0 checkpoint, in transformers' layout or lerobot's: checked before the model is built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pcm_rl.policies.checkpoint_files import CheckpointError, read_json
from pcm_rl.policies.pi0.statistics import LEROBOT, Statistics, read_statistics

PROCESSOR = "processor_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth")
INSTALL = "pip install 'pcm_rl[pi0]'"
CONVENTIONS = ("adapt_to_pi_aloha", "use_delta_joint_actions_aloha", "use_relative_actions")
_IMAGE = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}  # PI0ImageProcessor's


@dataclass(frozen=True)
class Checkpoint:
    """A folder that :func:`open_checkpoint` has accepted.

    Attributes:
        folder: Where it is.
        config: ``PI0Config``.
        processor: What its ``processor_config.json`` says; empty where there is none.
        statistics: Of its states and actions; None where it has none.
    """

    folder: Path
    config: Any
    processor: Mapping[str, Any] = field(default_factory=dict)
    statistics: Statistics | None = None

    @property
    def image_size(self) -> int:
        """Height and width of its images."""
        return int(self.config.vlm_config.vision_config.image_size)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return int(self.image_size // self.config.vlm_config.vision_config.patch_size) ** 2

    @property
    def image_scale(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of the three channels, of values from 0 to 255."""
        settings = _IMAGE | {k: v for k, v in self.processor.get("image_processor", {}).items() if v is not None}
        scale = 1.0 / settings["rescale_factor"]
        return [value * scale for value in settings["image_mean"]], [value * scale for value in settings["image_std"]]

    def with_statistics(self, path: str | Path) -> Checkpoint:
        """The same with the statistics of a JSON file; see :func:`read_statistics`.

        Raises:
            ValueError: If there is no such file, or they do not fit.
        """
        changed = replace(self, statistics=read_statistics(path))
        _check_numbers(changed)
        return changed


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Check a folder; its weights are not read yet. Nothing in it is run, nothing unpickled, nothing downloaded.

    Args:
        folder: With ``config.json``, safetensors and the tokenizer.

    Raises:
        CheckpointError: If it is of another family, or something is missing or does not fit.
        ImportError: If transformers is missing or too old.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; download a checkpoint first, or write a tiny one: python -m "
            "pcm_rl.policies.pi0.tiny FOLDER"
        )
    content = read_json(folder / "config.json")
    family = content.get("model_type", content.get("type"))
    if family != "pi0":
        raise CheckpointError(
            f"{folder}: expected a checkpoint of pi0, got {family!r} (model_type of config.json); give the folder of a "
            "pi0, or another policy.family"
        )
    _check_conventions(folder, content)
    _check_weights(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder}: expected tokenizer.json, which is missing (lerobot's folders have none); put the tokenizer of "
            "PaliGemma there: tokenizer.json and tokenizer_config.json"
        )
    processor, transformers = _processor(folder), read_transformers()
    try:
        config = transformers.PI0Config.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers has many, some of no common class
        raise CheckpointError(f"{folder}/config.json does not describe a pi0: {_one_line(error)}") from error
    checkpoint = Checkpoint(folder, config, processor, _statistics(folder, content, processor))
    _check_sizes(checkpoint)
    return checkpoint


def load_model(checkpoint: Checkpoint) -> Any:
    """``PI0ForConditionalGeneration`` on the CPU, in float32.

    Raises:
        CheckpointError: If the weights do not fit ``config.json``.
    """
    transformers = read_transformers()
    try:
        with without_progress():
            model, report = transformers.PI0ForConditionalGeneration.from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint.folder}: its weights do not fit config.json: {_one_line(error)}; was the download complete?"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{checkpoint.folder} lacks {len(missing)} weights of a pi0, such as {missing[0]}; was the download "
            "complete?"
        )
    return model


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, with the tokens that ``PI0Processor`` adds."""
    transformers = read_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            checkpoint.folder, config=checkpoint.config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers has no class of its own for a damaged file
        raise CheckpointError(f"{checkpoint.folder}: its tokenizer cannot be read: {_one_line(error)}") from error
    add_tokens(transformers, tokenizer)
    found, expected = tokenizer.convert_tokens_to_ids("<image>"), checkpoint.config.vlm_config.image_token_id
    if found != expected or tokenizer.bos_token is None:
        raise CheckpointError(
            f"{checkpoint.folder}: its tokenizer is another model's: <image> is {found}, expected {expected}, and the "
            f"first token {tokenizer.bos_token}; put the tokenizer of this checkpoint there"
        )
    return tokenizer


def add_tokens(transformers: Any, tokenizer: Any) -> None:
    """Add the tokens that ``PI0Processor`` adds, which nothing changes where they are there."""
    image = transformers.AddedToken("<image>", normalized=False, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [image]})
    tokenizer.add_tokens([f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)])
    tokenizer.add_bos_token = tokenizer.add_eos_token = False


@contextlib.contextmanager
def without_progress() -> Iterator[None]:
    """Within it transformers draws no bars: a small model's would stand between the lines of a run."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_transformers() -> Any:
    """The package.

    Raises:
        ImportError: If it is missing or too old.
    """
    try:
        import transformers

        transformers.PI0ForConditionalGeneration  # noqa: B018 - raises where transformers is too old
    except (ImportError, AttributeError) as error:
        raise ImportError(f"pi0 needs transformers of at least 5.24, on Python 3.11 or newer: {INSTALL}") from error
    return transformers


def _check_conventions(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse lerobot's options that change what states and actions mean before they are normalised."""
    changed = [name for name in CONVENTIONS if config.get(name)]
    if changed:
        raise CheckpointError(
            f"{folder}/config.json: expected actions as the environment executes them, got {changed[0]}=true; give a "
            "checkpoint without it"
        )


def _check_weights(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():  # transformers would look for their base, anywhere
        raise CheckpointError(
            f"{folder}: expected a whole model, got adapters (adapter_config.json); merge them into their base "
            "(peft: merge_and_unload, save_pretrained) or export the run without --adapters"
        )
    if any(folder.glob("model*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: expected safetensors, got pickled weights ({', '.join(pickles[:3])}), which can run any code "
            "and are never opened; convert them where you trust them (safetensors.torch.save_file)"
        )
    raise CheckpointError(f"{folder}: expected model.safetensors, which is missing; was the download complete?")


def _processor(folder: Path) -> dict[str, Any]:
    """What the processor's file says; one without a rescaling or a normalisation is refused."""
    path = folder / PROCESSOR
    content = read_json(path) if path.is_file() else {}
    images = content.get("image_processor", {})
    off = [name for name in ("do_rescale", "do_normalize") if images.get(name, True) is False]
    if off:
        raise CheckpointError(f"{path}: expected images to be rescaled and normalised, got {off[0]}=false")
    return content


def _statistics(folder: Path, config: Mapping[str, Any], processor: Mapping[str, Any]) -> Statistics | None:
    """Those of the processor's file, or of lerobot's; None where there are none."""
    try:
        if processor.get("actions_mean") is not None:
            return Statistics.of(processor)
        found = sorted(folder.glob("policy_preprocessor_step_*_normalizer_processor.safetensors"))
        return _of_lerobot(found[0], config) if found else None
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _of_lerobot(path: Path, config: Mapping[str, Any]) -> Statistics:
    """Lerobot keeps the statistics as ``FEATURE.mean`` and ``FEATURE.std``, beside a configuration that says how."""
    mapping = config.get("normalization_mapping", {})
    others = {name: mapping[name] for name in ("STATE", "ACTION") if mapping.get(name, "MEAN_STD") != "MEAN_STD"}
    if others:
        raise ValueError(f"expected states and actions scaled by MEAN_STD, as pi0's are, got {others}")
    tensors = load_file(path)
    pairs = {f"{name}_{what}": f"{key}.{what}" for name, key in LEROBOT.items() for what in ("mean", "std")}
    return Statistics.of({name: tensors[key].tolist() for name, key in pairs.items() if key in tensors})


def _check_sizes(checkpoint: Checkpoint) -> None:
    config, processor = checkpoint.config, checkpoint.processor
    tokens = processor.get("image_processor", {}).get("image_seq_length", checkpoint.image_tokens)
    if tokens != checkpoint.image_tokens:
        raise CheckpointError(
            f"{checkpoint.folder}: {PROCESSOR} counts {tokens} tokens an image, config.json {checkpoint.image_tokens}; "
            "are both of one checkpoint?"
        )
    text, expert = config.vlm_config.text_config, config.dit_config
    dropout = [part for part in (text, expert, config.vlm_config.vision_config) if part.attention_dropout]
    if dropout:
        raise CheckpointError(
            f"{checkpoint.folder}/config.json: expected attention_dropout=0, got {dropout[0].attention_dropout}: with "
            "it a decision and its update would be of different networks; set it to 0"
        )
    _check_numbers(checkpoint)


def _check_numbers(checkpoint: Checkpoint) -> None:
    """Refuse statistics of more numbers than the model has."""
    if checkpoint.statistics is None:
        return
    config = checkpoint.config
    for name, width in (("state", config.max_state_dim), ("actions", config.max_action_dim)):
        if (found := len(getattr(checkpoint.statistics, f"{name}_mean"))) > width:
            raise CheckpointError(f"the {found} numbers of {name}_mean do not fit the model's {width}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
