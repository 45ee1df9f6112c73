"""Observations of Gymnasium as entries of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import NestedKey
from torch import Tensor

from pcm_rl import episodes

Reader = tuple[tuple[str, ...], Callable[[Any], Tensor]]
_floats = partial(torch.tensor, dtype=torch.float32)

IMAGE_NAMES = ("image", "pixels")  # in a Dict observation the first image among these is the image
NUMBERS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)  # what becomes a tensor


def observation_readers(space: spaces.Space[Any]) -> dict[NestedKey, Reader]:
    """How observations of `space` become keys of the schema; see :class:`ChunkedEnv` for which.

    Args:
        space: Observation space of one environment.

    Returns:
        Key of a row -> (path to the part of the observation, empty for all of it; conversion to a tensor).

    Raises:
        ValueError: The space cannot be recorded, or two of its keys become one.
    """
    if _is_vector(space):
        return {episodes.STATE: ((), _floats)}
    if (image := image_reader(space)) is not None:
        return {episodes.IMAGE: ((), image)}
    if not isinstance(space, spaces.Dict):
        raise ValueError(f"cannot record {space}: flatten it (FlattenObservation), or pass record=False")
    parts = dict(leaves(space))
    state = next(((name,) for name in episodes.STATE_NAMES if _is_vector(parts.get((name,)))), None)
    images = [[path for path in parts if path[0] == name and image_reader(parts[path])] for name in IMAGE_NAMES]
    picture = next((paths[0] for paths in images if len(paths) == 1), None)
    readers: dict[NestedKey, Reader] = {}
    for path, part in parts.items():
        name = ".".join(path)
        if not isinstance(part, NUMBERS):
            raise ValueError(
                f"cannot record {name!r}, {part}: name the parts to record (ObservationParts, env.observation), or "
                "pass record=False"
            )
        key: NestedKey = {state: episodes.STATE, picture: episodes.IMAGE}.get(path, ("observation", *path))
        if key in readers:
            raise ValueError(f"{name!r} and {'.'.join(readers[key][0])!r} both become {key}: rename one")
        readers[key] = (path, _floats if path == state else image_reader(part) or _tensor)
    return readers


def read_observation(readers: Mapping[NestedKey, Reader], observation: Any) -> dict[NestedKey, Tensor]:
    """One observation, or a batch of them `[n, ...]`, as tensors (copies) under the schema's keys."""
    return {key: convert(entry_at(observation, path)) for key, (path, convert) in readers.items()}


def leaves(space: spaces.Dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], spaces.Space[Any]]]:
    """The parts of a `Dict` and of the `Dict`s in it, with the keys that lead to each."""
    for name, part in space.spaces.items():
        if isinstance(part, spaces.Dict):
            yield from leaves(part, (*path, name))
        else:
            yield (*path, name), part


def entry_at(observation: Any, path: Sequence[str]) -> Any:
    """The part of an observation to which the keys lead; all of it where there are none."""
    for name in path:
        observation = observation[name]
    return observation


def _is_vector(space: spaces.Space[Any] | None) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1


def image_reader(space: spaces.Space[Any] | None) -> Callable[[Any], Tensor] | None:
    """Conversion to `[3, H, W]` uint8, or None where the space is no image."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or space.dtype != np.uint8:
        return None
    if space.shape[0] == 3:
        return _tensor
    return _channels_first if space.shape[2] == 3 else None


def _tensor(value: Any) -> Tensor:
    """A copy; float64 becomes float32."""
    tensor = torch.tensor(value)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _channels_first(value: Any) -> Tensor:
    return torch.from_numpy(np.moveaxis(value, -1, -3).copy())
