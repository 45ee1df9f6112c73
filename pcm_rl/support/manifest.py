"""A list of a folder's files with their checksums: whether the folder is still what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_OWN = "sha256"  # of the manifest's other entries
_PIECE = 2**20  # bytes read at a time


class DamagedError(ValueError):
    """A file is not what was written; the message says which one and how it differs."""


def write_manifest(folder: Path, entries: dict[str, Any]) -> None:
    """Write ``manifest.json`` beside the files of ``folder``: ``entries``, and size and checksum of every file."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    content = {**entries, "files": files}
    (folder / MANIFEST).write_text(json.dumps({**content, _OWN: _digest_of(content)}, indent=1, allow_nan=False))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of ``manifest.json``, whose own checksum is compared; the files are not read.

    Raises:
        DamagedError: It is missing, cannot be read or was changed.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        if content.pop(_OWN) == _digest_of(content):
            return dict(content)
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, AttributeError, TypeError):  # not JSON, or not a mapping
        pass
    raise DamagedError(f"{MANIFEST} is not what was written")


def check_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Compare files with the manifest.

    Args:
        folder: Holds the files and the manifest.
        names: Files to compare; None is all.

    Returns:
        The manifest.

    Raises:
        DamagedError: A file is missing, or its size or checksum differs.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"] if names is None else names:
        expected, path = manifest["files"].get(name), folder / name
        if expected is None or not path.is_file():
            raise DamagedError(f"{name} is missing" if expected else f"{name} is not in {MANIFEST}")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise DamagedError(f"{name} has {size} bytes, {expected['bytes']} were written")
        if file_digest(path) != expected["sha256"]:
            raise DamagedError(f"{name} has another checksum than what was written")
    return manifest


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
