"""Where an evaluation is written: nothing that another evaluation has found is replaced by the way."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from pcm_rl.support.writing import replacing

_RESULTS = ("columns", "versions", "device")  # what does not say which evaluation it is
_EPISODE = re.compile(r"\[\s+(\d+),\s+(true|false),\s+(\d+)\s+\]")


def choose_file(folder: Path, head: dict[str, Any], *, overwrite: bool) -> Path:
    """``eval.json``, or ``eval-2.json`` and so on where files of that name hold other evaluations.

    Args:
        folder: Of the run.
        head: What says which evaluation it is: policy, step, episodes, seed, states, and the columns' overrides.
        overwrite: Take ``eval.json`` whatever it holds.
    """
    names = itertools.chain(["eval.json"], (f"eval-{i}.json" for i in itertools.count(2)))
    return next(path for path in map(folder.joinpath, names) if overwrite or _may_take(path, head))


def write_result(path: Path, record: dict[str, Any]) -> None:
    """Write in one move, an episode a line; a file that holds more columns of the same evaluation stays."""
    if len(_columns(path)) > len(record["columns"]) and _may_take(path, head_of(record)):
        return
    text = _EPISODE.sub(r"[\1, \2, \3]", json.dumps(record, indent=1))
    with replacing(path) as partial:
        partial.write_text(text)


def head_of(record: dict[str, Any]) -> dict[str, Any]:
    """What says which evaluation a record is of, as JSON keeps it."""
    head: dict[str, Any] = json.loads(json.dumps({key: value for key, value in record.items() if key not in _RESULTS}))
    return head


def _may_take(path: Path, head: dict[str, Any]) -> bool:
    if not path.exists():
        return True
    found = _read(path)
    return found is not None and head_of(found) == json.loads(json.dumps(head))


def _columns(path: Path) -> list[Any]:
    found = _read(path)
    return [] if found is None else list(found.get("columns", ()))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # another program's, or cut: it stays
        return None
    return found if isinstance(found, dict) else None
