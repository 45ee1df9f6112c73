"""A folder is tried before work whose result it would hold."""

from __future__ import annotations

import errno
import os
import shutil
from types import SimpleNamespace

import pytest

from pcm_rl.support.room import check_room


def test_nothing_is_left_and_a_folder_need_not_exist(tmp_path):
    check_room(tmp_path / "runs" / "new", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written to: {os.strerror(number)}"):
        check_room(tmp_path / "new")


def test_too_little_room_is_refused_with_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    check_room(tmp_path, 2**30)
    with pytest.raises(OSError, match=r"has room for 1\.0 GiB, and 14\.0 GiB are to be written there"):
        check_room(tmp_path, 14 * 2**30)
