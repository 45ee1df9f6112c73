"""What this library writes beside a LeRobot data set: how it was recorded, and from which initial states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pcm_rl.config import ConfigError
from pcm_rl.rollouts.lerobot.files import read_json

ORIGIN = "meta/pcm_rl.json"


@dataclass(frozen=True)
class Origin:
    """Where the episodes come from.

    Attributes:
        settings: Those of the recording, as :func:`~pcm_rl.rollouts.dataset.recording_settings` gives them.
        init_states: Initial state of each episode.
        lengths: Steps of each episode.
    """

    settings: dict[str, str]
    init_states: list[int]
    lengths: list[int]


def write_origin(folder: Path, settings: Mapping[str, str], init_states: Sequence[int], lengths: Sequence[int]) -> None:
    """Write it into a data set."""
    origin = Origin(dict(settings), list(init_states), list(lengths))
    (folder / ORIGIN).write_text(json.dumps(asdict(origin), indent=1) + "\n", encoding="utf-8")


def read_origin(folder: Path, lengths: Sequence[int]) -> Origin | None:
    """Read it, or None where another program has written the data set.

    Args:
        folder: The data set.
        lengths: Steps of the episodes that it has now.

    Raises:
        ConfigError: If the file is damaged, or the episodes are not those that were written.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        origin = Origin(**read_json(path))
        same = list(origin.lengths) == list(lengths) and len(origin.init_states) == len(lengths)
    except TypeError as error:
        raise ConfigError(f"{path} is damaged: {error}; delete it, and initial states are not known") from error
    if not same:
        raise ConfigError(
            f"{path} is of {len(origin.lengths)} episodes with other lengths than the {len(lengths)} of the data set, "
            "which was changed afterwards; delete the file, and initial states are not known"
        )
    return origin
