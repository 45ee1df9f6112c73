"""Writing beside and renaming: a reader, also one after a crash, finds the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where the new content of ``path`` is written until it is complete."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file in one move.

    Args:
        path: The file, which need not exist; its folder does.

    Yields:
        The path to write to. It becomes ``path`` at the end of the block; after an exception ``path`` is as it was.
    """
    partial = partial_path(path)
    yield partial
    os.replace(partial, path)


@contextlib.contextmanager
def replacing_folder(folder: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Replace a folder; folders cannot be exchanged in one move, so the old one is moved away first.

    Args:
        folder: The folder, which need not exist.
        previous: Where an older ``folder`` lies between the two moves; it is deleted afterwards. None for a folder that
            must be new or empty.

    Yields:
        An empty folder to write to. It becomes ``folder`` at the end of the block; after an exception ``folder`` is as
        it was.

    Raises:
        OSError: At the end, if ``folder`` holds files and no ``previous`` was given.
    """
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if previous is not None and folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(folder, previous)
    os.replace(partial, folder)
    if previous is not None:
        shutil.rmtree(previous, ignore_errors=True)
