"""The output of a run during training: its tables, a tracker that follows them, and lines of text."""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcm_rl.reports.columns import EVALUATION, METRICS, headers
from pcm_rl.reports.follower import EVALUATED, TRAIN, Follower
from pcm_rl.reports.loggers import Outcome
from pcm_rl.support.writing import replacing, sync

Cells = dict[str, Any]


class CsvTable:
    """A CSV file with fixed columns, one row appended at a time, one row a step.

    Args:
        path: The file; created with its header if missing.
        columns: Column names; ``columns[0]`` is the step. Further columns of an existing file stay after them.
        keep_until: Last step to keep; an interrupted run may have written later ones after its last checkpoint. None
            starts an empty file.

    Attributes:
        repairs: A line for each damage that was found, such as a row that a power cut has left in half.
    """

    def __init__(self, path: Path, columns: list[str], keep_until: int | None = None) -> None:
        self.path, self.columns, self.repairs = path, columns, list[str]()
        self._last: Cells = {}
        self._rewrite(self._read(keep_until) if path.exists() and keep_until is not None else {})

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row, in place of one of the same step; cells of absent and nan entries are empty.

        Raises:
            KeyError: If the row has a column that the table lacks.
        """
        unknown = set(row) - set(self.columns)
        if unknown:
            raise KeyError(f"{self.path.name} has no column {sorted(unknown)}")
        step = int(row[self.columns[0]])
        cells = {key: value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
        if step <= self._last_step:
            self._rewrite(self._read(step - 1))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(cells)
        self._last = cells

    def rows(self) -> list[dict[str, float]]:
        """What is in the file, by step; empty cells are left out."""
        rows = self._read(int(self._last_step)) if self._last else {}
        return [{key: float(cell) for key, cell in cells.items() if cell} for cells in rows.values()]

    def has(self, row: Mapping[str, float]) -> bool:
        """Whether this row is the last one already."""
        return bool(self._last) and all(_number(self._last.get(key)) == value for key, value in row.items())

    @property
    def _last_step(self) -> float:
        return float(self._last.get(self.columns[0], -math.inf))

    def _read(self, keep_until: int) -> dict[int, Cells]:
        """Whole rows by their step, the later of two, without those after ``keep_until``."""
        text = self.path.read_bytes().decode(errors="replace").replace("\0", "\ufffd")
        first, *lines = text.splitlines() or [""]
        header = next(csv.reader([first]), [])
        if not header or header[0] != self.columns[0] or "\ufffd" in "".join(header):
            aside = self.path.with_name(self.path.name + ".damaged")
            os.replace(self.path, aside)
            self.repairs.append(f"{self.path.name}: its header is damaged; it is kept as {aside.name}")
            return {}
        self.columns = list(dict.fromkeys([*self.columns, *header]))
        rows, damaged = dict[int, Cells](), 0
        for line in filter(None, lines):
            cells = line.split(",")  # numbers are never quoted, and a stray quote must not swallow the rows behind it
            numbers = [_number(cell) for cell in cells if cell]
            if len(cells) != len(header) or None in numbers or not cells[0].isdecimal():
                damaged += 1
            elif int(cells[0]) <= keep_until:
                rows[int(cells[0])] = dict(zip(header, cells, strict=True))
        if damaged:
            self.repairs.append(f"{self.path.name}: {damaged} damaged row{'s' * (damaged > 1)} left out")
        return rows

    def _rewrite(self, rows: dict[int, Cells]) -> None:
        steps = sorted(rows)
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows[step] for step in steps)
        self._last = rows[steps[-1]] if steps else {}


def _number(cell: float | str | None) -> float | None:
    """A cell as a number; None for what is none."""
    try:
        return None if cell is None else float(cell)
    except ValueError:
        return None


class RunLog:
    """Tables of a run folder, and a tracker that gets their rows as scalars.

    Args:
        folder: The run folder.
        keep_until: See :class:`CsvTable`.
        extra: Further columns of ``metrics.csv``, after those of :data:`~pcm_rl.reports.columns.METRICS`: measured by a
            user's rule or advantage.

    Attributes:
        metrics: ``metrics.csv``.
        evaluation: ``evaluation.csv``.
        repairs: A line for each damage of a table that was found.

    Raises:
        ValueError: If an extra column has the name of another column.
    """

    def __init__(self, folder: Path, keep_until: int | None = None, extra: Sequence[str] = ()) -> None:
        columns = [*headers(METRICS), *extra]
        if repeated := sorted({name for name in extra if columns.count(name) > 1}):
            raise ValueError(f"metrics.csv has a column {repeated[0]!r} already; give the extra one another name")
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics = CsvTable(folder / "metrics.csv", columns, keep_until)
        self.evaluation = CsvTable(folder / "evaluation.csv", headers(EVALUATION), keep_until)
        self.repairs = [*self.metrics.repairs, *self.evaluation.repairs]
        self._undeclared: set[str] = set()
        self._follower: Follower | None = None

    def follow(self, follower: Follower) -> None:
        """Send to a tracker the rows that are there and that it does not have yet, and from now on every new one."""
        self._follower = follower
        for prefix, table in ((TRAIN, self.metrics), (EVALUATED, self.evaluation)):
            for row in table.rows():
                follower.add(prefix, row)
        follower.send()

    def close(self, outcome: Outcome) -> None:
        """End the run in the tracker, if there is one; once."""
        if self._follower is not None:
            self._follower.close(outcome)
            self._follower = None

    def step(self, row: Mapping[str, float]) -> None:
        """Record a training step.

        Warns:
            RuntimeWarning: The first time that a name has no column; only the tracker gets its values.
        """
        undeclared = set(row) - set(self.metrics.columns)
        if new := sorted(undeclared - self._undeclared):
            self._undeclared |= undeclared
            # a step can take minutes: an undeclared name is no reason to lose it
            warnings.warn(f"metrics.csv has no column for {', '.join(new)}: not written there", RuntimeWarning, 2)
        self.metrics.append({name: value for name, value in row.items() if name not in undeclared})
        self._send(TRAIN, row)

    def evaluated(self, row: Mapping[str, float]) -> None:
        """Record an evaluation; the same one of the same step, as at the end of a run that is resumed, once."""
        if not self.evaluation.has(row):
            self.evaluation.append(row)
            self._send(EVALUATED, row)

    def contents(self) -> dict[str, bytes]:
        """The tables by name, as they are; on the disk before this returns."""
        for table in (self.metrics, self.evaluation):
            sync(table.path)
        return {table.path.name: table.path.read_bytes() for table in (self.metrics, self.evaluation)}

    def _send(self, prefix: str, row: Mapping[str, float]) -> None:
        if self._follower is not None:
            self._follower.add(prefix, row)
            self._follower.send()


def step_line(row: Mapping[str, float], steps: int) -> str:
    """One step in one line: success, groups used, chunks kept, seconds and shares, and the possible gain."""
    update, total = row.get("update_s", 0.0), max(row["step_s"], 1e-9)
    head = f"step {int(row['step']):>4}/{steps}  success {row['success']:>6.1%}  "
    alone = row["groups"] == row["trajectories"]
    head += (
        f"rollouts {row['trajectories']}  " if alone else f"groups {int(row['groups_mixed'])}/{int(row['groups'])}  "
    )
    if row.get("groups_dropped"):
        head += f"dropped {int(row['groups_dropped'])}  "
    if "rollouts_cut" in row:
        head += f"cut {int(row['rollouts_cut'])}  "
    times = f"rollout {row['rollout_s']:.2f} s ({row['rollout_s'] / total:.0%})  "
    if "chunks_kept" not in row:
        reason = "all outcomes are alike" if alone else "no group has both outcomes"
        return head + times + f"{reason}: nothing to learn from, update skipped"
    return (
        head
        + f"chunks {int(row['chunks_kept']):>4}/{int(row['chunks_valid'])} ({row['kept_fraction']:.0%})  "
        + times
        + f"update {update:.2f} s ({update / total:.0%}, ceiling {total / max(total - update, 1e-9):.2f}x)"
    )
