"""The demonstrations at ``demos.path``: a file of this library, or a LeRobot data set."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path

from tensordict import TensorDict

from pcm_rl.config import Config, ConfigError
from pcm_rl.episodes import CHUNK_ID
from pcm_rl.rollouts.dataset import (
    check_fit,
    check_settings,
    load_demonstrations,
    read_settings,
    recording_settings,
)
from pcm_rl.rollouts.environments import make_task
from pcm_rl.rollouts.lerobot.features import entries_of, match_features
from pcm_rl.rollouts.lerobot.files import INFO, is_lerobot
from pcm_rl.rollouts.lerobot.metadata import read_info
from pcm_rl.rollouts.lerobot.origin import read_origin
from pcm_rl.rollouts.lerobot.read import read_lerobot
from pcm_rl.rollouts.next_actions import episode_lengths


def has_demonstrations(config: Config) -> bool:
    """Whether there is something at ``demos.path``, so that nothing has to be recorded."""
    return config.demos.path is not None and Path(config.demos.path).exists()


def saved_demonstrations(config: Config, say: Callable[[str], None] = print) -> TensorDict | None:
    """Read the demonstrations at ``demos.path`` and check that they fit the run; None if there are none.

    Raises:
        ConfigError: They are damaged or do not fit, or ``demos.features`` is given and they are no LeRobot data set.
        ImportError: A package that reads LeRobot data sets is missing.

    Warns:
        RuntimeWarning: A LeRobot data set has other steps a second than the environment renders.
    """
    path = None if config.demos.path is None else Path(config.demos.path)
    if path is not None and is_lerobot(path):
        return _lerobot(path, config, say)
    if config.demos.features:
        raise ConfigError(
            f"demos.features names features of a LeRobot data set, and demos.path={config.demos.path} is none; "
            f"expected a folder with {INFO}"
        )
    if path is None or not path.exists():
        return None
    if path.is_dir():
        raise ConfigError(
            f"demos.path={path} is a folder without {INFO}; expected a file that `pcm-rl demos` has written, or a "
            "LeRobot data set"
        )
    demos = load_demonstrations(path)
    check_fit(demos, path, config)
    return demos


def saved_settings(config: Config) -> dict[str, str] | None:
    """The settings of the recording at ``demos.path``, those of the run where there is none; None if not known."""
    path = None if config.demos.path is None else Path(config.demos.path)
    if path is None or not path.exists():
        return recording_settings(config)
    if not is_lerobot(path):
        return read_settings(path)
    origin = read_origin(path)
    return None if origin is None else origin.settings


def _lerobot(path: Path, config: Config, say: Callable[[str], None]) -> TensorDict:
    with contextlib.closing(make_task(config.env, 0)) as env:
        seen, taken, env_fps = env.observation_space, env.action_space, env.metadata.get("render_fps")
    names = config.demos.features
    demos = read_lerobot(path, seen, taken, chunk_length=config.env.chunk_length, names=names)
    info, origin, entries = read_info(path), read_origin(path), entries_of(seen)
    if origin is not None:
        check_settings(origin.settings, demos, path, config, free=("chunk_length",))  # chunks were made just now
    found = match_features(info, entries, names)
    others = "".join(f"; {e.name} is its {found[e.key]}" for e in entries if found[e.key] != e.feature)
    episodes = len(episode_lengths(demos.get(CHUNK_ID)))
    say(f"{path}: {episodes} demonstrations ({len(demos)} steps) of a LeRobot data set {info.version}{others}")
    if origin is None:
        say(f"{path} does not tell initial states: those held out for evaluation may be among them")
    if env_fps is not None and abs(env_fps - info.fps) > 0.01 * info.fps:
        warnings.warn(
            f"{path} has {info.fps:g} steps a second, and the environment {env_fps:g}: an action of the one may be too "
            "long or too short for the other",
            RuntimeWarning,
            stacklevel=3,
        )
    return demos
