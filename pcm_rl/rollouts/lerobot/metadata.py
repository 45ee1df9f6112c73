"""What the metadata of a LeRobot data set say: features, tasks, and where each episode lies; versions 2.0, 2.1, 3.0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pcm_rl.config import ConfigError
from pcm_rl.rollouts.lerobot.files import INFO, TASKS, read_json, read_json_lines, read_table

VERSIONS = ("v2.0", "v2.1", "v3.0")
_TASK_COLUMNS = ("task", "__index_level_0__")  # the second one where pandas has named it
Value = TypeVar("Value")
IMAGES = ("image", "video")  # data types of cameras: pictures in the table, or films beside it


@dataclass(frozen=True)
class Feature:
    """A column of the data set.

    Attributes:
        dtype: Such as ``float32``; ``image`` and ``video`` are cameras.
        shape: Of one step; ``(1,)`` for a number, height, width and channels of a camera.
    """

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Clip:
    """The frames of an episode in a film: the film, and the time at which the episode begins in it, in seconds."""

    path: Path
    start: float


@dataclass(frozen=True)
class Episode:
    """Where an episode lies.

    Attributes:
        index: Its number in the data set.
        length: Its steps, at least 1.
        data: The Parquet file with its rows.
        clips: Its frames, by the name of the camera; only of cameras that were asked for.
    """

    index: int
    length: int
    data: Path
    clips: dict[str, Clip]


@dataclass(frozen=True)
class Info:
    """``meta/info.json``.

    Attributes:
        folder: The data set.
        version: One of ``VERSIONS``.
        fps: Steps a second.
        features: By name.
        episodes: Number of episodes.
        frames: Number of steps of all episodes.
        chunks_size: Files a folder; up to version 2.1 the episodes a folder.
        data_path: Pattern of the Parquet files' names.
        video_path: Pattern of the films' names, None where there are none.
    """

    folder: Path
    version: str
    fps: float
    features: dict[str, Feature]
    episodes: int
    frames: int
    chunks_size: int
    data_path: str
    video_path: str | None

    @property
    def cameras(self) -> list[str]:
        """Names of the features that are images."""
        return [name for name, feature in self.features.items() if feature.dtype in IMAGES]

    def place(self, pattern: str | None, **numbers: Any) -> Path:
        """The file that a pattern names.

        Raises:
            ConfigError: If it names none in the data set's folder.
        """
        try:
            name = (pattern or "").format(**numbers)
        except (LookupError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self.folder / INFO} has a path {pattern!r} that cannot be filled in: {error}"
            ) from error
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"{self.folder / INFO} has a path {pattern!r}; expected one inside of the data set")
        return self.folder / name


def read_info(folder: Path) -> Info:
    """Read ``meta/info.json``.

    Raises:
        ConfigError: If it is missing, damaged, or of another version.
    """
    path = folder / INFO
    found = read_json(path)
    version = found.get("codebase_version") if isinstance(found, dict) else None
    if version not in VERSIONS:
        raise ConfigError(
            f"the LeRobot data set at {folder} has codebase_version {version}; expected one of {', '.join(VERSIONS)}: "
            "convert it with LeRobot's scripts"
        )
    try:
        info = Info(
            folder=folder,
            version=version,
            fps=float(found["fps"]),
            features={name: _feature(feature) for name, feature in found["features"].items()},
            episodes=int(found["total_episodes"]),
            frames=int(found["total_frames"]),
            chunks_size=int(found["chunks_size"]),
            data_path=found["data_path"],
            video_path=found.get("video_path"),
        )
        if not (0 < info.fps < math.inf and info.chunks_size > 0):
            raise ValueError(f"fps={info.fps:g} and chunks_size={info.chunks_size}, expected numbers above 0")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} of a LeRobot data set is damaged: {error!r}; download it again") from error
    return info


def _feature(found: dict[str, Any]) -> Feature:
    return Feature(str(found["dtype"]), tuple(int(size) for size in found.get("shape") or ()))


def read_tasks(info: Info) -> dict[int, str]:
    """Number of a task -> what it tells to do.

    Raises:
        ConfigError: If the file is missing or damaged.
    """
    if not info.version.startswith("v3"):
        path = info.folder / "meta/tasks.jsonl"
        lines = read_json_lines(path)
        return {_field(path, line, "task_index", int): _field(path, line, "task", str) for line in lines}
    path = info.folder / TASKS
    table = read_table(path)
    name = next((name for name in _TASK_COLUMNS if name in table.column_names), None)
    if name is None or "task_index" not in table.column_names:
        raise ConfigError(f"{path} has the columns {table.column_names}; expected task_index and task")
    return dict(zip(table.column("task_index").to_pylist(), table.column(name).to_pylist(), strict=True))


def read_episodes(info: Info, features: Sequence[str]) -> list[Episode]:
    """All episodes, in the order of their numbers; with the films of those ``features`` that are films.

    Raises:
        ConfigError: If the metadata are missing, damaged, or fewer than ``meta/info.json`` says.
    """
    filmed = [name for name in features if info.features[name].dtype == "video"]
    episodes = _episodes_of_tables(info, filmed) if info.version.startswith("v3") else _episodes_of_lines(info, filmed)
    episodes.sort(key=lambda episode: episode.index)
    frames = sum(episode.length for episode in episodes)
    if len({episode.index for episode in episodes}) != info.episodes or len(episodes) != info.episodes:
        raise ConfigError(
            f"the LeRobot data set at {info.folder} lists {len(episodes)} episodes, and {INFO} says {info.episodes}; "
            "was it finalised? Download it again, or record it again"
        )
    if frames != info.frames or not all(episode.length > 0 for episode in episodes):
        raise ConfigError(
            f"the episodes of the LeRobot data set at {info.folder} have {frames} steps, and {INFO} says "
            f"{info.frames}; download it again"
        )
    if not episodes:
        raise ConfigError(f"the LeRobot data set at {info.folder} has no episodes")
    return episodes


def _episodes_of_tables(info: Info, filmed: Sequence[str]) -> list[Episode]:
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for name in filmed:
        columns += [f"videos/{name}/chunk_index", f"videos/{name}/file_index", f"videos/{name}/from_timestamp"]
    episodes = []
    for path in sorted((info.folder / "meta/episodes").glob("*/*.parquet")):
        for row in read_table(path, columns).to_pylist():
            if empty := [column for column in columns if row[column] is None]:
                raise ConfigError(
                    f"{path} of a LeRobot data set is damaged: a row without {empty[0]}; download it again"
                )
            place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            clips = {name: _clip(info, name, row) for name in filmed}
            data = info.place(info.data_path, **place)
            episodes.append(Episode(row["episode_index"], row["length"], data, clips))
    return episodes


def _clip(info: Info, name: str, row: dict[str, Any]) -> Clip:
    place = {part: row[f"videos/{name}/{part}"] for part in ("chunk_index", "file_index")}
    return Clip(info.place(info.video_path, video_key=name, **place), row[f"videos/{name}/from_timestamp"])


def _episodes_of_lines(info: Info, filmed: Sequence[str]) -> list[Episode]:
    path = info.folder / "meta/episodes.jsonl"
    episodes = []
    for line in read_json_lines(path):
        index, length = _field(path, line, "episode_index", int), _field(path, line, "length", int)
        place = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        clips = {name: Clip(info.place(info.video_path, video_key=name, **place), 0.0) for name in filmed}
        episodes.append(Episode(index, length, info.place(info.data_path, **place), clips))
    return episodes


def _field(path: Path, line: Any, name: str, kind: type[Value]) -> Value:
    value = line.get(name) if isinstance(line, dict) else None
    if not isinstance(value, kind):
        raise ConfigError(
            f"{path} of a LeRobot data set is damaged: a line with {name} {value!r}, expected {kind.__name__}; "
            "download it again"
        )
    return value
