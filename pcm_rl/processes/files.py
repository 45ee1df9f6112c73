"""Files of the first process for all: machines need not share a file system."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from pcm_rl.processes.ranks import Ranks
from pcm_rl.support.manifest import file_digest

PIECE = 2**26  # bytes of a message
Listing = dict[str, tuple[int, str]]  # size and SHA-256 by name, relative to the folder that holds the path


@contextlib.contextmanager
def of_first(ranks: Ranks, path: Path | None) -> Iterator[Path]:
    """A file or a folder of the first process, for every process to read.

    A machine that has the same content under the same path, by checksums, reads its own. On any other the first process
    receives a copy, which is deleted at the end of the block. All processes enter and leave the block together.

    Args:
        ranks: The processes.
        path: Where it is on the first process; not read on the others.

    Raises:
        FileNotFoundError: The first process has nothing there; raised on all of them, where there are several machines.
        OSError: A copy cannot be written.
    """
    path = Path(ranks.gather_json(None if path is None else str(path))[0])
    node, leads = os.environ.get("GROUP_RANK", str(ranks.rank)), os.environ.get("LOCAL_RANK", "0") == "0"
    if len(set(ranks.gather_json(node))) == 1:  # one machine, whose processes read the same files
        yield path
        return
    found = ranks.gather_json([node, leads, _listing(path) if leads else None])
    listing = found[0][2]
    if not listing:
        raise FileNotFoundError(f"the first process has nothing at {path}")
    lacking = {there for there, led, own in found if led and own != listing}
    if not lacking:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pcm_rl-") as copy:
        _send(ranks, path.parent, listing, Path(copy) if leads and node in lacking else None)
        copies = {there: folder for there, led, folder in ranks.gather_json([node, leads, copy]) if led}
        yield Path(copies[node]) / path.name if node in lacking else path
        ranks.gather_json(None)  # no copy is deleted while another process of its machine still reads it


def _listing(path: Path) -> Listing | None:
    """Of a file, or of all files in a folder; None where there is nothing."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path.parent)): (file.stat().st_size, file_digest(file)) for file in files} or None


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
        if target is not None and file_digest(target / name) != checksum:
            raise OSError(f"{name} did not arrive as it was sent; is another process writing {source / name}?")
