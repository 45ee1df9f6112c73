"""``pcm-rl demos --lerobot FOLDER``: the demonstrations of a run as a LeRobot data set."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from tensordict import TensorDict

from pcm_rl.config import Config, ConfigError
from pcm_rl.episodes import CHUNK_ID
from pcm_rl.rollouts.environments import make_task
from pcm_rl.rollouts.lerobot.files import require_parquet
from pcm_rl.rollouts.lerobot.write import write_lerobot
from pcm_rl.rollouts.next_actions import episode_lengths
from pcm_rl.rollouts.saved import saved_settings
from pcm_rl.support.room import check_room


def ready_to_export(config: Config, folder: Path, fps: float | None) -> float:
    """What can be known before the demonstrations are recorded; the steps a second.

    Args:
        config: The run.
        folder: Where the data set will be.
        fps: Steps a second; None are those that the environment tells (``render_fps``).

    Raises:
        ConfigError: The steps a second are not known, or no number above 0; or the folder is ``demos.path``.
        FileExistsError: The folder holds something.
        ImportError: pyarrow is missing.
        OSError: The folder cannot be written to.
    """
    require_parquet()
    if config.demos.path is not None and Path(config.demos.path).absolute() == folder.absolute():
        raise ConfigError(f"demos.path and --lerobot are both {folder}; give the data set another folder")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists; give a new folder, or delete it")
    check_room(folder)
    if fps is None:
        with contextlib.closing(make_task(config.env, 0)) as env:
            fps = env.metadata.get("render_fps")
    if fps is None:
        raise ConfigError(f"{config.env.id} does not tell its steps a second (render_fps); give them, --fps 20")
    if not 0 < fps < math.inf:
        raise ConfigError(f"--fps must be a number above 0, got {fps:g}")
    return float(fps)


def export_lerobot(demos: TensorDict, config: Config, folder: Path, fps: float) -> str:
    """Write the demonstrations of a run, with the settings of their recording; a line that says so."""
    write_lerobot(demos, folder, fps=fps, settings=saved_settings(config))
    number = len(episode_lengths(demos.get(CHUNK_ID)))
    return f"LeRobot data set: {folder} ({number} episodes, {len(demos)} steps, {fps:g} a second)"
