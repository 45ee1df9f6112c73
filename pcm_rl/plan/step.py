"""A whole training step by each method on several cards: its parts, what binds, and what the method gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pcm_rl.config import ConfigError
from pcm_rl.plan.columns import Column
from pcm_rl.plan.costs import Costs
from pcm_rl.plan.figures import Episodes, Simulators
from pcm_rl.plan.rollout import play

MOST_TRAJECTORIES, MOST_CHUNKS = 1_000_000, 300_000


@dataclass(frozen=True)
class Workload:
    """What a step consists of.

    Attributes:
        groups: Groups a step.
        group_size: Rollouts of each.
        episodes: Their length.
        slots: Chunks of a padded episode.
        minibatches: Optimiser steps of an epoch.
        epochs: Passes over the kept chunks.
    """

    groups: int = 8
    group_size: int = 10
    episodes: Episodes = field(default_factory=Episodes)
    slots: int = 64
    minibatches: int = 4
    epochs: int = 1

    def lengths(self, groups: int) -> list[int]:
        """Chunks of each trajectory of ``groups`` groups."""
        return self.episodes.lengths(groups * self.group_size)

    def update_chunks(self, column: Column, groups: int) -> int:
        """Chunks that go forward and backward in one epoch.

        A rule with a budget a trajectory keeps ``min(B, N_i)`` of each in a group with both outcomes. One with a budget
        for the batch spends that of all groups on those. Equation 1 has nothing to say of a group with one outcome.
        """
        every = self.lengths(groups)
        learned = every
        if not column.every_group:
            share, episodes = self.episodes.in_mixed_groups(self.group_size)
            learned = episodes.lengths(round(share * groups * self.group_size))
        if column.method.padding == "keep":
            learned = [max(self.slots, n) for n in learned]
        kind = column.rule.budget
        if kind == "none":
            return sum(learned)
        kept = sum(min(column.budget, n) for n in (learned if kind == "trajectory" else every))
        return min(kept, sum(learned))


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes:
        cards: Accelerators.
        method: Name of the method.
        budget: Its B; None where it has none.
        trajectories: Rollouts of the step, on all cards.
        chunks: That go through the update in one epoch.
        rollout_s: Seconds of the rollouts, of the slowest card.
        update_s: Seconds of the update.
        gain: How many times as fast as the step of the first method.
        binds: ``update``, ``decisions`` or ``simulators``: what would shorten the step most if it were twice as fast.
        rows_a_decision: Mean rows of a decision.
        deciding_s: Seconds of the rollout in which the card decides.
    """

    cards: int
    method: str
    budget: int | None
    trajectories: int
    chunks: int
    rollout_s: float
    update_s: float
    gain: float
    binds: str
    rows_a_decision: float
    deciding_s: float

    @property
    def seconds(self) -> float:
        """Rollout and update, one after the other."""
        return self.rollout_s + self.update_s

    @property
    def card_s(self) -> float:
        """Seconds of all cards for a trajectory."""
        return self.cards * self.seconds / self.trajectories

    def as_dict(self) -> dict[str, Any]:
        """Plain values, to four digits."""
        values = {**dataclasses.asdict(self), "step_s": self.seconds, "card_s_a_trajectory": self.card_s}
        return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}


def plan_steps(
    workload: Workload, simulators: Simulators, costs: Costs, columns: Sequence[Column], cards: Sequence[int]
) -> list[Step]:
    """A step of every method on every number of cards.

    Whole groups are dealt to the cards; where there are more cards than groups, every card gets one group and the step
    is larger. Every card has simulators of its own. The rollout is that of the card with the most groups, and is the
    same for all methods. Left out are the selection, the critic's fit, and the sum of gradients over cards.

    Args:
        workload: What a step consists of.
        simulators: Of one card.
        costs: Of the policy on one card.
        columns: The methods; gains are to the first.
        cards: Numbers of cards.

    Returns:
        Steps, all methods of the first number of cards first.

    Raises:
        ConfigError: A step has more than :data:`MOST_TRAJECTORIES` or a card more than :data:`MOST_CHUNKS`.
    """
    return [step for number in cards for step in _steps(workload, simulators, costs, columns, number)]


def _steps(
    workload: Workload, simulators: Simulators, costs: Costs, columns: Sequence[Column], cards: int
) -> Iterator[Step]:
    groups = max(workload.groups, cards)
    _refuse_endless(workload, groups, -(-groups // cards))
    lengths = workload.lengths(-(-groups // cards))
    rollout = play(lengths, simulators, costs)
    saved = {
        "simulators": rollout.seconds - play(lengths, simulators.faster(2), costs).seconds,
        "decisions": rollout.seconds - play(lengths, simulators, costs.faster(decisions=2)).seconds,
    }
    full_s = None
    for column in columns:
        chunks = workload.update_chunks(column, groups)
        update_s = costs.update_s(chunks, minibatches=workload.minibatches, epochs=workload.epochs, cards=cards)
        seconds = rollout.seconds + update_s
        full_s = seconds if full_s is None else full_s
        saved["update"] = update_s / 2
        yield Step(
            cards=cards,
            method=column.name,
            budget=None if column.rule.budget == "none" else column.budget,
            trajectories=groups * workload.group_size,
            chunks=chunks,
            rollout_s=rollout.seconds,
            update_s=update_s,
            gain=full_s / seconds,
            binds=max(saved, key=saved.__getitem__),
            rows_a_decision=rollout.rows_a_call,
            deciding_s=rollout.deciding,
        )


def _refuse_endless(workload: Workload, groups: int, a_card: int) -> None:
    """Every trajectory is counted, and every chunk of a card is played one after the other."""
    episodes = workload.episodes
    longest = max(episodes.success_chunks, episodes.failure_chunks, workload.slots)
    number, chunks = groups * workload.group_size, a_card * workload.group_size * longest
    if number > MOST_TRAJECTORIES or chunks > MOST_CHUNKS:
        raise ConfigError(
            f"a step of {number} trajectories, up to {chunks:.3g} chunks on a card: a plan plays at most "
            f"{MOST_TRAJECTORIES} and {MOST_CHUNKS}; take fewer groups, shorter episodes or fewer cards"
        )
