"""What the reliability benchmarks share: small runs in forked processes that can be killed, and their comparison.

The toy starts from a half-trained policy, the simulators from untrained weights. There, what counts as a success is
drawn by a hash of the simulated state, so that groups have both outcomes and every step has an update, and so that the
least difference of the physics shows.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pcm_rl.config import Config, load_config, load_run_config
from pcm_rl.reports.run_end import hardware
from pcm_rl.training.checkpoint import save_policy
from pcm_rl.training.generations import generations
from pcm_rl.training.trainer import Trainer, train

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
WORK = Path(os.environ.get("PCM_RL_WORK", Path(tempfile.gettempdir()) / "pcm_rl-reliability"))
sys.path.append(str(HERE))  # the success functions are found as runs:NAME

_SMALL = [
    "logger=none", "record=false", "threads=1", "sft.steps=0", "steps=6", "eval_every=2", "save_every=2",
    "groups=3", "group_size=4", "eval_episodes=4", "env.eval_states=4", "env.num_envs=6", "selection.budget=1",
    "selection.refresh_every=2", "policy.state.width=32", "update.lr=1e-3",
]  # fmt: skip
RUNS: dict[str, list[str]] = {
    "toy": [
        "env.id=pcm_rl/Reach-v0", "env.kwargs.horizon=96", "env.max_chunks=12", "demos.episodes=20",
        "policy.state.width=64", "env.num_envs=12", "group_size=6",
    ],
    "metaworld": [
        "env.id=pcm_rl/MetaWorld-v0", "env.kwargs.task=drawer-open-v3", "env.kwargs.horizon=24", "env.max_chunks=3",
        "env.num_states=50", "env.labeller=pcm_rl.labellers:label_by_distance", "env.success=runs:mujoco_by_chance",
        "env.num_envs=3",
    ],
    "libero": [
        "env.id=pcm_rl/Libero-v0", "env.kwargs.suite=libero_object", "env.kwargs.task_id=0", "env.kwargs.horizon=16",
        "env.max_chunks=2", "env.num_states=50", "env.num_envs=2", "env.success=runs:libero_by_chance",
        "groups=2", "steps=4",
    ],
}  # fmt: skip
RUNS["toy-critic"] = [*RUNS["toy"], "advantage.name=critic", "advantage.steps=20"]


def _drawn(state: Any, share: int) -> bool:
    return zlib.crc32(state.tobytes()) % share == 0


def mujoco_by_chance(env: Any, info: dict[str, Any]) -> bool:
    """One step in 30, by the positions of all joints."""
    return _drawn(env.unwrapped.simulation.data.qpos, 30)


def libero_by_chance(env: Any, info: dict[str, Any]) -> bool:
    """One step in 20, by the positions of all joints."""
    return _drawn(env.unwrapped.simulation.sim.data.qpos, 20)


def preload(kind: str) -> None:
    """Import what a run of this kind needs, once for all forked processes."""
    for module in {"metaworld": ("metaworld",), "libero": ("mujoco", "robosuite")}.get(kind, ()):
        importlib.import_module(module)


def small_config(kind: str, folder: Path, *overrides: str) -> Config:
    """A run of a kind in :data:`RUNS`."""
    start = [f"policy.init={_half_trained()}"] if kind.startswith("toy") else []
    place = [f"run_dir={folder.parent}", f"name={folder.name}"]
    return load_config(None, [*_SMALL, *RUNS[kind], *start, *place, *overrides])


def _half_trained() -> Path:
    """A policy of the toy that succeeds now and then, made once."""
    path = WORK / "half-trained.safetensors"
    if not path.is_file():
        WORK.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(load_config(None, [*_SMALL, *RUNS["toy"], "sft.steps=500"]), _silent)
        with contextlib.closing(trainer.env):
            trainer.supervised_start()
            save_policy(trainer.policy, path)
    return path


def start_or_go_on(kind: str, folder: Path, *overrides: str) -> None:
    """What a user would do."""
    if generations(folder):
        train(load_run_config(folder, overrides), resume=True, say=_silent)
    else:
        train(small_config(kind, folder, *overrides), say=_silent)


def _silent(line: str) -> None:
    pass


def forked(work: Callable[[], object], log: Path | None = None) -> int:
    """Do ``work`` in a process of its own, which has everything imported already; its number.

    Its exit status is 0, or 1 with a traceback in ``log``, or 3 after a signal that it has taken.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGHUP):  # a shell's background jobs ignore them
            signal.signal(number, signal.SIG_DFL)
        handle = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        status = 0
    except KeyboardInterrupt as stop:
        print(f"{stop}, saved after step {getattr(stop, 'saved', None)}", flush=True)
        status = 3
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int, seconds: float | None = None) -> int | None:
    """Exit status of a child (negative: its signal), None if it is still running after so many seconds."""
    until = None if seconds is None else time.monotonic() + seconds
    while until is None or time.monotonic() < until:
        number, status = os.waitpid(child, 0 if until is None else os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def finish(kind: str, folder: Path, *overrides: str) -> str:
    """Have a run go on to its end; an empty text, or what went wrong."""
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    status = wait(forked(lambda: start_or_go_on(kind, folder, *overrides), log))
    return "" if status == 0 else f"status {status}: {(log.read_text().splitlines() or ['no word'])[-1]}"


def until(kind: str, folder: Path, step: int) -> None:
    """A run, killed at the beginning of its step ``step + 1``: its checkpoint is of an earlier one."""
    train_step = Trainer.train_step

    def stepping(trainer: Trainer) -> dict[str, float]:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(trainer)

    Trainer.train_step = stepping  # type: ignore[method-assign]
    start_or_go_on(kind, folder)


def digest(folder: Path) -> str:
    """Of what a finished run has computed: weights, optimiser, random states, metrics but for their times."""
    hasher = hashlib.sha256()
    for path in sorted((folder / "checkpoint").glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            hasher.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name in ("metrics.csv", "evaluation.csv"):
        with (folder / name).open(newline="") as file:
            for row in csv.DictReader(file):
                hasher.update(repr([(key, cell) for key, cell in row.items() if not key.endswith("_s")]).encode())
    return hasher.hexdigest()


def reference(kind: str, *overrides: str) -> tuple[Path, str, float]:
    """An undisturbed run, made once: its folder, its digest, and the seconds that it takes."""
    folder = WORK / f"{kind}-undisturbed{''.join('-' + text.replace('=', '') for text in overrides)}"
    clock = folder.with_suffix(".seconds")
    if not clock.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        if failed := finish(kind, folder, *overrides):
            raise SystemExit(f"the undisturbed {kind} run failed: {failed}")
        clock.write_text(str(time.monotonic() - started))
    return folder, digest(folder), float(clock.read_text())


def trials_done(name: str) -> int:
    """How many rows a result has already: a script that was stopped goes on behind them."""
    path = RESULTS / f"reliability-{name}.csv"
    if not path.is_file():
        return 0
    with path.open(newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def record(name: str, row: dict[str, object]) -> None:
    """Append one trial to ``benchmarks/results/reliability-NAME.csv``, and print it."""
    path = RESULTS / f"reliability-{name}.csv"
    path.parent.mkdir(exist_ok=True)
    row = {**row, "command": shlex.join(["python", f"benchmarks/reliability/{Path(sys.argv[0]).name}", *sys.argv[1:]])}
    row["hardware"] = hardware()
    fresh = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print("  ".join(f"{key}={value}" for key, value in row.items() if key not in ("hardware", "command")), flush=True)
