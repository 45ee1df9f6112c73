from __future__ import annotations

import errno
import os
import signal
import socket
import time

import pytest

from pcm_rl.training.lock import LockedError, locked


def hold(folder, out):
    """In a process of its own: take the lock, start a forked worker, tell its number, and stay."""
    with locked(folder):
        child = os.fork()
        if child:
            os.write(out, str(child).encode())
        time.sleep(60)


def test_a_second_one_is_refused_and_told_by_whom(tmp_path):
    with locked(tmp_path):
        with (
            pytest.raises(LockedError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"),
            locked(tmp_path),
        ):
            pass
    with locked(tmp_path):  # as soon as the first has ended
        pass


def test_a_kill_leaves_no_lock_that_blocks_not_even_with_a_forked_child_alive(tmp_path):
    out, into = os.pipe()
    process = os.fork()
    if not process:
        hold(tmp_path, into)
        os._exit(0)
    child = int(os.read(out, 100))
    with pytest.raises(LockedError, match=f"process {process}"), locked(tmp_path):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.kill(child, 0)  # it is still there
    with locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.close(out)
    os.close(into)


def test_a_folder_in_which_nothing_began_is_gone(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path / "a" / "b"):
        raise ValueError
    assert not (tmp_path / "a" / "b").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    assert (tmp_path / "run" / "config.yaml").exists()


def test_a_file_system_without_locks_is_said_and_holds_nobody_up(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("pcm_rl.training.lock.fcntl.flock", none)
    with pytest.warns(RuntimeWarning, match=r"this file system has no locks \(No locks available\)"), locked(tmp_path):
        pass
