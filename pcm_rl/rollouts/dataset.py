"""Datasets of demonstrations on disk: safetensors files with the settings of their recording."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.config import Config, ConfigError, as_written
from pcm_rl.episodes import EPISODE, INSTRUCTION
from pcm_rl.processes.messages import set_texts
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.support.tensors import save_tensors
from pcm_rl.support.writing import replacing

_TEXT = f"{INSTRUCTION}.utf8"
# settings that a dataset must share with the run that uses it
_SAME = ("env", "kwargs", "tasks", "wrappers", "observation", "chunk_length", "images")
# settings that older recordings did not write, and their values there
_OLD_DEFAULTS = {
    "tasks": "{}",
    "images": "null",
    "wrappers": "[]",
    "observation": "null",
    "gripper_index": "-1",
    "success": "None",
    "expert": "None",
}


def save_demonstrations(demos: TensorDict, path: str | Path, metadata: dict[str, str]) -> None:
    """Write rows and metadata as one safetensors file; instructions become UTF-8 bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        key if isinstance(key, str) else ".".join(key): value.contiguous() for key, value in demos.items(True, True)
    }
    texts = demos.get(INSTRUCTION, None)
    if texts is not None:
        tensors[_TEXT] = _bytes(texts.tolist())
    with replacing(path) as partial:
        save_tensors(tensors, partial, metadata)


def load_demonstrations(path: str | Path) -> TensorDict:
    """Read what :func:`save_demonstrations` wrote.

    Raises:
        ConfigError: If the file is damaged.
        FileNotFoundError: If the file does not exist.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no demonstrations at {path}; record them with `pcm-rl demos`")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError(
            f"the demonstrations at {path} are damaged: {error}; delete the file and record again"
        ) from error
    coded = tensors.pop(_TEXT, None)
    flat: dict[Any, Any] = {tuple(key.split(".")) if "." in key else key: value for key, value in tensors.items()}
    rows = TensorDict(flat, batch_size=[len(next(iter(flat.values())))])
    if coded is not None and len(rows):
        set_texts(rows, {INSTRUCTION: _texts(coded)})
    return rows


def _bytes(texts: list[str]) -> Tensor:
    """``[M, T]`` uint8, shorter texts padded with zeros."""
    coded = [text.encode() for text in texts]
    width = max((len(code) for code in coded), default=0)
    return torch.tensor([list(code.ljust(width, b"\0")) for code in coded], dtype=torch.uint8).view(len(coded), width)


def _texts(coded: Tensor) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode() for row in coded.tolist()]


def recording_settings(config: Config) -> dict[str, str]:
    """The settings that determine a recording; written into the dataset."""
    env, demos = config.env, config.demos
    texts = as_written({"kwargs": env.kwargs, "tasks": env.tasks, "wrappers": env.wrapper_calls})
    numbers = {"noise": demos.noise, "mistakes": demos.mistakes, "episodes": demos.episodes, "seed": config.seed}
    split = {"num_states": env.num_states, "eval_states": env.eval_states}
    rules = {"expert": demos.expert, "success": env.success, "gripper_index": env.gripper_index}
    return {
        "env": env.id,
        **{key: json.dumps(value, sort_keys=True) for key, value in texts.items()},
        "observation": json.dumps(as_written(env.observation)),
        "images": json.dumps(as_written(env.images), sort_keys=True),
        "chunk_length": str(env.chunk_length),
        **{key: str(value) for key, value in (numbers | split | rules).items()},
    }


def begin_or_continue(parts: Path, settings: dict[str, str]) -> None:
    """Make the folder of an unfinished recording, or check that it was begun with the same settings.

    Raises:
        ConfigError: If the settings differ.
    """
    path = parts / "settings.json"
    if not path.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(settings, indent=1))
        return
    try:
        begun = _OLD_DEFAULTS | json.loads(path.read_text())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}; delete {parts}, and record again") from error
    changed = [f"{key}={begun.get(key)}" for key in settings if begun.get(key) != settings[key]]
    if changed:
        raise ConfigError(
            f"{parts} holds a recording that was begun with {', '.join(changed)}; finish it with these settings, or "
            "delete the folder"
        )


def check_fit(demos: TensorDict, path: Path, config: Config) -> None:
    """Raise ``ConfigError`` if the dataset has other settings, or holds initial states that this run holds out."""
    check_settings(read_settings(path), demos, path, config)


def read_settings(path: Path) -> dict[str, str]:
    """The settings of a recording, as they stand in its file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def check_settings(
    recorded: Mapping[str, str], demos: TensorDict, path: Path, config: Config, free: Collection[str] = ()
) -> None:
    """:func:`check_fit` with the settings of the recording, but for those in ``free``."""
    recorded, settings = _OLD_DEFAULTS | dict(recorded), recording_settings(config)
    for key in _SAME:
        if key not in free and recorded.get(key) != settings[key]:
            raise ConfigError(
                f"the demonstrations at {path} were recorded with {key}={recorded.get(key)}, this run has "
                f"{settings[key]}; give another demos.path"
            )
    shared = sorted(set(demos.get(EPISODE).tolist()) & set(InitialStates.of(config).evaluation.tolist()))
    if shared:
        raise ConfigError(
            f"the demonstrations at {path} start from initial states {shared}, which seed {config.seed} holds out for "
            "evaluation; record them for this seed with another demos.path"
        )
