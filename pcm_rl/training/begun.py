"""A run that goes on: its configuration, whether the command names its folder or is the one that has begun it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pcm_rl.config import Config, ConfigError, differences, load_run_config
from pcm_rl.training.generations import generations
from pcm_rl.training.run_folder import find_resume


def config_of_run(folder: str, overrides: Sequence[str]) -> Config:
    """The configuration in a run's folder; where it is damaged, the error says where its copy is.

    Raises:
        ConfigError, FileNotFoundError: As :func:`~pcm_rl.config.load_run_config`.
    """
    try:
        return load_run_config(folder, overrides)
    except ConfigError:
        if folder.strip() and generations(Path(folder)):
            find_resume(Path(folder))
        raise


def begun_or_new(config: Config, overrides: Sequence[str]) -> tuple[Config, bool]:
    """What one command that both begins a run and goes on with it has to do, and whether the run goes on.

    Batch systems start the same command again, ``torchrun --max-restarts`` too.

    Args:
        config: From the recipe and the overrides.
        overrides: Changes, which count for a run that goes on as well.

    Returns:
        ``config`` and False where its folder has no checkpoint; else the configuration of the run, and True.

    Raises:
        ConfigError: The run was begun with other settings, which ``overrides`` do not name.
    """
    if not generations(config.folder):
        return config, False
    places = ("name", "run_dir", "policy.init")
    begun = config_of_run(str(config.folder), [text for text in overrides if text.partition("=")[0] not in places])
    asked = replace(config, name=begun.name, run_dir=begun.run_dir, policy=replace(config.policy, init=None))
    for key, (before, now) in differences(begun, asked).items():
        raise ConfigError(
            f"{config.folder} was begun with {key}={before}, and the recipe says {now}; say {key}=... in the command, "
            "or give another name=..."
        )
    return begun, True
