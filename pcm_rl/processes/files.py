"""Files of the first process for all: machines need not share a file system."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from pcm_rl.processes.ranks import Ranks

PIECE = 2**26  # bytes of a message
Listing = dict[str, tuple[int, str]]  # size and SHA-256 by name, relative to the folder that holds the path


@contextlib.contextmanager
def of_first(ranks: Ranks, path: Path | None) -> Iterator[Path]:
    """A file or a folder of the first process, for every process to read.

    A process that has the same content under the same path, by checksums, reads its own. Any other reads a copy on its
    machine, which its first process there receives and which is deleted at the end of the block. All processes enter
    and leave the block together.

    Args:
        ranks: The processes.
        path: Where it is on the first process; not read on the others.

    Raises:
        FileNotFoundError: The first process has nothing there; raised on all of them.
        OSError: A copy cannot be written.
    """
    path = Path(ranks.gather_json(None if path is None else str(path))[0])
    if ranks.size == 1:
        yield path
        return
    own = _listing(path)
    listing = ranks.gather_json(own)[0]
    if not listing:
        raise FileNotFoundError(f"the first process has nothing at {path}")
    node, leads = os.environ.get("GROUP_RANK", str(ranks.rank)), os.environ.get("LOCAL_RANK", "0") == "0"
    missing = own is None or {name: tuple(entry) for name, entry in listing.items()} != own
    lacking = {there for there, lacks in ranks.gather_json([node, missing]) if lacks}
    if not lacking:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pcm_rl-") as copy:
        _send(ranks, path.parent, listing, Path(copy) if leads and node in lacking else None)
        copies = {there: folder for there, led, folder in ranks.gather_json([node, leads, copy]) if led}
        yield Path(copies[node]) / path.name if missing else path
        ranks.gather_json(None)  # no copy is deleted while another process of its machine still reads it


def _listing(path: Path) -> Listing | None:
    """Of a file, or of all files in a folder; None where there is nothing."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path.parent)): (file.stat().st_size, _checksum(file)) for file in files} or None


def _checksum(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


def _send(ranks: Ranks, source: Path, listing: Listing, target: Path | None) -> None:
    """Send the listed files to all processes; those with a ``target`` write them."""
    for name, (size, checksum) in listing.items():
        with contextlib.ExitStack() as stack:
            reading = stack.enter_context((source / name).open("rb")) if ranks.first else None
            writing = None
            if target is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                writing = stack.enter_context((target / name).open("wb"))
            for start in range(0, size, PIECE):
                piece = torch.empty(min(PIECE, size - start), dtype=torch.uint8)
                if reading is not None:
                    reading.readinto(piece.numpy().data)
                ranks.send(piece)
                if writing is not None:
                    writing.write(piece.numpy().data)
        if target is not None and _checksum(target / name) != checksum:
            raise OSError(f"{name} did not arrive as it was sent; is another process writing {source / name}?")
