"""The command line: ``pcm-rl train|check|plan|demos|sft|eval|compare|profile|plot|export``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

import torch

from pcm_rl.cli.arguments import parse
from pcm_rl.cli.commands import train_command
from pcm_rl.cli.ending import explain, go_on, is_first, stopped, tell
from pcm_rl.config import ConfigError

# wrong use, numbers that became nan, failed runs, a full disk or memory: what the user can mend needs no traceback
_ERRORS = (ConfigError, OSError, FloatingPointError, ImportError, MemoryError, torch.OutOfMemoryError)
_BEFORE_THE_RUN = (ConfigError, FileExistsError, FileNotFoundError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 2 for what the user can mend, in one line; 128 and the number of a signal; 1 for a bug, with its traceback.
    """
    options = parse(arguments)
    options.command = shlex.join(sys.argv[1:] if arguments is None else arguments)
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # a recipe may name rules, policies and benchmarks in it as module:function
    try:
        _refuse_several_processes(options)
        options.run(options)
    except KeyboardInterrupt as stop:
        if is_first():
            tell(f"pcm-rl: {stopped(stop)}; {go_on(options)}")
        return int(getattr(stop, "status", 130))
    except _ERRORS as error:
        begun = options.run is train_command and not isinstance(error, _BEFORE_THE_RUN) and is_first()
        then = f"; when this is mended, {go_on(options)}" if begun else ""
        tell(f"pcm-rl: {str(error) or type(error).__name__}{then}")
        return 2
    except Exception as error:
        return explain(error)
    return 0


def _refuse_several_processes(options: argparse.Namespace) -> None:
    if options.run is not train_command and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("only `pcm-rl train` runs on several processes; start this command without torchrun")
