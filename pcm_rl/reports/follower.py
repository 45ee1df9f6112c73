"""A tracker follows the tables of a run: it gets every row once, also after a resume or a failure."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pcm_rl.reports.loggers import LoggedRun, Logger, Outcome, TensorBoard, open_logger
from pcm_rl.support.writing import partial_path

TRAIN, EVALUATED = "train", "evaluation"  # before the name of a column
SENT = "logger.json"  # in the run folder: what the tracker has


class Follower:
    """A run that is open in a tracker.

    Args:
        name: Of the tracker.
        run: The run.
        keep_until: The step that a resumed run goes on from; None begins it.
        say: Called with a line where the tracker fails, or has steps that are done again.

    Raises:
        ConfigError: As :func:`~pcm_rl.reports.loggers.open_logger`.
    """

    def __init__(self, name: str, run: LoggedRun, keep_until: int | None, say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self._path, self._run, self._failing = run.folder / SENT, run.id, False
        self._sent = {TRAIN: -1, EVALUATED: -1}  # the last step of each table that the tracker has
        self._waiting: list[tuple[str, int, dict[str, float]]] = []
        if keep_until is not None:
            self._sent |= self._noted() if name != "tensorboard" else _in_event_files(run.folder, keep_until)
        self._logger: Logger = open_logger(name, run)
        if isinstance(self._logger, TensorBoard) and keep_until is not None:
            self._logger.forget_after(keep_until)
        elif keep_until is not None and self._sent[TRAIN] > keep_until:
            say(
                f"{name} has the steps up to {self._sent[TRAIN]} already; those after {keep_until} are done again, and "
                "are not sent twice"
            )

    def add(self, prefix: str, row: Mapping[str, float]) -> None:
        """Have a row sent by the next :meth:`send`, unless the tracker has it."""
        step = int(row["step"])
        if step > self._sent[prefix]:
            values = {key: float(value) for key, value in row.items() if key != "step" and not math.isnan(value)}
            self._waiting.append((prefix, step, {f"{prefix}/{key}": value for key, value in values.items()}))

    def send(self) -> None:
        """Send what waits. What fails goes on waiting: a tracker that is away is no reason to end a run."""
        while self._waiting:
            prefix, step, scalars = row = self._waiting.pop(0)  # before it is sent: a signal in between sends it once
            try:
                self._logger.log(scalars, step)
            except Exception as error:  # of whatever kind the library has
                self._waiting.insert(0, row)
                if not self._failing:
                    self.say(f"logger={self.name} does not take the numbers: {_line(error)}; they are tried again")
                self._failing = True
                return
            self._failing = False
            self._sent[prefix] = max(step, self._sent[prefix])
            self._note()

    def close(self, outcome: Outcome) -> None:
        """End the run in the tracker; a failure is said, and a resume sends what is missing."""
        self.send()
        try:
            self._logger.close(outcome)
        except Exception as error:
            self.say(f"logger={self.name} could not be closed: {_line(error)}")
        if self._waiting:
            self.say(f"logger={self.name} lacks {len(self._waiting)} rows of the tables; a resumed run sends them")

    def _noted(self) -> dict[str, int]:
        """What this tracker has of this run; nothing where it was not the run's, or the file is damaged."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            noted = json.loads(self._path.read_bytes())
            if (noted["logger"], noted["run"]) == (self.name, self._run):
                return {prefix: int(noted[prefix]) for prefix in self._sent}
        return {}

    def _note(self) -> None:
        if isinstance(self._logger, TensorBoard):
            return  # its files are in the run folder, and forget what is done again
        with contextlib.suppress(OSError):  # a full disk: the run itself will say so
            partial = partial_path(self._path)
            partial.write_text(json.dumps({"logger": self.name, "run": self._run, **self._sent}))
            os.replace(partial, self._path)


def _in_event_files(folder: Path, keep_until: int) -> dict[str, int]:
    """TensorBoard has all steps up to the one that a run goes on from, if it has any."""
    return dict.fromkeys((TRAIN, EVALUATED), keep_until) if any(folder.glob("tensorboard/events*")) else {}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
