"""The family ``pi0``: a checkpoint's model, of which the expert, everything, or adapters are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from gymnasium import spaces

from pcm_rl.episodes import STATE_NAMES
from pcm_rl.policies.pi0.model_folder import Checkpoint, open_checkpoint
from pcm_rl.policies.pi0.policy import IMAGES, Pi0Policy


def make_policy(
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Box,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | None = None,
    statistics: str | None = None,
    cameras: int | None = None,
    dtype: str = "float32",
    lora: Mapping[str, Any],
    **settings: Any,
) -> Pi0Policy:
    """The model of ``checkpoint``.

    Args:
        observation_space: With images of the checkpoint's size and a state; None for an export, which checks neither.
        action_space: ``Box [L, D]``, into which actions are clipped.
        device: Of the weights.
        checkpoint: Folder of the checkpoint.
        statistics: A JSON file to use in place of the checkpoint's.
        cameras: How many it sees; None takes those that the environment gives.
        dtype: Of the frozen weights.
        lora: ``rank``, ``alpha`` and ``targets`` of adapters.
        settings: Further arguments of :class:`Pi0Policy`.

    Raises:
        ImportError: A package is missing; the message says how to install it.
        ValueError: If the checkpoint is refused, or its chunks, actions, images or states are not the environment's.
    """
    if checkpoint is None:
        raise ValueError("policy.pi0.checkpoint is missing; give policy.pi0.checkpoint=FOLDER")
    with _named("checkpoint"):
        found = open_checkpoint(checkpoint)
    if statistics is not None:
        with _named("statistics"):
            found = found.with_statistics(statistics)
    _check_actions(found, action_space)
    if observation_space is not None:
        cameras = _check_observation(found, observation_space, cameras)
    with _named("checkpoint"):
        return Pi0Policy(
            found,
            action_space.shape[0],
            low=torch.as_tensor(action_space.low),
            high=torch.as_tensor(action_space.high),
            cameras=cameras or 1,
            lora=dict(lora),
            dtype=getattr(torch, dtype),
            device=device,
            **settings,
        )


def _check_actions(checkpoint: Checkpoint, action_space: spaces.Box) -> None:
    length, numbers = action_space.shape
    if length > checkpoint.config.chunk_size:
        raise ValueError(
            f"the environment's chunks have {length} steps, more than the {checkpoint.config.chunk_size} that "
            f"{checkpoint.folder} predicts; give env.chunk_length={checkpoint.config.chunk_size} or less"
        )
    if checkpoint.statistics is None:
        raise ValueError(
            f"{checkpoint.folder} has no statistics of states and actions (state_mean, state_std, actions_mean, "
            "actions_std in processor_config.json); give policy.pi0.statistics=FILE, a JSON file with them"
        )
    if (known := len(checkpoint.statistics.actions_mean)) != numbers:
        raise ValueError(
            f"the environment's actions have {numbers} numbers, the statistics of {checkpoint.folder} {known}; give "
            "policy.pi0.statistics=FILE of this environment's data"
        )


def _check_observation(checkpoint: Checkpoint, space: spaces.Space[Any], cameras: int | None) -> int:
    """The number of cameras, where images and state are those of the checkpoint."""
    images, state = _parts(space)
    wanted = len(images) if cameras is None else cameras
    if not images or len(images) < wanted:
        raise ValueError(
            f"expected images from {wanted or 1} cameras (image, wrist_image), the environment gives {len(images)}; "
            "with LIBERO give env.kwargs.observation=pixels"
        )
    size = checkpoint.image_size
    if wrong := next((shape for shape in images[:wanted] if shape not in ((size, size, 3), (3, size, size))), None):
        raise ValueError(
            f"the images of {checkpoint.folder} have {size} x {size} pixels, those of the environment are {wrong}; "
            f"give 'env.images={{prepare: pi0, size: {size}}}', or a checkpoint of their size"
        )
    assert checkpoint.statistics is not None
    known = len(checkpoint.statistics.state_mean)
    if state != (known,):
        raise ValueError(
            f"expected a state of {known} numbers, as the statistics of {checkpoint.folder} have, the environment "
            f"gives {'none' if state is None else state}; give policy.pi0.statistics=FILE of this environment's data"
        )
    return wanted


def _parts(space: spaces.Space[Any]) -> tuple[list[tuple[int, ...]], tuple[int, ...] | None]:
    """Shapes of the images in the cameras' order, and that of the state, in an observation that has them by name."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"image": space}
    shapes = {name: part.shape for name, part in parts.items() if isinstance(part, spaces.Box)}
    images = [shapes[str(key[-1])] for key in IMAGES if len(shapes.get(str(key[-1]), ())) == 3]
    return images, next((shapes[name] for name in STATE_NAMES if len(shapes.get(name, ())) == 1), None)


@contextlib.contextmanager
def _named(option: str) -> Iterator[None]:
    """A refusal within it names the option."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"policy.pi0.{option}: {error}") from error
