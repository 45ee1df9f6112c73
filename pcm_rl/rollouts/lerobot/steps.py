"""The tables of a LeRobot data set: which of their rows is which step, and every step there once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pcm_rl.config import ConfigError
from pcm_rl.rollouts.lerobot.files import read_table
from pcm_rl.rollouts.lerobot.metadata import Episode, Info

_PLACE = ("episode_index", "frame_index", "timestamp")


class Steps:
    """The M steps of all episodes, one episode after the other.

    Args:
        info: The data set.
        episodes: All of them, in the order of their numbers.

    Attributes:
        lengths: Steps of each episode, int64.
        frame: Number of each step in its episode, ``[M]`` int64.
    """

    def __init__(self, info: Info, episodes: Sequence[Episode]) -> None:
        self._info, self._episodes = info, episodes
        self.lengths = torch.tensor([episode.length for episode in episodes])
        self._starts = self.lengths.cumsum(0) - self.lengths
        self.frame = torch.arange(int(self.lengths.sum())) - self._starts.repeat_interleave(self.lengths)
        self._known = torch.tensor([episode.index for episode in episodes])
        self._seen = torch.zeros(len(self.frame), dtype=torch.int64)

    def where(self, step: int) -> str:
        """Names a step in errors."""
        episode = int(torch.searchsorted(self._starts, step, right=True)) - 1
        return f"step {int(self.frame[step])} of episode {self._episodes[episode].index}"

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[Path, Tensor, Any]]:
        """Every table with these columns: its file, the step of each of its rows, and the table.

        Raises:
            ConfigError: If a file is damaged, or has rows that the metadata do not know.
        """
        for path in dict.fromkeys(episode.data for episode in self._episodes):
            table = read_table(path, list(dict.fromkeys([*_PLACE, *columns])))
            steps = self._steps(path, table)
            self._seen.index_add_(0, steps, torch.ones_like(steps))
            yield path, steps, table

    def _steps(self, path: Path, table: Any) -> Tensor:
        episode, frame = (numbers(path, table, name, (), torch.int64) for name in _PLACE[:2])
        place = torch.searchsorted(self._known, episode).clamp(max=len(self._known) - 1)
        wrong = (self._known[place] != episode) | (frame < 0) | (frame >= self.lengths[place])
        if wrong.any():
            row = int(wrong.int().argmax())
            raise ConfigError(
                f"{path} has step {int(frame[row])} of episode {int(episode[row])}, which the metadata of the LeRobot "
                "data set do not list; download it again, as a whole"
            )
        time, fps = numbers(path, table, "timestamp", (), torch.float64), self._info.fps
        late = (time - frame / fps).abs() > 0.5 / fps
        if late.any() or not bool(time.isfinite().all()):
            row = int((late | ~time.isfinite()).int().argmax())
            raise ConfigError(
                f"{path} has step {int(frame[row])} of episode {int(episode[row])} at {float(time[row]):g} s, and at "
                f"{fps:g} steps a second it is at {int(frame[row]) / fps:g} s: steps are missing, or fps is wrong"
            )
        return self._starts[place] + frame

    def check_all_there(self) -> None:
        """Raise ``ConfigError`` if a step was not read exactly once."""
        wrong = self._seen != 1
        if wrong.any():
            step = int(wrong.int().argmax())
            raise ConfigError(
                f"the LeRobot data set at {self._info.folder} has {self.where(step)} {int(self._seen[step])} times; "
                "expected every step once: download it again"
            )

    def check_finite(self, name: str, values: Tensor) -> None:
        """Raise ``ConfigError`` if one of the numbers ``[M, ...]`` of a feature is not finite."""
        if not values.is_floating_point():
            return
        wrong = ~values.isfinite().flatten(1).all(1)
        if wrong.any():
            raise ConfigError(
                f"{int(wrong.sum())} of {len(values)} steps of the LeRobot data set at {self._info.folder} have no "
                f"finite {name}, the first at {self.where(int(wrong.int().argmax()))}; remove such episodes"
            )


def numbers(path: Path, table: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A column of numbers, or of lists of them, as ``[n, *shape]``.

    Raises:
        ConfigError: If a cell is empty, has another length, or cannot be converted exactly (but for the rounding of
            floats).
    """
    column, rows = table.column(name).combine_chunks(), table.num_rows
    cells = column
    while hasattr(cells, "flatten") and hasattr(cells.type, "value_type"):
        lengths = set(cells.value_lengths().to_pylist()) if hasattr(cells, "value_lengths") else set()
        if cells.null_count or len(lengths) > 1:
            raise ConfigError(f"{path} has cells of {name} that are empty, or of several lengths; download it again")
        cells = cells.flatten()
    if cells.null_count or len(cells) != rows * int(np.prod(shape)):
        raise ConfigError(
            f"{path} has {len(cells) - cells.null_count} numbers of {name} in {rows} rows; expected {list(shape)} in "
            "each: download the LeRobot data set again"
        )
    found: NDArray[Any] = cells.to_numpy(zero_copy_only=False)
    try:
        values = torch.from_numpy(np.array(found).reshape(rows, *shape))
    except TypeError as error:
        raise ConfigError(f"{path} has {column.type} as {name}; expected numbers") from error
    converted = values.to(dtype)
    if not dtype.is_floating_point and not bool((converted == values).all()):
        raise ConfigError(f"{path} has numbers of {name} that are no {str(dtype).removeprefix('torch.')}")
    return converted
