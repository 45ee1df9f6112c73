"""The family ``openvla``: a checkpoint's model with fresh adapters, those of others, or every weight trainable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from gymnasium import spaces

from pcm_rl.policies.checkpoint_files import CheckpointError
from pcm_rl.policies.openvla.adapter_folder import (
    Adapters,
    already_added,
    check_base,
    open_adapters,
    statistics_beside,
)
from pcm_rl.policies.openvla.attention_check import check_bidirectional
from pcm_rl.policies.openvla.lora import add_lora, load_adapters
from pcm_rl.policies.openvla.model_folder import Checkpoint, open_checkpoint
from pcm_rl.policies.openvla.other_layouts import adapters_inside
from pcm_rl.policies.openvla.policy import OpenVLAPolicy
from pcm_rl.policies.openvla.quantize import quantize_language


def make_policy(
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Box,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | None = None,
    adapters: str | None = None,
    lora: Mapping[str, Any],
    dtype: str = "float32",
    quantize: str | None = None,
    compile: bool = False,
    **settings: Any,
) -> OpenVLAPolicy:
    """The model of ``checkpoint``, of which adapters are trained, or every weight where their rank is 0.

    Args:
        observation_space: Not used: a row that lacks an image is an error at its decision.
        action_space: ``Box [L, D]``.
        device: Of the weights.
        checkpoint: Folder of the checkpoint.
        adapters: Folder of adapters to train further, as peft writes it; None begins with fresh ones. With a rank of 0
            they are added to the weights.
        lora: ``rank``, ``alpha`` and ``targets`` of fresh ones, and ``merge``.
        dtype: Of the frozen weights.
        quantize: ``nf4``, or None.
        compile: Compile the blocks.
        settings: Further arguments of :class:`OpenVLAPolicy`.

    Raises:
        ValueError: If the checkpoint or the adapters are refused, its chunks are not the environment's, no layer
            matches ``lora["targets"]``, or the vision towers are trained and their output is to be recorded.
    """
    if checkpoint is None:
        raise ValueError("policy.openvla.checkpoint is missing; give policy.openvla.checkpoint=FOLDER")
    weights: torch.dtype = getattr(torch, dtype)
    found, source = _opened(checkpoint, adapters)
    with _named("checkpoint"):
        policy = OpenVLAPolicy(
            found,
            action_space.shape[0],
            dtype=weights,
            merge=lora["merge"],
            device="cpu" if quantize else device,  # so that the GPU never holds the whole model
            **settings,
        )
    if quantize:
        quantize_language(policy.model, compute_dtype=weights)
        policy = policy.to(device)
    check_bidirectional(policy)
    policy.source = source
    if source is not None:
        with _named("adapters"):
            load_adapters(policy.model, source, train=bool(lora["rank"]))
    elif lora["rank"]:
        with _named("lora.targets"):
            add_lora(policy.model, rank=lora["rank"], alpha=lora["alpha"], targets=lora["targets"])
    if not lora["rank"]:
        policy.model.requires_grad_()
    _check_recorded_features(policy)
    if compile:
        policy.model.compile_blocks()
    return policy


def _opened(checkpoint: str, adapters: str | None) -> tuple[Checkpoint, Adapters | None]:
    """The checkpoint and the adapters on it, which are not in its weights yet.

    Adapters inside of a checkpoint's folder are most often in its weights: openvla-oft and SimpleVLA-RL merge them when
    they save. The weights tell.
    """
    with _named("checkpoint"):
        found = open_checkpoint(checkpoint)
        if adapters is None:
            _refuse_unmerged(found)
            return found, None
    with _named("adapters"):
        source = open_adapters(adapters)
        if already_added(found, source):
            raise CheckpointError(
                f"the weights of {found.folder} have the adapters of {source.folder} in them; added once more they "
                "would count twice. Leave policy.openvla.adapters out"
            )
        check_base(found, source)
        statistics = statistics_beside(source)
        return found if statistics is None else found.with_statistics(statistics), source


def _refuse_unmerged(checkpoint: Checkpoint) -> None:
    """Refuse weights whose adapters lie beside them and are not in them."""
    inside = adapters_inside(checkpoint.folder)
    if inside is None:
        return
    try:
        merged = already_added(checkpoint, open_adapters(inside))
    except CheckpointError:  # of a kind that is not read: they were merged when they were saved, as is usual
        return
    if merged is False:
        raise CheckpointError(
            f"the adapters in {inside} are not in the weights of {checkpoint.folder}, which alone are another policy; "
            f"give policy.openvla.adapters={inside}, or take that folder away"
        )


def _check_recorded_features(policy: OpenVLAPolicy) -> None:
    trained = [name for name, parameter in policy.model.vision_backbone.named_parameters() if parameter.requires_grad]
    if policy.record_features and trained:
        raise ValueError(
            f"policy.openvla.record_features keeps the vision towers' output, which {trained[0]} changes in training; "
            "set policy.openvla.record_features=false"
        )


@contextlib.contextmanager
def _named(option: str) -> Iterator[None]:
    """A refusal within it names the option."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"policy.openvla.{option}: {error}") from error
