"""How a command ends: its line on the error stream, and how to go on from there."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
import sysconfig
import traceback
from pathlib import Path

from pcm_rl.cli import commands


def is_first() -> bool:
    """Whether this is the process that saves, and knows how to go on."""
    return os.environ.get("RANK", "0") == "0"


def tell(text: str) -> None:
    """Print to the error stream, which is gone where the terminal was closed; the exit status stays the same."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def stopped(stop: KeyboardInterrupt) -> str:
    """What has stopped it, and what is saved."""
    saved = getattr(stop, "saved", None)
    return (str(stop) or "interrupted") + (f", saved after step {saved}" if saved is not None else "")


def go_on(options: argparse.Namespace) -> str:
    """The command that goes on where this one has stopped."""
    folder, program, where = getattr(options, "run_folder", None), _program(), _where()
    again = getattr(options, "or_resume", False)
    if again or folder is None or not any(folder.glob("checkpoint*")):
        goes_on = again or options.run is commands.compare_command
        return f"{'continue' if goes_on else 'start again'} with `{program} {options.command}`{where}"
    overrides = options.overrides if options.resume else []  # the others are in its config.yaml
    return f"continue with `{program} {shlex.join(['train', '--resume', str(folder), *overrides])}`{where}"


def _program() -> str:
    """What has started this process."""
    ranks, nodes = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    machines = f"--nnodes {nodes} " if nodes > 1 else ""
    return f"torchrun {machines}--nproc-per-node {ranks} -m pcm_rl.cli" if nodes * ranks > 1 else "pcm-rl"


def _where() -> str:
    """What of the command ``torchrun`` does not tell its processes."""
    several = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    return " on every machine, with the other options of torchrun as before" if several else ""


def explain(error: Exception) -> int:
    """Print the traceback, and whose code it has come from."""
    text = "".join(traceback.format_exception(error))
    tell(text)
    ours = (str(Path(__file__).parents[1]), sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"))
    places = re.findall(r'File "([^"<]+)", line (\d+)', text)
    foreign = [f"{path}, line {line}" for path, line in places if not path.startswith(ours) and _is_own_code(path)]
    if foreign:
        tell(f"pcm-rl: {type(error).__name__} in {foreign[-1]}, which is not part of pcm_rl")
        return 2
    tell(f"pcm-rl: {type(error).__name__}, a bug of pcm_rl: please report it, with the lines above")
    return 1


def _is_own_code(path: str) -> bool:
    """Whether a file outside of this package and of Python is neither an installed package nor what started us."""
    return "site-packages" not in path and Path(path).name not in ("pcm-rl", "__main__.py")
