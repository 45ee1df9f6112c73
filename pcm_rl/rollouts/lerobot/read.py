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
from pcm_rl.rollouts.lerobot.metadata import Info, read_episodes, read_info, read_tasks
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
    pictures = [entry for entry in entries if info.features[found[entry.key]].dtype == "image"]
    films = [entry for entry in entries if info.features[found[entry.key]].dtype == "video"]
    vectors = [entry for entry in entries if not entry.image]
    box = check_width(info, found[ACTION], action_space)
    episodes = read_episodes(info, [found[entry.key] for entry in films])
    origin = read_origin(info.folder)
    if origin is not None:
        check_unchanged(info.folder, origin, [episode.length for episode in episodes])

    _check_memory(info, entries)
    steps = Steps(info, episodes)
    values = {entry.key: torch.zeros(info.frames, *entry.shape, dtype=entry.dtype) for entry in entries}
    actions = torch.zeros(info.frames, *info.features[found[ACTION]].shape)
    tasks = torch.zeros(info.frames, dtype=torch.int64)
    columns = [found[entry.key] for entry in [*vectors, *pictures]]
    for path, rows, table in steps.tables([*columns, found[ACTION], "task_index"]):
        actions[rows] = numbers(path, table, found[ACTION], tuple(actions.shape[1:]), actions.dtype)
        tasks[rows] = numbers(path, table, "task_index", (), tasks.dtype)
        for entry in vectors:
            values[entry.key][rows] = numbers(path, table, found[entry.key], entry.shape, entry.dtype)
        for entry in pictures:
            _read_pictures(table, found[entry.key], steps, rows, values[entry.key])
    steps.check_all_there()
    for entry in films:
        read_clips(episodes, found[entry.key], info.fps, values[entry.key])

    steps.check_finite(found[ACTION], actions)
    for entry in vectors:
        steps.check_finite(found[entry.key], values[entry.key])
    if origin is None:  # the labels of ours are clean actions of an expert, which are clipped where they are executed
        check_range(info, found[ACTION], actions, box)
    chunk, is_pad = next_actions(actions, steps.lengths, chunk_length)
    ids = [-1 - episode.index for episode in episodes] if origin is None else origin.init_states
    made: dict[NestedKey, Tensor] = {
        CHUNK: chunk,
        IS_PAD: is_pad,
        EPISODE: torch.tensor(ids).repeat_interleave(steps.lengths),
        CHUNK_ID: steps.frame,
    }
    return _with_instructions(TensorDict({**made, **values}, batch_size=[info.frames]), info, tasks)


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
