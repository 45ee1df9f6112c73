"""The folder of a run: made once, never overwritten."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pcm_rl.config import Config, ConfigError, save_config
from pcm_rl.envs.experts import find_expert


def refuse_existing(folder: Path) -> None:
    """Raise ``FileExistsError`` if ``folder`` already holds a run: nothing saved is overwritten."""
    if (folder / "metrics.csv").exists():
        raise FileExistsError(
            f"{folder} already holds a run; continue it with --resume {folder}, give another name=..., or delete it"
        )


def check_logger(name: str) -> None:
    """Raise ``ImportError`` with the command that installs it if a logger's package is missing."""
    if name != "none" and importlib.util.find_spec(name) is None:  # a logger has the name of its package
        raise ImportError(f"logger={name} needs the package {name}; run: pip install {name}")


def check_expert(config: Config) -> None:
    """Raise ``ConfigError`` if demonstrations would have to be recorded and there is no expert for them."""
    if config.demos.path is not None and Path(config.demos.path).is_file():
        return
    try:
        find_expert(config.env.id, config.demos.expert)
    except ValueError as error:
        raise ConfigError(f"demos.expert: {error}") from error


def begin_run_folder(config: Config) -> None:
    """Make the folder of a new run and write its configuration.

    Raises:
        ConfigError: If there is no expert for the demonstrations that the supervised start needs.
        FileExistsError: If it already holds a run.
        ImportError: If the logger's package is missing.
    """
    refuse_existing(config.folder)
    check_logger(config.logger)
    if config.sft.steps and config.policy.init is None:
        check_expert(config)
    config.folder.mkdir(parents=True, exist_ok=True)
    save_config(config, config.folder / "config.yaml")
