"""Writing beside and renaming: a reader, also one after a power cut, finds the old content or the new, never half."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some network file systems sync files only


def partial_path(path: Path) -> Path:
    """Where the new content of ``path`` is written until it is complete."""
    return path.with_name(path.name + ".partial")


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk before this returns.

    Without it a file system may write a rename first and the content later: after a power cut the file is empty.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """:func:`sync` every file below ``folder``, and every folder after its files."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place) / name)
        sync(Path(place))


def move(old: Path, new: Path) -> None:
    """Rename a synced file or folder, and have the new name on the disk before this returns."""
    os.replace(old, new)
    sync(new.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file in one move.

    Args:
        path: The file, which need not exist; its folder does.

    Yields:
        The path to write to. It becomes ``path`` at the end of the block; after an exception ``path`` is as it was.
    """
    partial = partial_path(path)
    try:
        yield partial
        sync(partial)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk its place is needed
        raise
    move(partial, path)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder with all its files in one move.

    Args:
        folder: The folder, new or empty.

    Yields:
        An empty folder to write to. It becomes ``folder`` at the end of the block; after an exception ``folder`` is as
        it was.

    Raises:
        OSError: At the end, if ``folder`` holds files.
    """
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
        move(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
