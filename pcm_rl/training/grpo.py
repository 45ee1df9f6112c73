"""GRPO with chunk selection, without rollouts: advantage, selection, update, and their saved state."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from tensordict import TensorDict, TensorDictBase
from torch import Generator, Tensor
from torch.optim import AdamW, Optimizer
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.advantage import has_signal
from pcm_rl.algos.augment import augment_images
from pcm_rl.algos.credit import GROUP_CREDIT, Credit, outcome_credit
from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.sampler import PCMSampler
from pcm_rl.algos.update import grpo_update
from pcm_rl.config import Config, ConfigError, UpdateConfig
from pcm_rl.episodes import ADVANTAGE, CHUNK, EPISODE, FEATURES, IS_PAD, WEIGHT, EpisodeIndex
from pcm_rl.policies.family import Recomputes
from pcm_rl.processes.ranks import ALONE, Ranks
from pcm_rl.training.build import make_credit, make_policy
from pcm_rl.training.memory import wants_checkpointing
from pcm_rl.training.probe import check_log_probs, company_matters
from pcm_rl.training.slots import pad_to_slots, with_slots


class GRPO:
    """Policy, credit, rule, loss and optimiser of a run, and the methods that apply them to a step's rows.

    Args:
        config: The run.
        env: The environments that the policy has to fit.
        ranks: The processes that share an update.

    Warns:
        RuntimeWarning: The rule weighs phases, and a critic gives the credit.
    """

    def __init__(self, config: Config, env: VectorEnv, ranks: Ranks = ALONE) -> None:
        self.config = config = with_slots(config, env)
        self.ranks = ranks
        self.policy = make_policy(config, env)
        self.credit = make_credit(config, env, self.policy)
        self.half_box = half_box(env.single_action_space)
        check_groups(config, self.credit)
        self.sampler = PCMSampler.of(config.selection, seed=config.seed)
        if ranks.first and config.advantage.name == "critic" and self.sampler.rule.by_phase:
            warnings.warn(
                f"selection.name={config.selection.name} chooses by phase, and phases explain little of the critic's "
                "credit: expect no more than from random chunks; selection.name=top-advantage goes by the credit "
                "itself (docs/credit_and_phases.md)",
                RuntimeWarning,
                stacklevel=2,
            )
        self.loss = make_loss(self.policy, config.update)
        self.optimizer = make_optimizer(self.policy, config.update)
        self.generator = Generator().manual_seed(config.seed)  # demonstrations' rows and minibatches

    def probe(self, rows: TensorDict, acted: VLAWrapperBase, say: Callable[[str], None]) -> None:
        """Before the first update: check the log-probs that ``acted`` recorded, and whether a micro-batch fits."""
        check_log_probs(acted, rows)
        if (number := self.config.rollouts.decisions) is not None:
            change = company_matters(acted, rows, number)
            found = "are the same, bit for bit" if change == 0.0 else f"change by up to {change:.1g}"
            say(f"rollouts.decisions={number}: log-probs of rows that are decided among others {found}")
        if isinstance(self.policy, Recomputes):
            recompute, reason = wants_checkpointing(self.policy, rows, self.config)
            self.policy.set_checkpointing(recompute)
            say(f"gradient checkpointing {'on' if recompute else 'off'}: {reason}")

    def write_advantage(self, rows: TensorDict) -> Tensor:
        """Write the advantage of every row.

        Returns:
            The rows that there is something to learn from, ``[M]`` bool: of groups with both outcomes or, where the
            credit is for ``every_group``, of trajectories with an advantage. The advantage of the others is 0.

        Raises:
            ConfigError: If the credit is not one finite number a row.
        """
        advantage = torch.as_tensor(self.credit.advantage(rows)).detach()  # no gradient reaches what gives the credit
        if advantage.shape != rows.batch_size or not bool(torch.isfinite(advantage).all()):
            what = "nan or infinity" if advantage.shape == rows.batch_size else f"shape {tuple(advantage.shape)}"
            name = self.config.advantage.name
            raise ConfigError(f"advantage.name={name} gave {what}, expected one finite number a row, [{len(rows)}]")
        signal = self._signal(rows, advantage)
        rows.set(ADVANTAGE, torch.where(signal, advantage, 0.0).float())
        return signal

    def _signal(self, rows: TensorDict, advantage: Tensor) -> Tensor:
        if self.credit.every_group:
            return has_signal(advantage, (~rows.get(IS_PAD)).any(-1), EpisodeIndex(rows.get(EPISODE)))
        return (advantage if self.credit is GROUP_CREDIT else outcome_credit(rows)) != 0

    def select(self, rows: TensorDict, signal: Tensor) -> TensorDictBase:
        """The rows that go through the update, with their weights.

        The rule sees actions in units of half the action box, so C weighs a dimension of metres like one of pixels.
        """
        candidates = self.sampler.rule.input(rows, signal)
        if self.sampler.padding == "keep":
            candidates = pad_to_slots(candidates, self.config.env.slots)
        seen = candidates
        if self.half_box is not None:
            seen = candidates.copy().set(CHUNK, candidates.get(CHUNK) / self.half_box)
        selection = self.sampler.select(seen)
        kept = candidates[selection.index].set(WEIGHT, selection.weight)
        if self.sampler.rule.budget == "batch" and bool(signal.any()):
            # its budget counts the groups of one outcome, the mean over trajectories does not, as with any other rule
            counted = _trajectories(candidates) / _trajectories(rows[signal])
            kept.set(WEIGHT, (kept.get(WEIGHT).double() * counted).float())
        return kept

    def update(self, kept: TensorDictBase, spent: float | None = None) -> dict[str, float]:
        """One update on the kept rows, at the learning rate that is due.

        What only the critic sees does not travel to the policy's device.

        Args:
            kept: The rows, with their weights.
            spent: Share of the run that is over; a rate that falls wants it.

        Raises:
            ConfigError: The learning rate falls, and ``spent`` is not given or no share.
        """
        kept = kept.exclude(FEATURES)
        with scaled_rate(self.optimizer, lr_factor(self.config.update, spent)) as rate:
            metrics = update_policy(self.loss, self.optimizer, kept, self.config.update, self.generator, self.ranks)
        return metrics | {"lr": rate}

    def check_same(self) -> None:
        """Raise ``RuntimeError`` unless all processes have come to the same parameters."""
        for module in (self.policy, self.credit.module):
            if module is not None:
                self.ranks.check_parameters(module)

    def saved(self) -> dict[str, Any]:
        """The objects that a checkpoint writes, and restores in place."""
        generators = {"sampler": self.sampler.generator, "minibatches": self.generator}
        if self.credit.generator is not None:
            generators["critic"] = self.credit.generator
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "generators": generators,
            "critic": self.credit.module,
        }


def check_groups(config: Config, credit: Credit) -> None:
    """Refuse groups of one rollout where something compares the rollouts of a group.

    Raises:
        ConfigError: The credit or the rule does.
    """
    if config.group_size > 1:
        return
    if not credit.every_group:
        raise ConfigError(
            f"group_size=1: advantage.name={config.advantage.name} gives credit within groups of both outcomes only, "
            "which takes 2 rollouts or more; advantage.name=critic with advantage.every_group=true needs no groups"
        )
    if config.selection.rule.by_phase:
        raise ConfigError(
            f"group_size=1: selection.name={config.selection.name} compares the successes of a group with its "
            "failures, which takes 2 rollouts or more; selection.name=top-advantage needs no groups"
        )


def half_box(space: spaces.Space[Any] | None) -> Tensor | None:
    """Half the width of each action's range, ``[L, D]`` float32, 1 where it is unbounded; None where all are 1."""
    assert isinstance(space, spaces.Box)
    half = torch.from_numpy(np.subtract(space.high, space.low, dtype=np.float64) / 2).float()
    half = torch.where(half.isfinite() & (half > 0), half, 1.0)
    return None if bool((half == 1.0).all()) else half


