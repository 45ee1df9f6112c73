"""Batches of rollouts from snapshots of full-valid runs, kept on disk, so that any credit can be measured on them.

A run of 60 (toy) or 4 (LIBERO) training steps leaves its policy after some of them and, for a critic, the batch of
every step. Then each of these policies plays more batches, without learning. Everything goes to
``runs/recorded-batches/<task>-<seed>``; what is there already is not played again.

LIBERO is the first task of LIBERO-Object with the settings of ``comparisons.sh libero``:

    MUJOCO_GL=osmesa python benchmarks/recorded_batches.py libero --seeds 1
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gradient_rows import untrained
from safetensors.torch import load_file, save_file
from tensordict import NestedKey, TensorDict, TensorDictBase

from pcm_rl.algos.credit import GROUP_CREDIT
from pcm_rl.config import Config, load_config
from pcm_rl.episodes import CHUNK, CHUNK_ID, DONE, EPISODE, GROUP, IS_PAD, PHASE, STATE, SUCCESS, TOKENS
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.training.checkpoint import load_policy, save_policy
from pcm_rl.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
OF_A_CRITIC: tuple[NestedKey, ...] = (STATE, CHUNK_ID, EPISODE, GROUP, SUCCESS, DONE, IS_PAD)
OF_A_GRADIENT: tuple[NestedKey, ...] = (*OF_A_CRITIC, TOKENS, CHUNK, PHASE)
QUIET = ("selection.name=none", "record=false", "logger=none")


@dataclass(frozen=True)
class Task:
    """What is recorded of a task.

    Attributes:
        recipe: In ``configs/``.
        settings: That differ from it.
        steps: Training steps after which a snapshot is taken.
        batches: Of each snapshot.
        critic: Settings of the critic that judges them.
    """

    recipe: str
    settings: tuple[str, ...]
    steps: tuple[int, ...]
    batches: int
    critic: tuple[str, ...]

    def config(self, seed: int, *more: str) -> Config:
        """The run that is recorded, with further settings."""
        return load_config(ROOT / "configs" / f"{self.recipe}.yaml", [*self.settings, *QUIET, f"seed={seed}", *more])


TASKS = {
    "toy": Task("pick_place", (), (0, 15, 60), 15, ("advantage.memory=240", "advantage.steps=60")),
    "libero": Task(
        "libero_object_state",
        ("env.tasks.task_id=[0]", "env.kwargs.horizon=128", "env.max_chunks=16", "env.num_envs=1", "demos.path=null",
         "demos.episodes=5", "sft.steps=800", "sft.target=null", "groups=4", "group_size=8", "steps=8",
         "update.lr=1e-3"),
        (0, 4),
        10,
        ("advantage.memory=96", "advantage.steps=48"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """The folder of one run."""

    task: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return ROOT / "runs" / "recorded-batches" / f"{self.task}-{self.seed}"

    def policy(self, step: int) -> Path:
        """Of a snapshot."""
        return self.folder / f"policy-{step}.safetensors"

    def trained_on(self, step: int) -> Path:
        """Rows of a training step, counted from 1."""
        return self.folder / f"step-{step}.safetensors"

    def batch(self, step: int, number: int) -> Path:
        """Rows that a snapshot's policy has played."""
        return self.folder / f"batch-{step}-{number}.safetensors"

    def before(self, step: int) -> Iterator[TensorDict]:
        """What the run was trained on until this snapshot."""
        return (load_rows(self.trained_on(k)) for k in range(1, step + 1))

    def batches(self, step: int) -> Iterator[TensorDict]:
        """What the snapshot's policy played, as far as it is there."""
        paths = (self.batch(step, k) for k in range(TASKS[self.task].batches))
        return (load_rows(path) for path in paths if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, nargs="+", help="play these snapshots only")
    parser.add_argument("--first", type=int, default=0, help="number of the first batch to play, to share the work")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        record(options.task, seed, options.steps or TASKS[options.task].steps, options.first)


def record(name: str, seed: int, steps: Sequence[int], first: int = 0) -> None:
    """Train and play what is missing."""
    task, recording = TASKS[name], Recording(name, seed)
    missing = [step for step in steps if not recording.batch(step, task.batches - 1).is_file()]
    if not missing:
        return
    recording.folder.mkdir(parents=True, exist_ok=True)
    trained = all(recording.policy(step).is_file() for step in steps)
    trainer = Trainer(task.config(seed), say=lambda line: None) if trained else untrained(task.config(seed))
    with contextlib.closing(trainer.env):
        if not trained:
            _train(trainer, recording, task)
        for number in range(first, task.batches):
            for step in missing:
                _play(trainer, recording, step, number)


def _train(trainer: Trainer, recording: Recording, task: Task) -> None:
    def keep(rows: TensorDictBase) -> dict[str, float]:
        save_rows(rows, recording.trained_on(trainer.step), OF_A_CRITIC)
        return {}

    trainer.grpo.credit = dataclasses.replace(GROUP_CREDIT, fit=keep, reads=(STATE,))
    for step in range(task.steps[-1] + 1):
        if step:
            trainer.train_step()
        if step in task.steps:
            save_policy(trainer.policy, recording.policy(step))
            print(f"{recording.folder.name}: step {step}", flush=True)


def _play(trainer: Trainer, recording: Recording, step: int, number: int) -> None:
    """One batch of a snapshot; it has its own seed and states, so that it does not matter what was played before."""
    path = recording.batch(step, number)
    if path.is_file():
        return
    with torch.no_grad():
        load_policy(trainer.policy, recording.policy(step))
    trainer.states = InitialStates.of(trainer.config)
    trainer.states.dealt = number * trainer.config.groups
    torch.manual_seed(1_000_000 * recording.seed + 1000 * step + number)
    save_rows(trainer.collect(), path, OF_A_GRADIENT)
    print(path.stem, flush=True)


def save_rows(rows: TensorDictBase, path: Path, keys: tuple[NestedKey, ...]) -> None:
    """Some entries of ``rows [M]`` as a file that is whole or not there; tokens as bytes."""
    found = {".".join([key] if isinstance(key, str) else key): rows.get(key).contiguous() for key in keys}
    name = ".".join(TOKENS)
    if name in found:
        found[name] = found[name].to(torch.uint8)
    partial = path.with_suffix(".partial")
    save_file(found, partial)
    partial.rename(path)


def load_rows(path: Path) -> TensorDict:
    """What :func:`save_rows` wrote."""
    found = load_file(path)
    rows = TensorDict({tuple(name.split(".")): value for name, value in found.items()}, [len(found[EPISODE])])
    if TOKENS in rows.keys(include_nested=True):
        rows.set(TOKENS, rows.get(TOKENS).long())
    return rows


if __name__ == "__main__":
    main()
