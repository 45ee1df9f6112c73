"""The checkpoints of a run: the newest under a fixed name, older ones beside it; which of them are whole.

``checkpoint`` is the newest, ``checkpoint-000010`` an older one, after step 10. A save writes all of a folder, has it
on the disk, moves the newest to its older name and takes its place: whatever happens in between, a whole one is there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pcm_rl.config import ConfigError
from pcm_rl.support.manifest import DamagedError, check_files, read_manifest
from pcm_rl.support.writing import move, partial_path, sync, sync_tree

NEWEST = "checkpoint"
FORMAT = 2
_FIRST_FORMAT = 1  # without checksums; its older checkpoint was checkpoint.previous, for a moment
_OLDER = re.compile(r"checkpoint-(\d+)|checkpoint\.previous")


class CheckpointError(ConfigError):
    """There is no checkpoint that can be used; the message says why, and what to do."""


def generations(run: Path) -> list[Path]:
    """Folders of all checkpoints in a run's folder, the newest first; none of them has been looked into."""
    folders = [path for path in run.glob("checkpoint*") if path.is_dir() and any(path.iterdir())]
    older = {path: int(match[1] or 0) for path in folders if (match := _OLDER.fullmatch(path.name))}
    newest = [path for path in folders if path.name == NEWEST]
    return newest + sorted(older, key=lambda path: older[path], reverse=True)


def newest_whole(run: Path, run_id: str | None = None, say: Callable[[str], None] | None = None) -> Path:
    """The folder of the newest checkpoint that is what was written.

    Args:
        run: Folder of the run.
        run_id: The run that it must belong to; None takes any.
        say: Called with a line for each newer one that is passed over.

    Raises:
        CheckpointError: There is none.
    """
    damages = []
    for folder in generations(run):
        try:
            _check(folder, run_id)
        except DamagedError as damage:
            damages.append(f"{folder}: {damage}")
            continue
        for line in damages if say is not None else ():
            assert say is not None
            say(f"not used, damaged: {line}; an older checkpoint is taken: {folder.name}")
        return folder
    if damages:
        raise CheckpointError(f"no checkpoint is whole ({'; '.join(damages)}); start a new run, or delete this one")
    raise CheckpointError(f"no checkpoint in {run}; the run has not come to its first one: start it again")


def set_damaged_aside(run: Path, whole: Path) -> None:
    """Rename the checkpoints that are newer than ``whole`` to ``NAME.damaged``: later saves do not count them."""
    for folder in generations(run):
        if folder == whole:
            return
        aside = folder.with_name(folder.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        move(folder, aside)


def add_generation(run: Path, write: Callable[[Path], None], *, keep: int) -> None:
    """Save a checkpoint and delete the oldest ones.

    Args:
        run: Folder of the run.
        write: Writes all its files, the manifest last, into the empty folder that it is called with.
        keep: How many of the newest stay; the best stays besides.

    Raises:
        OSError: The disk is full, or the folder cannot be written; the checkpoints are as they were.
    """
    partial, newest = partial_path(run / NEWEST), run / NEWEST
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        sync_tree(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk its place is needed
        raise
    if newest.is_dir():
        older = run / f"checkpoint-{step_of(newest):06d}"
        shutil.rmtree(older, ignore_errors=True)  # of the same step; the newest has it too
        move(newest, older)
    move(partial, newest)
    _prune(run, keep)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was saved; 0 where it does not say so."""
    return int(_entries(folder).get("step", 0))


def best(run: Path) -> tuple[Path, float] | None:
    """The checkpoint with the highest success at an evaluation of its step, the newest of equals, and this success."""
    rated = [(folder, _entries(folder).get("success")) for folder in generations(run)]
    known = [(folder, float(success)) for folder, success in rated if success is not None]
    return max(known, key=lambda pair: pair[1]) if known else None


def _prune(run: Path, keep: int) -> None:
    newest, *older = generations(run)
    again = [folder for folder in older if step_of(folder) == step_of(newest)]  # a step that was saved twice
    kept, top = [folder for folder in older if folder not in again][: keep - 1], best(run)
    for folder in older:
        if folder not in kept and (folder in again or top is None or folder != top[0]):
            shutil.rmtree(folder, ignore_errors=True)
    sync(run)


def _entries(folder: Path) -> dict[str, Any]:
    """What a manifest says, or the state of a checkpoint without one."""
    try:
        return read_manifest(folder)
    except DamagedError:
        try:
            return dict(json.loads((folder / "state.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}


def _check(folder: Path, run_id: str | None) -> None:
    """Raise ``DamagedError`` unless all files are what was written, for this run."""
    state = _entries(folder)
    written = state.get("format", _FIRST_FORMAT if state else FORMAT)
    if written not in (_FIRST_FORMAT, FORMAT):
        raise CheckpointError(f"{folder} has checkpoint format {written}, this version reads {FORMAT}")
    if written == _FIRST_FORMAT:
        _check_finite(folder / "policy.safetensors")
        return
    manifest = check_files(folder)
    if run_id is not None and manifest.get("run") != run_id:
        raise DamagedError(f"it belongs to another run, {manifest.get('run')}, and this is {run_id}")


def _check_finite(path: Path) -> None:
    """Of a version that saved without trying."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path.name} cannot be read ({error})") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DamagedError(f"{path.name}: {name} is not finite")
