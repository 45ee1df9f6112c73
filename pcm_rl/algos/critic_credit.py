"""Credit from a critic: what each chunk changed about the chance of success."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl.algos.credit import Credit, outcome_credit
from pcm_rl.algos.critic import SuccessCritic
from pcm_rl.episodes import EPISODE, FEATURES, GROUP, OUTCOME, SUCCESS, EpisodeIndex, column_of


def critic_credit(critic: SuccessCritic, *, scale: float | None = 10.0, every_group: bool = True) -> Credit:
    """Advantages from a critic.

    Until the critic has learned from its first batch they are those of equation 1, with the whole batch as one group
    where groups have a single rollout.

    Args:
        critic: It learns from every batch after the batch has its advantages.
        scale: Multiplies the change of the chance. A constant keeps the size of a step in proportion to what there is
            to learn. None divides by the standard deviation of the credited rows instead, which makes the critic's
            noise large once nearly all rollouts succeed.
        every_group: Groups of one outcome have credit too; False leaves them out, as equation 1 does.
    """

    def advantage(rows: TensorDictBase) -> Tensor:
        if not bool(critic.fitted):
            return outcome_credit(_as_one_group(rows) if every_group and _alone(rows) else rows)
        change = critic.advantage(rows)
        credited = torch.ones_like(change, dtype=torch.bool) if every_group else outcome_credit(rows) != 0
        if scale is not None:
            change = change * scale
        elif int(credited.sum()) >= 2:
            change = change / change[credited].double().std().float().clamp_min(1e-8)
        return torch.where(credited, change, 0.0)

    return Credit(
        advantage,
        observe=critic.observe,
        reads=(FEATURES, OUTCOME),
        fit=critic.fit,
        value=critic,
        ready=lambda: bool(critic.fitted),
        every_group=every_group,
        module=critic,
        generator=critic.generator,
    )


def _alone(rows: TensorDictBase) -> bool:
    """Whether every group has a single rollout."""
    index = EpisodeIndex(column_of(rows, EPISODE))
    return len(column_of(rows, GROUP).unique()) == index.shape[0]


def _as_one_group(rows: TensorDictBase) -> TensorDictBase:
    return rows.select(SUCCESS, EPISODE).set(GROUP, torch.zeros_like(rows.get(EPISODE)))