def make_loss(policy: VLAWrapperBase, update: UpdateConfig) -> ChunkGRPOLoss:
    """The loss that the section ``update`` describes, on the policy itself."""
    return ChunkGRPOLoss(
        policy,
        clip_epsilon=(update.clip_low, update.clip_high),
        entropy_coeff=update.entropy_coeff,
        ratio=update.ratio,
        functional=False,
    )


def make_optimizer(policy: VLAWrapperBase, update: UpdateConfig) -> AdamW:
    """AdamW over the trained parameters: all of them, or the adapters of a frozen model."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return AdamW(parameters, lr=update.lr, weight_decay=update.weight_decay, fused=True)


def lr_factor(update: UpdateConfig, spent: float | None) -> float:
    """Factor of the learning rate when the share ``spent`` of the run is over.

    Raises:
        ConfigError: The rate falls, and ``spent`` is None or outside 0 to 1.
    """
    if update.lr_schedule == "constant":
        return 1.0
    if spent is None or not 0.0 <= spent <= 1.0:
        raise ConfigError(
            f"update.lr_schedule={update.lr_schedule}: got spent={spent}, expected the share of the run that is over, "
            "from 0 to 1"
        )
    return 1.0 - spent


@contextlib.contextmanager
def scaled_rate(optimizer: Optimizer, factor: float) -> Iterator[float]:
    """Learning rates times ``factor``, the first of which it gives; a checkpoint never holds the changed ones."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    try:
        yield float(optimizer.param_groups[0]["lr"])
    finally:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate


def update_policy(
    loss: ChunkGRPOLoss,
    optimizer: Optimizer,
    kept: TensorDictBase,
    update: UpdateConfig,
    generator: Generator,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """One GRPO update on the kept rows; see :func:`~pcm_rl.algos.update.grpo_update`."""
    kept = augment_images(kept, brightness=update.brightness, jitter=update.jitter, generator=generator)
    return grpo_update(
        loss,
        optimizer,
        kept,
        minibatches=update.minibatches,
        epochs=update.epochs,
        micro_rows=update.micro_rows,
        micro_tokens=update.micro_tokens,
        grad_clip=update.grad_clip,
        generator=generator,
        ranks=ranks,
    )


def _trajectories(rows: TensorDictBase) -> int:
    """How many trajectories of ``rows [M]`` have an executed step."""
    executed = (~rows.get(IS_PAD)).any(-1)
    return len(rows.get(EPISODE)[executed].unique())
