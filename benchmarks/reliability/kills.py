"""kill -9 at random moments, and at every file operation of a save; each run must end equal to an undisturbed one.

python benchmarks/reliability/kills.py random toy-critic --trials 60
python benchmarks/reliability/kills.py operations toy-critic
python benchmarks/reliability/kills.py random metaworld --trials 25
python benchmarks/reliability/kills.py random libero --trials 25

Writes benchmarks/results/reliability-kills.csv, one row a killed process (random: one row a run, with its kills). A
script that was stopped goes on behind the rows that are there.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import RESULTS, RUNS, WORK, digest, finish, forked, preload, record, reference, start_or_go_on, until, wait

from pcm_rl.training import checkpoint
from pcm_rl.training.generations import generations, step_of
from pcm_rl.training.trainer import Trainer

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def done(mode: str, kind: str) -> int:
    """Trials of this mode and kind that have a row."""
    path = RESULTS / "reliability-kills.csv"
    if not path.is_file():
        return 0
    with path.open(newline="") as file:
        return sum(row["mode"] == mode and row["run"] == kind for row in csv.DictReader(file))


def at_random(kind: str, trials: int, kills: int = 3) -> None:
    """Runs that are killed up to ``kills`` times each, at moments drawn from the time that a whole run takes."""
    _, expected, seconds = reference(kind)
    for trial in range(done("random", kind), trials):
        draw, folder = random.Random(trial), WORK / f"kills-{kind}-{trial}"
        shutil.rmtree(folder, ignore_errors=True)
        steps, killed = [], 0
        for _ in range(kills):
            child = forked(lambda folder=folder: start_or_go_on(kind, folder))
            status = wait(child, draw.uniform(0.0, 0.7 * seconds))
            if status is not None:
                break
            os.kill(child, signal.SIGKILL)
            wait(child)
            killed += 1
            steps.append(str(step_of(generations(folder)[0])) if generations(folder) else "-")
        failed = finish(kind, folder)
        equal = not failed and digest(folder) == expected
        row = {"mode": "random", "run": kind, "trial": trial, "seed": trial, "kills": killed, "saved": " ".join(steps)}
        record("kills", {**row, "operation": "", "equal": equal, "failed": failed})
        if equal:
            shutil.rmtree(folder)


class Killer:
    """Kills its own process at one file operation of the next save, or after writing half of a file.

    Args:
        at: Number of the operation, from 0.
        folder: The run's.
        into: Gets the name of the operation before the end.
    """

    def __init__(self, at: int, folder: Path, into: Path) -> None:
        self.at, self.folder, self.into, self.saving, self.seen = at, folder, into, False, 0
        sys.addaudithook(self._hook)
        fsync, save_file, write = os.fsync, checkpoint.save_tensors, Trainer._write_checkpoint
        os.fsync = self._counted("fsync", fsync)  # type: ignore[assignment]
        checkpoint.save_tensors = self._halved(save_file)

        def saving(trainer: Trainer) -> None:
            self.saving = trainer.step == 4
            write(trainer)
            self.saving = False

        Trainer._write_checkpoint = saving  # type: ignore[method-assign]

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""  # within the folder: its path, or a name in a folder that is open
        if self.saving and event in FILE_EVENTS and (path.startswith(str(self.folder)) or not path.startswith("/")):
            self._count(f"{event} {Path(str(arguments[0])).name}")

    def _count(self, what: str) -> None:
        self.seen += 1
        if self.seen > self.at:
            self.saving = False
            self.into.write_text(what)
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            if self.saving:
                self._count(name)
            return function(*given, **options)

        return call

    def _halved(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, path: Path, *rest: Any) -> Any:
            result = function(tensors, path, *rest)
            if self.saving and self.seen == self.at:
                content = Path(path).read_bytes()
                self.saving = False
                Path(path).write_bytes(content[: len(content) // 2])
                self.saving = True
            if self.saving:
                self._count(f"half of {Path(path).name}")
            return result

        return call


def at_operations(kind: str) -> None:
    """A run is killed at the n-th file operation of its save after step 4, for every n."""
    whole, expected, _ = reference(kind)
    start = whole.with_name(f"{kind}-to-step-2")
    if not (start / "checkpoint").is_dir():
        shutil.rmtree(start, ignore_errors=True)
        wait(forked(lambda: until(kind, start, 3)))
    for operation in range(done("operations", kind), 500):
        folder, name = WORK / f"operations-{kind}-{operation}", WORK / "operation"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        name.unlink(missing_ok=True)

        def killed(folder: Path = folder, operation: int = operation, name: Path = name) -> None:
            Killer(operation, folder, name)
            start_or_go_on(kind, folder)

        status = wait(forked(killed, folder.with_suffix(".log")))
        if status == 0:
            return
        at = name.read_text() if name.is_file() else f"status {status}"
        saved = step_of(generations(folder)[0])
        failed = finish(kind, folder)
        equal = not failed and digest(folder) == expected
        row = {"mode": "operations", "run": kind, "trial": operation, "seed": 0, "kills": 1, "saved": saved}
        record("kills", {**row, "operation": at, "equal": equal, "failed": failed})
        if equal:
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("random", "operations"))
    parser.add_argument("run", choices=list(RUNS))
    parser.add_argument("--trials", type=int, default=25, help="runs, of up to 3 kills each")
    options = parser.parse_args()
    preload(options.run)
    at_random(options.run, options.trials) if options.mode == "random" else at_operations(options.run)


if __name__ == "__main__":
    main()
