"""The folder of a checkpoint, of any family: what refuses it, and its JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used; the message says what was found, what was expected and what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """A mapping; errors name the file."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: expected {path.name}, which is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise CheckpointError(f"{path} is damaged: {error}; was the download complete?") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content
