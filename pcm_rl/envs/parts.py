"""The parts of an observation that a policy gets, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from pcm_rl.envs.observation import NUMBERS, entry_at, image_reader, leaves

Names = str | Sequence[str]
_Part = tuple[spaces.Space[Any], Callable[[Any], Any]]  # its space, and what takes it out of an observation


class ObservationParts(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Takes named parts of a `Dict` observation and leaves the others out.

    A part of a `Dict` in the `Dict` is named with a dot, such as `pixels.top`::

        ObservationParts(env, ["observation", "desired_goal"])                   # Box [S], one after the other
        ObservationParts(env, {"image": "pixels.top", "state": ["agent_pos"]})   # Dict of these two

    Args:
        env: Environment with a `Dict` observation.
        parts: Names, whose parts are flattened and joined in this order to one vector `Box [S]`. Or a mapping of new
            names: to a name, whose part stays as it is, or to several names, which become one vector.

    Raises:
        ValueError: The observation is no `Dict` or has no such part, or a part has no place in a vector.
    """

    def __init__(self, env: gymnasium.Env, parts: Sequence[str] | Mapping[str, Names]) -> None:
        RecordConstructorArgs.__init__(self, parts=parts)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict):
            raise ValueError(f"{parts} name parts of a Dict observation, and this one is {space}")
        named = {".".join(path): (part, _taker(path)) for path, part in leaves(space)}
        if not isinstance(parts, Mapping):
            self.observation_space, self._take = _joined(parts, named)
            return
        taken = {new: _found(old, named) if isinstance(old, str) else _joined(old, named) for new, old in parts.items()}
        self.observation_space = spaces.Dict({new: part for new, (part, _) in taken.items()})
        self._take = lambda observation: {new: take(observation) for new, (_, take) in taken.items()}

    def observation(self, observation: Any) -> Any:
        """The named parts of an observation."""
        return self._take(observation)


def _taker(path: tuple[str, ...]) -> Callable[[Any], Any]:
    return lambda observation: entry_at(observation, path)


def _found(name: str, named: Mapping[str, _Part]) -> _Part:
    if name not in named:
        raise ValueError(f"the observation has no part {name!r}; it has {', '.join(named)}")
    return named[name]


def _joined(names: Sequence[str], named: Mapping[str, _Part]) -> _Part:
    """Several parts as one vector."""
    parts = [_found(name, named) for name in names]
    for name, (part, _) in zip(names, parts, strict=True):
        if image_reader(part) is not None or not isinstance(part, NUMBERS):
            raise ValueError(
                f"{name!r} has no place in a vector, it is {part}; give an image a name of its own: image={name}"
            )
    joined = spaces.Tuple([part for part, _ in parts])
    return spaces.flatten_space(joined), lambda observation: spaces.flatten(
        joined, tuple(take(observation) for _, take in parts)
    )
