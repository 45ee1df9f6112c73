"""The folder of a run: made once, never overwritten, known by its id."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import secrets
from pathlib import Path

from pcm_rl.config import Config, ConfigError, save_config
from pcm_rl.envs.experts import find_expert
from pcm_rl.rollouts.saved import has_demonstrations
from pcm_rl.support.writing import replacing
from pcm_rl.training.generations import generations, newest_whole

RUN = "run.json"  # the id that every checkpoint of the run has too
CONFIG = "config.yaml"
TABLES = ("metrics.csv", "evaluation.csv")
# no extras of pcm_rl, since one lock of all extras would hold other packages at the versions that mlflow asks for
TRACKERS = {"wandb": "wandb>=0.22", "mlflow": "mlflow>=3.17", "trackio": "trackio>=0.43"}


def refuse_existing(folder: Path) -> None:
    """Refuse a folder that holds a run: nothing saved is overwritten. One that was cut before its first save may begin.

    Raises:
        FileExistsError: There is a checkpoint, or a step in ``metrics.csv``.
    """
    if generations(folder):
        raise FileExistsError(
            f"{folder} already holds a run; continue it with --resume {folder}, give another name=..., or delete it"
        )
    metrics = folder / "metrics.csv"
    if metrics.is_file() and len(metrics.read_bytes().splitlines()) > 1:
        raise FileExistsError(f"{folder} holds the metrics of a run; give another name=..., or delete it")


def check_logger(name: str) -> None:
    """Raise ``ImportError`` with the command that installs it if a logger's package is missing."""
    if name != "none" and importlib.util.find_spec(name) is None:  # a logger has the name of its package
        raise ImportError(f"logger={name} needs the package {name}; run: pip install '{TRACKERS.get(name, name)}'")


def check_expert(config: Config) -> None:
    """Raise ``ConfigError`` if demonstrations would have to be recorded and there is no expert for them."""
    if has_demonstrations(config):
        return
    try:
        find_expert(config.env.id, config.demos.expert)
    except ValueError as error:
        raise ConfigError(f"demos.expert: {error}") from error


def check_new_run(config: Config) -> None:
    """What can be known before anything is built or written.

    Raises:
        FileExistsError: The folder holds a run.
        ImportError: The logger's package is missing.
    """
    refuse_existing(config.folder)
    check_logger(config.logger)


def begin_run_folder(config: Config) -> str:
    """Make the folder of a new run, and write its configuration and its id.

    Returns:
        The id.

    Raises:
        ConfigError: There is no expert for the demonstrations that the supervised start needs.
        FileExistsError, ImportError: As :func:`check_new_run`.
    """
    check_new_run(config)
    if config.sft.steps and config.policy.init is None:
        check_expert(config)
    config.folder.mkdir(parents=True, exist_ok=True)
    save_config(config, config.folder / CONFIG)
    return _write_id(config.folder, secrets.token_hex(8))


def find_resume(folder: Path) -> Path:
    """The checkpoint from which a run goes on: the newest that is whole.

    Raises:
        ConfigError: There is none, or ``config.yaml`` is not the one that it was made with.
    """
    checkpoint = newest_whole(folder, run_id(folder))
    kept = checkpoint / CONFIG
    if kept.is_file() and kept.read_bytes() != (folder / CONFIG).read_bytes():
        raise ConfigError(
            f"{folder / CONFIG} is not the one that the run was made with; put that back with `cp {kept} "
            f"{folder / CONFIG}`, and give changes as key=value behind --resume {folder}"
        )
    return checkpoint


def restore_tables(folder: Path, checkpoint: Path) -> list[str]:
    """Put back the tables that do not begin as the copies in the checkpoint do; a line for each."""
    lines = []
    for name in TABLES:
        kept, path = checkpoint / name, folder / name
        if kept.is_file() and not (path.is_file() and path.read_bytes().startswith(kept.read_bytes())):
            with replacing(path) as partial:
                partial.write_bytes(kept.read_bytes())
            lines.append(f"{path} is not what was written; taken from {checkpoint.name}")
    return lines


def run_id(folder: Path) -> str | None:
    """The id of the run in a folder; None for one of an older version, or where the file is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads((folder / RUN).read_bytes())
        return str(content["id"]) if content["id"] == content["copy"] else None
    return None


def adopt(folder: Path, checkpoint: Path) -> str:
    """The id of a run that goes on; written again where its file is damaged."""
    known = run_id(folder)
    if known is not None:
        return known
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _write_id(folder, str(json.loads((checkpoint / "manifest.json").read_bytes())["run"]))
    return _write_id(folder, secrets.token_hex(8))


def _write_id(folder: Path, name: str) -> str:
    with replacing(folder / RUN) as partial:
        partial.write_text(json.dumps({"id": name, "copy": name}))
    return name
