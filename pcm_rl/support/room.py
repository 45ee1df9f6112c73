"""Whether files can be written to a folder, and how much memory is free: asked before the work that needs them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_PROBE = 2**16  # bytes


def check_room(folder: Path, size: int = 0) -> None:
    """Write a small file to ``folder`` and delete it; to the nearest folder above it where it is yet to be made.

    Args:
        folder: Where files will be written.
        size: Bytes that they will have, as far as it is known.

    Raises:
        OSError: The folder cannot be written to, or its disk has too little room; the message names it.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".pcm_rl-") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise OSError(f"{place} cannot be written to: {error.strerror or error}") from error
    if free < size:
        raise OSError(
            f"{place} has room for {free / 2**30:.1f} GiB, and {size / 2**30:.1f} GiB are to be written there"
        )


def free_memory() -> int:
    """Bytes of this machine's memory that are free, with what the system holds in reserve and gives back."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
