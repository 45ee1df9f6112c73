"""Read a LeRobot data set as demonstrations: a row a step, with the next actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from pcm_rl.config import ConfigError
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, INSTRUCTION, IS_PAD
from pcm_rl.processes.messages import set_texts
from pcm_rl.rollouts.lerobot.features import ACTION, Entry, check_range, check_width, entries_of, match_features
from pcm_rl.rollouts.lerobot.frames import decode_picture, read_clips
from pcm_rl.rollouts.lerobot.metadata import IMAGES, Episode, Info, read_episodes, read_info, read_tasks
from pcm_rl.rollouts.lerobot.origin import check_unchanged, read_origin
from pcm_rl.rollouts.lerobot.steps import Steps, numbers
from pcm_rl.rollouts.next_actions import next_actions
from pcm_rl.support.room import free_memory


def read_lerobot(
    folder: str | Path,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    *,
    chunk_length: int = 8,
    names: Mapping[str, str] | None = None,
) -> TensorDict:
    """The demonstrations of a LeRobot data set, version 2.0, 2.1 or 3.0.

    Args:
        folder: The data set, with ``meta/info.json``.
        observation_space: Of the environment that the demonstrations are for; every part of it must be in the data set.
        action_space: Of a single action, ``Box [D]``.
        chunk_length: L.
        names: Names of features that differ from the environment's, such as
            ``{"wrist_image": "observation.images.image2", "action": "actions"}``.

    Returns:
        ``[M]`` rows as :func:`~pcm_rl.rollouts.demonstrations.record_demonstrations` gives them. ``episode_id`` is the
        initial state where :func:`~pcm_rl.rollouts.lerobot.write.write_lerobot` has written the data set; of others it
        is not known, and their episodes are -1, -2, and so on. There is no ``language_instruction`` where all tasks
        are empty texts.

    Raises:
        ConfigError: If the data set is damaged or does not fit the environment.
        ImportError: A package is missing; the message says how to get it.
    """
    info, entries = read_info(Path(folder)), entries_of(observation_space)
    found = match_features(info, entries, names or {})
    box = check_width(info, found[ACTION], action_space)
    episodes = read_episodes(info, [found[entry.key] for entry in entries])
    lengths = torch.tensor([episode.length for episode in episodes])
    origin = read_origin(info.folder)
    if origin is not None:
        check_unchanged(info.folder, origin, lengths.tolist())
    _check_memory(info, entries)

    values = {entry.key: torch.zeros(info.frames, *entry.shape, dtype=entry.dtype) for entry in entries}
    actions, tasks = torch.zeros(info.frames, *box.shape), torch.zeros(info.frames, dtype=torch.int64)
    parts = [(found[key], value) for key, value in values.items()]
    steps = _fill(info, episodes, [*parts, (found[ACTION], actions), ("task_index", tasks)])
    if origin is None:  # the labels of ours are clean actions of an expert, which are clipped where they are executed
        check_range(info, found[ACTION], actions, box)

    chunk, is_pad = next_actions(actions, lengths, chunk_length)
    ids = [-1 - episode.index for episode in episodes] if origin is None else origin.init_states
    made: dict[NestedKey, Tensor] = {
        CHUNK: chunk,
        IS_PAD: is_pad,
        EPISODE: torch.tensor(ids).repeat_interleave(lengths),
        CHUNK_ID: steps.frame,
    }
    return _with_instructions(TensorDict({**made, **values}, batch_size=[info.frames]), info, tasks)


def _fill(info: Info, episodes: Sequence[Episode], parts: Sequence[tuple[str, Tensor]]) -> Steps:
    """Read features into tensors ``[M, ...]``; which of them are numbers, pictures and films stands in the metadata."""
    kinds = {name: info.features[name].dtype if name in info.features else "" for name, _ in parts}
    columns = [(name, out) for name, out in parts if kinds[name] not in IMAGES]
    pictures = [(name, out) for name, out in parts if kinds[name] == "image"]
    steps = Steps(info, episodes)
    for path, rows, table in steps.tables([name for name, _ in [*columns, *pictures]]):
        for name, out in columns:
            out[rows] = numbers(path, table, name, tuple(out.shape[1:]), out.dtype)
        for name, out in pictures:
            _read_pictures(table, name, steps, rows, out)
    steps.check_all_there()
    for name, out in parts:
        if kinds[name] == "video":
            read_clips(episodes, name, info.fps, out)
    for name, out in columns:
        steps.check_finite(name, out)
    return steps


def _check_memory(info: Info, entries: Sequence[Entry]) -> None:
    needed = info.frames * sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in entries)
    if needed > (free := free_memory()):
        raise ConfigError(
            f"the {info.frames} steps of the LeRobot data set at {info.folder} need {needed / 2**30:.1f} GiB of "
            f"memory, and {free / 2**30:.1f} GiB are free; take a part of it (LeRobot splits data sets)"
        )


def _read_pictures(table: Any, name: str, steps: Steps, rows: Tensor, out: Tensor) -> None:
    height, width = out.shape[2:]
    for row, cell in zip(rows.tolist(), table.column(name), strict=True):
        out[row] = decode_picture(cell.as_py(), (height, width), f"{name} at {steps.where(row)}")


def _with_instructions(demos: TensorDict, info: Info, tasks: Tensor) -> TensorDict:
    known = read_tasks(info)
    if unknown := sorted(set(tasks.tolist()) - set(known)):
        raise ConfigError(
            f"the LeRobot data set at {info.folder} has steps of task {unknown[0]}, and lists the tasks "
            f"{sorted(known)}; download it again"
        )
    texts = [known[task] for task in tasks.tolist()]
    return set_texts(demos, {INSTRUCTION: texts}) if any(texts) else demos
