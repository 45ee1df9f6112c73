"""Configuration of a run: frozen dataclasses with a default for every field, checked when they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Optional

import torch

from pcm_rl.config.checks import ConfigError, at_least, one_of
from pcm_rl.config.environment import DemoConfig, EnvConfig
from pcm_rl.config.learning import AdvantageConfig, SelectionConfig, SFTConfig, UpdateConfig
from pcm_rl.config.methods import METHODS, Method
from pcm_rl.config.policy import DRAW_NUMBERS, PolicyConfig
from pcm_rl.config.rollouts import RolloutConfig

MAX_NAME = 200  # file systems allow 255, and folders beside a run's have a suffix


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        seed: Seed of everything random.
        steps: Training steps, each of ``groups`` x ``group_size`` rollouts and one update.
        env_steps: Environment steps of the training rollouts after which training ends, if that comes before ``steps``;
            null does all ``steps``. Methods that need other numbers of rollouts a step are compared at equal ones.
        groups: Groups (task and initial state) a step.
        group_size: G, rollouts a group; 1 only with an advantage that needs no groups, such as ``critic``.
        eval_every: Steps between evaluations; 0 evaluates only before and after.
        eval_episodes: Rollouts of an evaluation on the held-out initial states.
        save_every: Steps between checkpoints; 0 saves only at the end.
        save_keep: Newest checkpoints that stay; the one with the best evaluation stays besides.
        patience: Steps in a row without any success after which the run stops, saved, with exit status 2; 0 goes on.
        run_dir: Folder that holds the runs.
        name: Folder of this run, within ``run_dir``; None makes one from the environment, the method and the seed.
        threads: Torch threads; None leaves torch's choice.
        device: Torch device of the policy and the update; ``cuda`` is with several processes the GPU of each.
        logger: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio`` or ``none``; ``metrics.csv`` is always written.
        record: Film a success and a failure for the report, where the environment renders.
        env: The environment.
        policy: The policy.
        demos: Demonstrations.
        sft: Supervised start.
        rollouts: Rollouts of a training step.
        advantage: Credit of each chunk.
        selection: Chunk selection.
        update: GRPO update.
    """

    seed: int = 0
    steps: int = 60
    env_steps: Optional[int] = None  # noqa: UP045
    groups: int = 8
    group_size: int = 10
    eval_every: int = 10
    eval_episodes: int = 256
    save_every: int = 10
    save_keep: int = 2
    patience: int = 10
    run_dir: str = "runs"
    name: Optional[str] = None  # noqa: UP045
    threads: Optional[int] = None  # noqa: UP045
    device: str = "cpu"
    logger: str = "tensorboard"
    record: bool = True
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    demos: DemoConfig = field(default_factory=DemoConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)

    def __post_init__(self) -> None:
        at_least(0, self, "seed", "steps", "eval_every", "save_every", "patience")
        at_least(1, self, "groups", "group_size", "eval_episodes", "save_keep", "threads", "env_steps")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"device must be cpu, cuda or cuda:N, got {self.device!r}") from error
        if self.group_size == 1 and self.advantage.name == "group":
            raise ConfigError(
                "group_size must be at least 2, got 1: advantage.name=group compares the rollouts of a group (equation "
                "1); advantage.name=critic needs no groups"
            )
        if self.update.entropy_coeff and self.policy.family in DRAW_NUMBERS:
            raise ConfigError(
                f"update.entropy_coeff={self.update.entropy_coeff:g} means nothing for policy.family="
                f"{self.policy.family}: the noise that it draws from is fixed, and so is its entropy; give 0"
            )
        one_of(self, "logger", ("tensorboard", "wandb", "mlflow", "trackio", "none"))
        if self.name is not None:
            _check_name(self.name)

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        task = self.env.id.rsplit("/", 1)[-1].split("-v")[0].lower()
        method = re.sub(r"[^\w.-]+", "-", self.method)  # a rule of one's own has a colon in its name
        return Path(self.run_dir) / (self.name or f"{task}-{method}-seed{self.seed}")

    @property
    def method(self) -> str:
        """Name of selection, padding and advantage in :data:`METHODS`, or all three where they have no name."""
        mine = Method(self.selection.name, self.selection.padding, self.advantage.name)
        return next((name for name, value in METHODS.items() if value == mine), "-".join(mine))

    @property
    def begins_trained(self) -> bool:
        """Whether the first step's policy has learned something: from demonstrations, a policy file or a checkpoint."""
        checkpoints = (self.policy.openvla.checkpoint, self.policy.pi0.checkpoint, self.policy.init)
        return self.sft.steps > 0 or any(path is not None for path in checkpoints)


def _check_name(name: str) -> None:
    path = PurePath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or not name.isprintable():
        raise ConfigError(f"name must be that of a folder within run_dir, got {name!r}; run_dir may lie anywhere")
    if longest := [part for part in path.parts if len(part.encode()) > MAX_NAME]:
        raise ConfigError(f"name must have at most {MAX_NAME} bytes, got {len(longest[0].encode())} in {name!r}")
