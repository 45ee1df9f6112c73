"""The files of a LeRobot data set: JSON and Parquet, and what is said where one of them is missing or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pcm_rl.config import ConfigError

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES_PATH = f"meta/episodes/{CHUNK_FILE}.parquet"
DATA_PATH = f"data/{CHUNK_FILE}.parquet"
FRAME_COLUMNS = {  # of every data set, beside its observations and actions
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64",
}  # fmt: skip

Read = TypeVar("Read")


def is_lerobot(path: Path) -> bool:
    """Whether a folder holds a LeRobot data set."""
    return (path / INFO).is_file()


def require_parquet() -> Any:
    """The module ``pyarrow.parquet``.

    Raises:
        ImportError: It is not installed; the message says how to get it.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f'LeRobot data sets need the package pyarrow ({error}); run: pip install "pcm_rl[lerobot]"'
        ) from error
    return pyarrow.parquet


def read_json(path: Path) -> Any:
    """Raises ``ConfigError`` if the file is missing or no JSON."""
    return _read(path, lambda: json.loads(path.read_text(encoding="utf-8")))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Raises ``ConfigError`` if the file is missing or a line of it is no JSON."""
    return _read(path, lambda: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line])


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A ``pyarrow.Table`` with these columns, or all.

    Raises:
        ConfigError: If the file is missing or damaged, or lacks a column.
        ImportError: As :func:`require_parquet`.
    """
    parquet = require_parquet()

    def read() -> Any:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names if columns is None else list(columns)
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise ConfigError(f"{path} has no column {', '.join(missing)}; it has {_listed(file.schema_arrow)}")
            return file.read(names).select(names)

    return _read(path, read)


def _read(path: Path, read: Callable[[], Read]) -> Read:
    if not path.is_file():
        raise ConfigError(f"the LeRobot data set lacks {path}; download it again, as a whole")
    try:
        return read()
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors are of these two kinds
        text = " ".join(str(error).split())
        raise ConfigError(f"{path} of a LeRobot data set is damaged: {text}; download it again") from error


def _listed(schema: Any) -> str:
    return ", ".join(name for name in schema.names if not name.startswith("stats/"))
