"""Write demonstrations as a LeRobot data set of version 3.0, with images as lossless pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from pcm_rl.config import ConfigError
from pcm_rl.episodes import CHUNK, CHUNK_ID, EPISODE, INSTRUCTION, IS_PAD
from pcm_rl.rollouts.lerobot.features import ACTION, Entry
from pcm_rl.rollouts.lerobot.files import DATA_PATH, EPISODES_PATH, INFO, STATS, TASKS, require_parquet
from pcm_rl.rollouts.lerobot.origin import write_origin
from pcm_rl.rollouts.lerobot.stats import Stats, as_lists, histogram, image_stats, number_stats
from pcm_rl.rollouts.lerobot.tables import CHUNKS_SIZE, DataFiles, Place, write_records, write_tasks
from pcm_rl.rollouts.next_actions import episode_lengths, next_actions
from pcm_rl.support.writing import new_folder

FILE_MB = 100  # of a Parquet file, as LeRobot has it


def write_lerobot(
    demos: TensorDict,
    folder: str | Path,
    *,
    fps: float,
    settings: Mapping[str, str] | None = None,
    file_mb: float = FILE_MB,
) -> Path:
    """Write demonstrations, a row a step, as a LeRobot data set of version 3.0; it appears in one move.

    ``observation.state`` and other parts of the observation are vectors, ``observation.images.<name>`` PNG pictures in
    the tables, ``action`` is the first action of each row's chunk, and the task is its instruction.

    Args:
        demos: ``[M]`` rows as :func:`~pcm_rl.rollouts.demonstrations.record_demonstrations` gives them.
        folder: New or empty.
        fps: Steps a second.
        settings: Those of the recording. They are kept in ``meta/pcm_rl.json``, with the initial states, so that the
            data set can be checked when it is read. None writes neither.
        file_mb: Size of a Parquet file after which the next one is begun.

    Returns:
        ``folder``.

    Raises:
        ConfigError: If the rows are not whole episodes, step by step, or the format has no place for an entry.
        ImportError: pyarrow is missing.
        OSError: If the folder holds files.
    """
    require_parquet()
    if not 0 < fps < math.inf:
        raise ConfigError(f"a LeRobot data set needs the steps a second, a number above 0; got {fps}")
    lengths = _lengths(demos)
    texts = demos.get(INSTRUCTION).tolist() if INSTRUCTION in demos.keys() else [""] * len(demos)
    tasks = list(dict.fromkeys(texts))
    columns = _columns(demos, lengths, fps) | {"task_index": torch.tensor([tasks.index(text) for text in texts])}
    with new_folder(Path(folder)) as partial:
        records, stats = _write_episodes(partial, columns, lengths, tasks, file_mb)
        write_records(partial / EPISODES_PATH.format(chunk_index=0, file_index=0), records)
        write_tasks(partial / TASKS, tasks)
        _write_json(partial / STATS, as_lists(stats))
        _write_json(partial / INFO, _info(columns, fps, len(lengths), len(tasks), file_mb))
        if settings is not None:
            starts = lengths.cumsum(0) - lengths
            write_origin(partial, settings, demos.get(EPISODE)[starts].tolist(), lengths.tolist())
    return Path(folder)


def _lengths(demos: TensorDict) -> Tensor:
    """Steps of each episode; the rows must be whole episodes, whose chunks are their own next actions."""
    step, ids, chunk = demos.get(CHUNK_ID), demos.get(EPISODE), demos.get(CHUNK)
    if not len(step) or int(step[0]) != 0:
        raise ConfigError("expected demonstrations that begin with the first step of an episode, got others, or none")
    lengths = episode_lengths(step)
    chunks, is_pad = next_actions(chunk[:, 0], lengths, chunk.shape[1])
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    whole = torch.equal(step, torch.arange(len(step)) - first) and torch.equal(ids, ids[first])
    if not (whole and torch.equal(chunks, chunk) and torch.equal(is_pad, demos.get(IS_PAD))):
        raise ConfigError(
            "expected whole episodes, a row a step, whose chunks are the actions of the next steps; some rows are "
            "missing, or have other chunks"
        )
    return lengths


def _columns(demos: TensorDict, lengths: Tensor, fps: float) -> dict[str, Tensor]:
    columns = {}
    for path, values in demos.get("observation").items(include_nested=True, leaves_only=True):
        entry = Entry.of(("observation", *((path,) if isinstance(path, str) else path)), values)
        if not entry.image and len(entry.shape) > 1:
            raise ConfigError(
                f"LeRobot data sets of demonstrations have numbers, vectors and images [3, H, W] uint8; {entry.name} "
                f"is {list(entry.shape)} {values.dtype}: leave it out (env.observation)"
            )
        if "/" in entry.name:
            raise ConfigError(f"LeRobot has no names with a /, such as {entry.name}; rename it (env.observation)")
        columns[entry.feature] = values
    frame = demos.get(CHUNK_ID)
    return columns | {
        ACTION: demos.get(CHUNK)[:, 0],
        "timestamp": (frame.double() / fps).float(),
        "frame_index": frame,
        "episode_index": torch.arange(len(lengths)).repeat_interleave(lengths),
        "index": torch.arange(len(demos)),
    }


def _write_episodes(
    folder: Path, columns: Mapping[str, Tensor], lengths: Tensor, tasks: Sequence[str], file_mb: float
) -> tuple[list[dict[str, Any]], dict[str, Stats]]:
    """Write the tables; the metadata of each episode, and the statistics of all."""
    counts = {name: torch.zeros(3, 256, dtype=torch.int64) for name, values in columns.items() if values.ndim == 4}
    records, start = [], 0
    with DataFiles(folder, file_mb) as files:
        for index, length in enumerate(lengths.tolist()):
            part = {name: values[start : start + length] for name, values in columns.items()}
            place = files.write(part)
            stats = {name: number_stats(values) for name, values in part.items() if name not in counts}
            for name in counts:
                found = histogram(part[name])
                counts[name] += found
                stats[name] = image_stats(found, length)
            texts = [tasks[task] for task in part["task_index"].unique().tolist()]
            records.append(_record(index, start, length, texts, place, stats))
            start += length
    total = {name: number_stats(values) for name, values in columns.items() if name not in counts}
    return records, total | {name: image_stats(found, start) for name, found in counts.items()}


def _record(
    index: int, start: int, length: int, texts: list[str], place: Place, stats: Mapping[str, Stats]
) -> dict[str, Any]:
    """A row of ``meta/episodes``."""
    numbers = {f"stats/{name}/{key}": value for name, part in as_lists(stats).items() for key, value in part.items()}
    return {
        "episode_index": index,
        "tasks": texts,
        "length": length,
        "data/chunk_index": place.chunk,
        "data/file_index": place.file,
        "dataset_from_index": start,
        "dataset_to_index": start + length,
        **numbers,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }


def _info(columns: Mapping[str, Tensor], fps: float, episodes: int, tasks: int, file_mb: float) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": episodes,
        "total_frames": len(columns["index"]),
        "total_tasks": tasks,
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": file_mb,
        "video_files_size_in_mb": 200,  # LeRobot's own, of films that are added later
        "fps": int(fps) if fps == int(fps) else fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": {name: _feature(values) for name, values in columns.items()},
    }


def _feature(values: Tensor) -> dict[str, Any]:
    if values.ndim == 4:
        _, channels, height, width = values.shape
        return {"dtype": "image", "shape": [height, width, channels], "names": ["height", "width", "channels"]}
    return {"dtype": str(values.dtype).removeprefix("torch."), "shape": list(values.shape[1:]) or [1], "names": None}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
