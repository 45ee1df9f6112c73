"""The info of a chunk, and names in it that have changed."""

from __future__ import annotations

import warnings
from typing import Any

TRAJECTORY = "trajectory"
_OLD_NAMES = {"episode": TRAJECTORY, "episode_statistics": "episode"}


class ChunkInfo(dict[str, Any]):
    """An info in which `info["episode"]` still reads `info["trajectory"]`, with a warning.

    Gymnasium's `RecordEpisodeStatistics` and Stable-Baselines3 own the key `"episode"`: they write statistics there, or
    expect to find them. So it is not among the keys here, `in` and `get` do not find it, and whoever writes it wins.
    """

    def __missing__(self, key: str) -> Any:
        new = _OLD_NAMES.get(key)
        if new is None or new not in self:
            raise KeyError(key)
        warnings.warn(f"info[{key!r}] is now info[{new!r}]", DeprecationWarning, stacklevel=2)
        return self[new]
