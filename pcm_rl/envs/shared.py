"""One observation in memory shared by two processes: images are never sent through a pipe."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from gymnasium import spaces

from pcm_rl.envs.record import Record, layout_of

FOLDER = Path("/dev/shm")  # where Linux keeps shared memory; elsewhere it is no folder
_NAME = re.compile(r"pcm_rl-(\d+)-[0-9a-f]{16}")
_OLD = 1.0  # seconds; a younger memory may belong to a process of another container that has not locked it yet


class NoRoom(RuntimeError):
    """There is too little shared memory."""


class SharedObservation:
    """Holds the last observation of one environment.

    Reads and writes are not synchronised: a message through the pipe says when an observation is complete.

    Args:
        space: `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary`, or a `Dict` of these, nested or not.
        name: Of the memory, the same on both sides.
        create: Make the memory, zeroed; otherwise attach to the memory that the other process made for the same space.
        workers: How many processes make such a memory, for the error.

    Raises:
        ValueError: The space is not one of these.
        NoRoom: There is too little shared memory.
        FileNotFoundError: There is no such memory.
        FileExistsError: There is one already.
    """

    def __init__(self, space: spaces.Space[Any], name: str, *, create: bool, workers: int = 1) -> None:
        size = max(layout_of(space).itemsize, 1)
        self._memory = SharedMemory(name, create, size)
        self._lock: int | None = None
        if create and FOLDER.is_dir():
            try:
                self._lock = _reserve(FOLDER / name, size, workers)
            except NoRoom:
                self._memory.close()
                self._memory.unlink()
                raise
        self._record: Record | None = Record(space, self._memory.buf)

    def write(self, observation: Any) -> None:
        """Replaces the observation.

        Raises:
            ValueError: A part has another shape than its space.
            KeyError: A part is missing.
        """
        self._open.write(observation)

    def read(self) -> Any:
        """A copy of the observation: arrays, in dicts where the space is a `Dict`."""
        return self._open.read()

    @property
    def _open(self) -> Record:
        if self._record is None:
            raise ValueError("the memory is closed")
        return self._record

    def close(self) -> None:
        """Detaches from the memory, which stays. Closing twice is fine."""
        self._record = None  # an array that still points into the memory would keep it open
        self._memory.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def new_name() -> str:
    """A name for a memory, which says whose it is."""
    return f"pcm_rl-{os.getpid()}-{secrets.token_hex(8)}"


def free_memory(name: str) -> None:
    """Frees the memory of this name, if there is any, also that of a process that died."""
    try:
        memory = SharedMemory(name)
    except FileNotFoundError:
        return
    except ValueError:  # its process died before the memory had a size
        (FOLDER / name).unlink(missing_ok=True)
        return
    memory.close()
    memory.unlink()


def sweep_memory() -> int:
    """Frees what dead processes have left, such as those killed with all their children; never what is in use.

    Returns:
        How many were freed.
    """
    return sum(_swept(path) for path in FOLDER.glob("pcm_rl-*")) if FOLDER.is_dir() else 0


def _swept(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    if not match or _alive(int(match[1])):
        return False
    with contextlib.suppress(OSError):  # another user's, in use by a process that is not visible here, or gone by now
        if time.time() - path.stat().st_mtime < _OLD:
            return False
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _reserve(path: Path, size: int, workers: int) -> int:
    """Take the whole space now: a page that is missing later kills the process that touches it, with SIGBUS.

    Returns:
        An open file that holds a lock as long as this process lives.
    """
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            os.close(file)
            raise NoRoom(_no_room(size, workers)) from error
        # other file systems may know neither; then the space is taken when it is used
    return file


def _no_room(size: int, workers: int) -> str:
    disk = os.statvfs(FOLDER)
    free, total = (blocks * disk.f_frsize / 2**20 for blocks in (disk.f_bavail, disk.f_blocks))
    needed = size * workers / 2**20
    return (
        f"{FOLDER} has no room for the observations of {workers} workers: they need {needed:.1f} MiB, and {free:.1f} "
        f"of {total:.1f} MiB are free. Start the container with a larger one, such as docker run "
        f"--shm-size={64 * (2 + int(needed) // 64)}m, or lower env.num_envs"
    )
