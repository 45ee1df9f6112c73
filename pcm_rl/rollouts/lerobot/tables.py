"""Rows as Parquet tables, in the files that LeRobot's data sets of version 3.0 have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pcm_rl.rollouts.lerobot.files import DATA_PATH, require_parquet
from pcm_rl.rollouts.lerobot.frames import encode_png

CHUNKS_SIZE = 1000  # files a folder


@dataclass(frozen=True)
class Place:
    """The file with an episode's rows: ``data/chunk-<chunk>/file-<file>.parquet``."""

    chunk: int
    file: int


class DataFiles:
    """Writes the rows of one episode after the other, a row group each, and begins a new file when one is full.

    Args:
        folder: The data set.
        file_mb: Size of a file after which the next one is begun.
    """

    def __init__(self, folder: Path, file_mb: float) -> None:
        self._folder, self._bytes = folder, file_mb * 2**20
        self._writer: Any = None
        self._number = 0

    def write(self, columns: Mapping[str, Tensor]) -> Place:
        """Write the rows ``[n, ...]`` of an episode."""
        import pyarrow

        place = Place(self._number // CHUNKS_SIZE, self._number % CHUNKS_SIZE)
        path = self._folder / DATA_PATH.format(chunk_index=place.chunk, file_index=place.file)
        table = pyarrow.table({name: _column(pyarrow, values) for name, values in columns.items()})
        if self._writer is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = require_parquet().ParquetWriter(path, table.schema)
        self._writer.write_table(table)
        if path.stat().st_size >= self._bytes:
            self._close()
            self._number += 1
        return place

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> DataFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()


def _column(arrow: Any, values: Tensor) -> Any:
    """Numbers ``[n]`` or ``[n, 1]`` as numbers, vectors as lists of their length, images as structs with a PNG."""
    if values.ndim == 4:
        pictures = arrow.array([encode_png(frame) for frame in values], arrow.binary())
        names = arrow.array([f"frame-{index:06d}.png" for index in range(len(values))])
        return arrow.StructArray.from_arrays([pictures, names], ["bytes", "path"])
    flat = arrow.array(values.flatten().numpy())
    width = values.shape[1] if values.ndim == 2 else 1
    return flat if width == 1 else arrow.FixedSizeListArray.from_arrays(flat, width)


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write one row for each record."""
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    require_parquet().write_table(pyarrow.Table.from_pylist(list(records)), path)


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write the tasks in their order, as a table that pandas reads with the texts as its index: LeRobot looks there."""
    import pyarrow

    table = pyarrow.table({"task_index": pyarrow.array(range(len(tasks)), pyarrow.int64()), "task": list(tasks)})
    types = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in types
        ],
        "creator": {"library": "pcm_rl", "version": "0"},
        "pandas_version": "2.0.0",
    }
    require_parquet().write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
