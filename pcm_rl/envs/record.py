"""One observation in a piece of memory, as bytes whose layout follows from its space."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def layout_of(space: spaces.Space[Any]) -> np.dtype[Any]:
    """How an observation lies in memory.

    Args:
        space: `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary`, or a `Dict` of these, nested or not.

    Raises:
        ValueError: The space is not one of these.
    """
    if isinstance(space, spaces.Dict):
        return np.dtype([(name, layout_of(part)) for name, part in space.spaces.items()], align=True)
    if not isinstance(space, _LEAVES):
        raise ValueError(
            f"observations of {space} cannot be shared between processes: flatten it (FlattenObservation), take it out "
            "(FilterObservation), or leave workers out"
        )
    return np.dtype((space.dtype, space.shape))


class Record:
    """Holds one observation; what is read has the shapes and dtypes of its space, whatever was written.

    Args:
        space: As in :func:`layout_of`.
        buffer: The memory, at least as large as the layout; None takes some of its own, zeroed.

    Raises:
        ValueError: The space is not one of these.
    """

    def __init__(self, space: spaces.Space[Any], buffer: Any = None) -> None:
        layout = layout_of(space)
        self._space = space
        self._array: NDArray[Any] = np.zeros((), layout) if buffer is None else np.ndarray((), layout, buffer=buffer)

    def write(self, observation: Any) -> None:
        """Replaces the observation.

        Raises:
            ValueError: A part has another shape than its space.
            KeyError: A part is missing.
        """
        _write(self._space, self._array, observation)

    def read(self) -> Any:
        """A copy of the observation: arrays, in dicts where the space is a `Dict`."""
        return _read(self._space, self._array)

    def bytes(self) -> NDArray[np.uint8]:
        """A copy of the memory, which another record of the same space can be made of."""
        return np.frombuffer(self._array.tobytes(), np.uint8)


def _write(space: spaces.Space[Any], record: Any, observation: Any) -> None:
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            _write(part, record[name], observation[name])
        return
    if np.shape(observation) != record.shape:
        raise ValueError(f"the observation has shape {np.shape(observation)}, but its space is {space}")
    record[...] = observation


def _read(space: spaces.Space[Any], record: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _read(part, record[name]) for name, part in space.spaces.items()}
    return np.array(record)
