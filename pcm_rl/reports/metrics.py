"""The output of a run during training: ``metrics.csv``, a logger's scalars, and lines of text."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchrl.record.loggers import get_logger

from pcm_rl.reports.columns import EVALUATION, METRICS, headers
from pcm_rl.support.writing import replacing


class CsvTable:
    """A CSV file with fixed columns, one row appended at a time.

    Args:
        path: The file; created with its header if missing.
        columns: Column names; ``columns[0]`` is the step. Further columns of an existing file stay after them.
        keep_until: Last step to keep; an interrupted run may have written later ones after its last checkpoint.
    """

    def __init__(self, path: Path, columns: list[str], keep_until: int | None = None) -> None:
        self.path, self.columns = path, columns
        rows: list[dict[str, str]] = []
        if path.exists() and keep_until is not None:
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if int(row[columns[0]]) <= keep_until]
                self.columns = list(dict.fromkeys([*columns, *(reader.fieldnames or ())]))
        with replacing(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row; cells of absent and nan entries are empty.

        Raises:
            KeyError: If the row has a column that the table lacks.
        """
        unknown = set(row) - set(self.columns)
        if unknown:
            raise KeyError(f"{self.path.name} has no column {sorted(unknown)}")
        cells = {key: value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(cells)


class RunLog:
    """Tables of a run folder, and a scalar logger beside them.

    Args:
        folder: The run folder.
        logger: ``tensorboard``, ``wandb``, ``mlflow`` or ``none``.
        keep_until: See :class:`CsvTable`.
        extra: Further columns of ``metrics.csv``, after those of :data:`~pcm_rl.reports.columns.METRICS`: measured by a
            user's rule or advantage.

    Raises:
        ValueError: If an extra column has the name of another column.
    """

    def __init__(
        self, folder: Path, logger: str = "none", keep_until: int | None = None, extra: Sequence[str] = ()
    ) -> None:
        columns = [*headers(METRICS), *extra]
        if repeated := sorted({name for name in extra if columns.count(name) > 1}):
            raise ValueError(f"metrics.csv has a column {repeated[0]!r} already; give the extra one another name")
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics = CsvTable(folder / "metrics.csv", columns, keep_until)
        self.evaluation = CsvTable(folder / "evaluation.csv", headers(EVALUATION), keep_until)
        self._undeclared: set[str] = set()
        self._logger = None if logger == "none" else get_logger(logger, str(folder), "tensorboard")

    def step(self, row: Mapping[str, float]) -> None:
        """Record a training step.

        Warns:
            RuntimeWarning: The first time that a name has no column; only the logger gets its values.
        """
        undeclared = set(row) - set(self.metrics.columns)
        if new := sorted(undeclared - self._undeclared):
            self._undeclared |= undeclared
            # a step can take minutes: an undeclared name is no reason to lose it
            warnings.warn(f"metrics.csv has no column for {', '.join(new)}: not written there", RuntimeWarning, 2)
        self.metrics.append({name: value for name, value in row.items() if name not in undeclared})
        self._scalars("train", row)

    def evaluated(self, row: Mapping[str, float]) -> None:
        """Record an evaluation."""
        self.evaluation.append(row)
        self._scalars("evaluation", row)

    def _scalars(self, prefix: str, row: Mapping[str, float]) -> None:
        if self._logger is None:
            return
        for key, value in row.items():
            if key != "step" and not math.isnan(value):
                self._logger.log_scalar(f"{prefix}/{key}", float(value), step=int(row["step"]))


def step_line(row: Mapping[str, float], steps: int) -> str:
    """One step in one line: success, groups used, chunks kept, seconds and shares, and the possible gain."""
    update, total = row.get("update_s", 0.0), max(row["step_s"], 1e-9)
    head = (
        f"step {int(row['step']):>4}/{steps}  success {row['success']:>6.1%}  "
        f"groups {int(row['groups_mixed'])}/{int(row['groups'])}  "
    )
    if row.get("groups_dropped"):
        head += f"dropped {int(row['groups_dropped'])}  "
    times = f"rollout {row['rollout_s']:.2f} s ({row['rollout_s'] / total:.0%})  "
    if not row["groups_mixed"]:
        return head + times + "no group has both outcomes: nothing to learn from, update skipped"
    return (
        head
        + f"chunks {int(row['chunks_kept']):>4}/{int(row['chunks_valid'])} ({row['kept_fraction']:.0%})  "
        + times
        + f"update {update:.2f} s ({update / total:.0%}, ceiling {total / max(total - update, 1e-9):.2f}x)"
    )
