"""Commands in parallel, each in a process of its own: one that fails or is killed does not take others along."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

POLL = 0.1  # seconds between two looks at the running processes
GRACE = 30.0  # seconds that interrupted runs have to close their simulators
TAIL = 12  # lines of the log shown of a failed run


@dataclass(frozen=True)
class Job:
    """A command and its log.

    Attributes:
        name: For people.
        log: Gets the output, after what is in it; locked while the command runs, against a second one.
        command: Gives the program and its arguments as soon as the log is locked, or None if nothing is left to do.
        threads: Threads of the numeric libraries.
    """

    name: str
    log: Path
    command: Callable[[], Sequence[str] | None]
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        seconds: How long it took.
        error: What went wrong, with the last lines of the log; None if nothing did.
        left: Seconds until all jobs have ended, estimated from those that have.
    """

    job: Job
    seconds: float
    error: str | None
    left: float


@dataclass(frozen=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    started: float


def run_jobs(jobs: Iterable[Job], parallel: int, ended: Callable[[Outcome], None]) -> None:
    """Run jobs, at most ``parallel`` at a time, in order.

    Processes have sessions of their own, so that Ctrl-C reaches this one only, which then interrupts them: every one is
    gone when this returns or raises, also at SIGTERM (as batch systems send it). Only if this process is killed
    outright do they go on to their end, and keep their locks until then.

    Args:
        jobs: The jobs.
        parallel: At least 1.
        ended: Called at the end of each job.

    Raises:
        SystemExit: At SIGTERM.
        ValueError: ``parallel`` is less than 1.
    """
    if parallel < 1:
        raise ValueError(f"parallel must be at least 1, got {parallel}")
    waiting, running, seconds = deque(jobs), list[_Running](), list[float]()
    with _exit_at_sigterm(), _stopping(running):
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.popleft()
                try:
                    process = _start(job)
                except (ValueError, OSError) as error:
                    ended(Outcome(job, 0.0, str(error), _left(seconds, running, len(waiting), parallel)))
                    continue
                if process is not None:
                    running.append(_Running(job, process, time.monotonic()))
            for gone in [run for run in running if run.process.poll() is not None]:
                running.remove(gone)
                seconds.append(time.monotonic() - gone.started)
                left = _left(seconds, running, len(waiting), parallel)
                ended(Outcome(gone.job, seconds[-1], _error(gone), left))
            time.sleep(POLL)


@contextlib.contextmanager
def _exit_at_sigterm() -> Iterator[None]:
    """Leave by an exception, so that nothing is left running; only a main thread may set a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _stopping(running: list[_Running]) -> Iterator[None]:
    try:
        yield
    finally:
        _stop([run.process for run in running])


def _start(job: Job) -> subprocess.Popen[bytes] | None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        _lock(log, job)
        command = job.command()
        if command is None:
            return None
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
        )


def _lock(log: IO[bytes], job: Job) -> None:
    # the process inherits the open file and with it the lock, which ends with the last of its workers
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(f"another process is at {job.log.parent}; wait for its end, or stop it") from error


def _left(seconds: list[float], running: list[_Running], waiting: int, parallel: int) -> float:
    mean = sum(seconds) / max(len(seconds), 1)
    rest = [max(0.0, mean - (time.monotonic() - run.started)) for run in running]
    return (sum(rest) + mean * waiting) / min(parallel, max(len(rest) + waiting, 1))


def _error(ended: _Running) -> str | None:
    code = ended.process.returncode
    if code == 0:
        return None
    what = f"exit status {code}"
    if code < 0:
        what = f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    lines = ended.job.log.read_text(errors="replace").splitlines()[-TAIL:]
    return "\n    ".join([f"{what}; the end of {ended.job.log}:", *lines])


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Interrupt, as Ctrl-C does; kill with all its workers what is still there after a while, or at a second Ctrl-C."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
