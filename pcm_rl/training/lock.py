"""One process at a time in a run's folder: a lock of the operating system, which ends with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

LOCK = "run.lock"
_TAKEN = (errno.EAGAIN, errno.EACCES)
_held: set[int] = set()


class LockedError(FileExistsError):
    """Another process is at the folder; the message names it."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing.

    The lock ends with the process, however that ends: no file that is left behind blocks anybody. On a network file
    system it holds between machines if that has locks (NFS and Lustre, as most are mounted); where it has none, a
    warning says so.

    Raises:
        LockedError: Another process has the lock.

    Warns:
        RuntimeWarning: The file system has no locks.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(handle)
    try:
        _take(handle, folder)
        yield
    finally:
        _held.discard(handle)
        os.close(handle)
        if made and [entry.name for entry in folder.iterdir()] == [LOCK]:  # nothing has begun
            path.unlink()
            folder.rmdir()


def _take(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise LockedError(f"{folder} is in use by {_holder(handle)}; wait for its end, or stop it") from None
        warnings.warn(
            f"{folder}: this file system has no locks ({error.strerror}); let only one process go on with the run",
            RuntimeWarning,
            stacklevel=4,
        )
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)


def _holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 1000, 0))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has not yet written its name
        return "another process"


def _forget() -> None:
    """A forked worker that outlives its parent must not keep the lock."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
