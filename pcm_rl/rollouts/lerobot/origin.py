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


def read_origin(folder: Path) -> Origin | None:
    """Read it, or None where another program has written the data set.

    Raises:
        ConfigError: If the file is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        return Origin(**read_json(path))
    except TypeError as error:
        raise ConfigError(f"{path} is damaged: {error}; delete it, and initial states are not known") from error


def check_unchanged(folder: Path, origin: Origin, lengths: Sequence[int]) -> None:
    """Raise ``ConfigError`` if the episodes, of these lengths, are not those that were written."""
    if not len(origin.lengths) == len(origin.init_states) == len(lengths) or origin.lengths != list(lengths):
        raise ConfigError(
            f"{folder / ORIGIN} is of {len(origin.lengths)} episodes, and the data set has {len(lengths)}, or of other "
            "lengths: it was changed afterwards; delete the file, and initial states are not known"
        )
