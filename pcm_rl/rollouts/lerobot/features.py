"""Names, shapes and types: which feature of a LeRobot data set is which entry of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import create_empty_array
from tensordict import NestedKey
from torch import Tensor

from pcm_rl.config import ConfigError
from pcm_rl.envs.observation import observation_readers, read_observation
from pcm_rl.rollouts.lerobot.metadata import IMAGES, Info

ACTION = "action"


@dataclass(frozen=True)
class Entry:
    """An entry of the observation, as a row of the run has it.

    Attributes:
        key: Of a row, such as ``("observation", "wrist_image")``.
        shape: Of one step, ``(3, H, W)`` for an image.
        dtype: Its type.
    """

    key: NestedKey
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, key: NestedKey, values: Tensor) -> Entry:
        """That of values ``[M, ...]``."""
        return cls(key, tuple(values.shape[1:]), values.dtype)

    @property
    def image(self) -> bool:
        """Whether it is a camera's image."""
        return self.dtype == torch.uint8 and len(self.shape) == 3 and self.shape[0] == 3

    @property
    def name(self) -> str:
        """Without ``observation``, as ``demos.features`` has it: ``wrist_image``."""
        return self.key if isinstance(self.key, str) else ".".join(self.key[1:])

    @property
    def feature(self) -> str:
        """Its name in LeRobot's data sets: ``observation.images.wrist_image``."""
        return f"observation.images.{self.name}" if self.image else f"observation.{self.name}"


def entries_of(space: gym.Space[Any]) -> list[Entry]:
    """The entries of a row that observations of ``space`` become."""
    readers = observation_readers(space)
    example = read_observation(readers, create_empty_array(space, n=1))
    return [Entry.of(key, values) for key, values in example.items()]


def match_features(info: Info, entries: Sequence[Entry], names: Mapping[str, str]) -> dict[NestedKey, str]:
    """Key of a row -> feature of the data set, and of the action's; shapes and types are checked.

    An entry takes the feature that ``names`` gives it, else the one of its own name. If then a single image and a
    single camera are left over, they belong together; of several, none is guessed.

    Args:
        info: The data set.
        entries: What the environment of the run gives.
        names: Names of features that differ, by the name of the entry, or ``action``.

    Raises:
        ConfigError: If a feature is missing or does not fit; the message says what was got and expected.
    """
    known = [entry.name for entry in entries] + [ACTION]
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"demos.features names {', '.join(unknown)}; the environment has {', '.join(known)}")
    found = {entry.key: name for entry in entries if (name := _own_name(info, entry, names)) is not None}
    missing = [entry for entry in entries if entry.key not in found]
    cameras = [name for name in info.cameras if name not in found.values()]
    if [entry.image for entry in missing].count(True) == 1 and len(cameras) == 1:
        found.update({entry.key: cameras[0] for entry in missing if entry.image})
    found[ACTION] = names.get(ACTION, ACTION)
    wanted = {**{entry.key: entry.name for entry in entries}, ACTION: ACTION}
    for key, name in wanted.items():
        if key not in found or found[key] not in info.features:
            raise ConfigError(
                f"the LeRobot data set at {info.folder} has no {found.get(key, 'feature for ' + name)}; it has "
                f"{', '.join(info.features)}: name the one that is the environment's {name}, "
                f"demos.features={{{name}: ...}}, or take parts of the observation, env.observation=[...]"
            )
    for entry in entries:
        _check_fit(info, entry, found[entry.key])
    return found


def _own_name(info: Info, entry: Entry, names: Mapping[str, str]) -> str | None:
    if entry.name in names:
        return names[entry.name]
    own = [entry.feature, f"observation.{entry.name}"]  # observation.image, as some data sets have
    return next((name for name in own if name in info.features), None)


def _check_fit(info: Info, entry: Entry, name: str) -> None:
    feature = info.features[name]
    if entry.image:
        fits = feature.dtype in IMAGES and entry.shape in (feature.shape, (feature.shape[-1:] + feature.shape[:-1]))
    else:
        kinds = feature.dtype not in IMAGES and _kind(feature.dtype) == _kind(str(entry.dtype).removeprefix("torch."))
        fits = kinds and feature.shape == (entry.shape or (1,))
    if not fits:
        what = "height, width and 3 channels" if entry.image else "shape"
        expected = (*entry.shape[1:], 3) if entry.image else entry.shape or (1,)
        raise ConfigError(
            f"{name} of the LeRobot data set at {info.folder} is {feature.dtype} {list(feature.shape)}; the "
            f"environment's {entry.name} has {what} {list(expected)}, {str(entry.dtype).removeprefix('torch.')}: "
            "make the environment give the same, or name another feature with demos.features"
        )


def _kind(dtype: str) -> str:
    """Floating, integer or bool; other types, such as text, have a kind of their own."""
    try:
        return "i" if (kind := np.dtype(dtype).kind) == "u" else kind
    except TypeError:
        return dtype


def check_width(info: Info, name: str, space: gym.Space[Any]) -> gym.spaces.Box:
    """The space, a ``Box [D]``; ``ConfigError`` if it is another, or the actions are not D floats."""
    feature = info.features[name]
    box = space if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 else None
    if box is None or feature.shape != box.shape or _kind(feature.dtype) != "f":
        raise ConfigError(
            f"{name} of the LeRobot data set at {info.folder} is {feature.dtype} {list(feature.shape)}, and the "
            f"environment takes {space}: it is of another robot or controller; take an environment that fits"
        )
    return box


def check_range(info: Info, name: str, actions: Tensor, space: gym.spaces.Box) -> None:
    """Raise ``ConfigError`` if one of the actions ``[M, D]`` lies outside of the environment's box."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    width = high - low
    slack = np.where(np.isfinite(width), 1e-6 * width, 0.0)  # what float32 rounds
    least, most = actions.amin(0).double().numpy(), actions.amax(0).double().numpy()
    outside = (least < low - slack) | (most > high + slack)
    if outside.any():
        index = int(outside.argmax())
        raise ConfigError(
            f"{name} of the LeRobot data set at {info.folder} reaches from {least[index]:g} to {most[index]:g} in "
            f"dimension {index}, and the environment takes {low[index]:g} to {high[index]:g}: rescale the "
            "environment's actions to the data set's units (env.wrappers), or the data set"
        )
