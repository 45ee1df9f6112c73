"""One observation in memory shared by two processes: images are never sent through a pipe."""

from __future__ import annotations

import contextlib
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class SharedObservation:
    """Holds the last observation of one environment.

    Reads and writes are not synchronised: a message through the pipe says when an observation is complete.

    Args:
        space: `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary`, or a `Dict` of these, nested or not.
        name: Of the memory, the same on both sides.
        create: Make the memory, zeroed; otherwise attach to the memory that the other process made for the same space.

    Raises:
        ValueError: The space is not one of these.
        FileNotFoundError: There is no such memory.
        FileExistsError: There is one already.
    """

    def __init__(self, space: spaces.Space[Any], name: str, *, create: bool) -> None:
        layout = _layout(space)
        self._space = space
        self._memory = SharedMemory(name, create, max(layout.itemsize, 1))
        self._record: NDArray[Any] | None = np.ndarray((), layout, buffer=self._memory.buf)

    def write(self, observation: Any) -> None:
        """Replaces the observation.

        Raises:
            ValueError: A part has another shape than its space.
            KeyError: A part is missing.
        """
        _write(self._space, self._record, observation)

    def read(self) -> Any:
        """A copy of the observation: arrays, in dicts where the space is a `Dict`."""
        return _read(self._space, self._record)

    def close(self) -> None:
        """Detaches from the memory, which stays. Closing twice is fine."""
        self._record = None  # an array that still points into the memory would keep it open
        self._memory.close()


def free_memory(name: str) -> None:
    """Frees the memory of this name, if there is any, also that of a process that died."""
    with contextlib.suppress(FileNotFoundError):
        memory = SharedMemory(name)
        memory.close()
        memory.unlink()


def _layout(space: spaces.Space[Any]) -> np.dtype[Any]:
    if isinstance(space, spaces.Dict):
        return np.dtype([(name, _layout(part)) for name, part in space.spaces.items()], align=True)
    if not isinstance(space, _LEAVES):
        raise ValueError(
            f"observations of {space} cannot be shared between processes: flatten it (FlattenObservation), take it out "
            "(FilterObservation), or leave workers out"
        )
    return np.dtype((space.dtype, space.shape))


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
