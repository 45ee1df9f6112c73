"""Configuration of what is learned from: supervised start, credit, selection, update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from pcm_rl.config.checks import ConfigError, at_least, one_of, positive, within
from pcm_rl.objective import RATIOS
from pcm_rl.rules import Rule, find_rule
from pcm_rl.selection import PADDINGS, SELECTIONS
from pcm_rl.support.plugins import is_plugin

SCHEDULES = ("constant", "linear")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised start.

    Attributes:
        steps: Gradient steps, at most.
        batch_size: Rows a step.
        lr: Adam's learning rate.
        target: Success in [0, 1] on training states at which to stop earlier, so that RL has something to do; None
            does all the steps.
        check_every: Gradient steps between two looks at the success, with ``target``.
        check_episodes: Rollouts of such a look.
    """

    SECTION: ClassVar[str] = "sft."

    steps: int = 900
    batch_size: int = 256
    lr: float = 1e-3
    target: Optional[float] = None  # noqa: UP045
    check_every: int = 200
    check_episodes: int = 40

    def __post_init__(self) -> None:
        at_least(0, self, "steps")
        at_least(1, self, "batch_size", "check_every", "check_episodes")
        positive(self, "lr")
        if self.target is not None and not 0.0 < self.target <= 1.0:
            raise ConfigError(f"target must be in (0, 1], got {self.target}")


@dataclass(frozen=True)
class AdvantageConfig:
    """What credit a chunk gets for the outcome.

    Attributes:
        name: ``group``, the outcome relative to the group's (equation 1); ``critic``, the change of a learned chance of
            success (``pcm_rl.algos.critic``); or ``module:function`` of one's own (see ``pcm_rl.algos.credit``).
        features: What the critic sees of each row: ``state``, ``policy`` (the policy's last hidden layer, recorded when
            it acts; a policy of one's own that cannot record costs one more forward of every row), or
            ``module:function``, rows ``[M]`` to ``[M, F]``. More than 128 are projected onto 128 by a random matrix.
        lam: Lambda of the critic's generalised advantage estimate.
        memory: Rollouts that the critic learns from, the newest batch and those before it; 0 takes the newest batch
            alone, with an optimiser that starts anew.
        steps: The critic's gradient steps a batch, of 256 rows.
        lr: Their learning rate.
        width: Units of each of the critic's two hidden layers.
        scale: Multiplies the change of the critic's chance of success; null divides by its standard deviation instead.
        every_group: Groups of one outcome have credit from the critic too, and ``group_size`` may be 1.
        options: Keyword arguments of an advantage of one's own.
    """

    SECTION: ClassVar[str] = "advantage."

    name: str = "group"
    features: str = "state"
    lam: float = 0.8
    memory: int = 240
    steps: int = 15
    lr: float = 1e-3
    width: int = 64
    scale: Optional[float] = 10.0  # noqa: UP045
    every_group: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_plugin(self.name):
            one_of(self, "name", ("group", "critic"))
            if self.options:
                raise ConfigError(f"advantage.options belong to an advantage of your own; {self.name} has none")
        if not is_plugin(self.features):
            one_of(self, "features", ("state", "policy"))
        at_least(0, self, "memory")
        at_least(1, self, "steps", "width")
        positive(self, "lr")
        positive(self, "scale")
        within(0.0, 1.0, self, "lam")


@dataclass(frozen=True)
class SelectionConfig:
    """Which chunks go through the backward pass.

    Attributes:
        name: ``pcm``, ``random``, ``top-phase``, ``top-advantage`` or ``none`` (full GRPO), or ``module:function`` of
            a rule of one's own (see ``pcm_rl.rules``).
        padding: ``drop``, or ``keep`` for the paper's baseline.
        budget: B, chunks a trajectory.
        floor: ``p_min``.
        refresh_every: ``T_rc``, steps between refreshes of the keep probabilities.
    """

    SECTION: ClassVar[str] = "selection."

    name: str = "pcm"
    padding: str = "drop"
    budget: int = 12
    floor: float = 0.1
    refresh_every: int = 5

    def __post_init__(self) -> None:
        if not is_plugin(self.name):
            one_of(self, "name", SELECTIONS)
        one_of(self, "padding", PADDINGS)
        at_least(1, self, "budget", "refresh_every")
        within(0.0, 1.0, self, "floor")

    @property
    def rule(self) -> Rule:
        """What ``name`` stands for; a module of one's own is imported now, so that other commands do without it.

        Raises:
            ConfigError: If it names nothing of that kind.
        """
        try:
            return find_rule(self.name)
        except ValueError as error:
            raise ConfigError(f"selection.name: {error}") from error


@dataclass(frozen=True)
class UpdateConfig:
    """The GRPO update.

    Attributes:
        lr: AdamW's learning rate.
        lr_schedule: ``constant``, or ``linear``: it falls from ``lr`` towards 0 over the run, by its ``steps`` or
            ``env_steps``, whichever are further. A run that is resumed with more of them goes on with a higher rate.
        weight_decay: AdamW's.
        epochs: Passes over a batch.
        minibatches: Optimiser steps a pass.
        micro_rows: Rows in one forward and backward; None takes a whole minibatch. The gradient does not depend on it.
        micro_tokens: Instead, tokens in one forward and backward, of a policy that counts them (OpenVLA): rows are
            packed by length, across trajectories.
        grad_clip: Largest gradient norm.
        clip_low: ``eps_low``.
        clip_high: ``eps_high``.
        ratio: What has one importance ratio: ``token`` (of a flow policy: each number), as the paper does it; ``step``,
            the product over an action's dimensions; or ``chunk``, the product over all of a chunk.
        entropy_coeff: Weight of the entropy bonus.
        brightness: Images of the update are made brighter or darker by a factor within 1 +- this; 0 leaves them.
        jitter: Likewise their contrast and their saturation.
    """

    SECTION: ClassVar[str] = "update."

    lr: float = 3e-4
    lr_schedule: str = "constant"
    weight_decay: float = 0.0
    epochs: int = 1
    minibatches: int = 4
    micro_rows: Optional[int] = None  # noqa: UP045
    micro_tokens: Optional[int] = None  # noqa: UP045
    grad_clip: float = 2.0
    clip_low: float = 0.2
    clip_high: float = 0.4
    ratio: str = "token"
    entropy_coeff: float = 0.0
    brightness: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", "minibatches")
        at_least(0.0, self, "weight_decay", "entropy_coeff")
        positive(self, "lr", "grad_clip", "clip_high")
        within(0.0, 1.0, self, "brightness", "jitter")
        one_of(self, "ratio", RATIOS)
        one_of(self, "lr_schedule", SCHEDULES)
        if not 0.0 < self.clip_low < 1.0:
            raise ConfigError(f"clip_low must be in (0, 1), got {self.clip_low}")
        if self.micro_rows is not None and self.micro_tokens is not None:
            raise ConfigError("micro_rows and micro_tokens both say how large a micro-batch is; give one of them")
        at_least(1, self, "micro_rows", "micro_tokens")
