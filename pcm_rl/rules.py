"""Rules that choose chunks: one function and one entry each.

A rule of one's own is a function in a file of one's own, named ``module:function`` wherever a built-in one is named:

    def surprise(candidates, budget, generator):
        return candidates.draw(-candidates.batch["vla_action", "log_probs"].mean((1, 2)), budget, generator)

    rule = Rule(surprise, reads=(("vla_action", "log_probs"),))     # only if it reads more than every rule gets
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Generator, Tensor

from pcm_rl.advantage import has_signal, outcome_advantage
from pcm_rl.allocation import KeepProbabilities
from pcm_rl.episodes import (
    ADVANTAGE,
    CHUNK,
    EPISODE,
    GROUP,
    IS_PAD,
    PHASE,
    SUCCESS,
    EpisodeIndex,
    shares_of_steps,
)
from pcm_rl.inputs import mask, number_per_row, weights, whole_number
from pcm_rl.sampling import first_of_race, log_weights
from pcm_rl.support.plugins import is_plugin, load_plugin

ALWAYS_READ: tuple[NestedKey, ...] = (CHUNK, IS_PAD, PHASE, SUCCESS, GROUP, EPISODE)  # what every rule gets
BUDGETS = ("trajectory", "batch", "none")


@dataclass(frozen=True)
class Candidates:
    """What a rule chooses from: M rows of whole episodes, one row a chunk.

    Attributes:
        batch: ``[M]`` rows with :data:`ALWAYS_READ`, the advantage if there is one, and what the rule ``reads``.
        episodes: Which rows are one episode.
        executed: ``[M]`` bool, chunks with an executed step.
        allowed: ``[M]`` bool, rows that may be kept: the executed ones, with ``padding="keep"`` also the others.
        keep: The keep probabilities, with this batch's score in them.
    """

    batch: TensorDictBase
    episodes: EpisodeIndex
    executed: Tensor
    allowed: Tensor
    keep: KeepProbabilities

    @functools.cached_property
    def advantage(self) -> Tensor:
        """The advantage that each row has in the loss, ``[M]``; equation 1 where the batch has none."""
        given = self.batch.get(ADVANTAGE, None)
        if given is None:
            return outcome_advantage(self.batch.get(SUCCESS), self.batch.get(GROUP), self.episodes)
        given = number_per_row(ADVANTAGE, given, len(self.executed))
        if not bool(torch.isfinite(given).all()):
            raise ValueError(f"advantage must be finite, got {given[~torch.isfinite(given)][0].item()}")
        return given

    @functools.cached_property
    def share(self) -> Tensor:
        """Share of each row in full GRPO's mean over the batch's trajectories of the mean over their tokens, ``[M]``.

        Float64. Trajectories without a signal count in the mean; their own share is 0, since they add nothing to it.
        """
        steps = (~self.batch.get(IS_PAD)).sum(-1)
        share = shares_of_steps(self.episodes.row, self.episodes.shape[0], steps)
        return torch.where(self.signal, share, 0.0)

    @functools.cached_property
    def signal(self) -> Tensor:
        """Rows of trajectories that have an advantage other than 0 at an executed chunk, ``[M]`` bool."""
        return has_signal(self.advantage, self.executed, self.episodes)

    def draw(
        self, weight: Tensor, budget: int, generator: Generator | None, *, allowed: Tensor | None = None
    ) -> Tensor:
        """Draw ``budget`` chunks of each trajectory, one after the other, by weight (see :func:`sample_chunks`).

        Args:
            weight: ``[M]`` positive.
            budget: B; a trajectory with fewer candidates keeps them all.
            generator: Source of randomness.
            allowed: ``[M]`` bool, a narrower choice than :attr:`allowed`.

        Returns:
            ``[M]`` bool.
        """
        among = self.allowed
        if allowed is not None:
            among = among & mask("allowed", allowed, among.shape)
        budget = whole_number("budget", budget, unit="chunk per trajectory")
        weight = weights(number_per_row("weight", weight, len(among)))
        race = self.episodes.dense(log_weights(weight, among), -torch.inf)
        return self.episodes.flat(first_of_race(race, budget, generator)) & among

    def largest(self, score: Tensor, budget: int, generator: Generator | None) -> Tensor:
        """Spend on the whole batch what ``budget`` chunks a trajectory would cost, on the largest scores.

        A trajectory without any score has its part in the budget too: the others get it.

        Args:
            score: ``[M]`` non-negative; rows of score 0 are never kept, ties are broken at random.
            budget: B.
            generator: Source of randomness; it draws on its own device.

        Returns:
            ``[M]`` bool with ``sum_i min(B, N_i)`` True, or as many as score more than 0.

        Raises:
            ValueError: If the scores are not ``[M]``, or one is NaN.
        """
        score = number_per_row("score", score, len(self.executed))
        if bool(score.isnan().any()):
            raise ValueError(f"scores must not be NaN, got one at row {int(score.isnan().nonzero()[0])}")
        index = ((score > 0) & self.executed).nonzero().squeeze(-1)
        source = generator.device if generator is not None else score.device
        index = index[torch.randperm(len(index), generator=generator, device=source).to(score.device)]
        order = score[index].sort(descending=True, stable=True).indices
        kept = torch.zeros_like(self.executed)
        kept[index[order[: self.affordable(budget)]]] = True
        return kept

    def affordable(self, budget: int) -> int:
        """``sum_i min(B, N_i)``: chunks of the whole batch at ``budget`` chunks a trajectory."""
        budget = whole_number("budget", budget, unit="chunk per trajectory")
        return int(torch.bincount(self.episodes.row[self.executed]).clamp_max(budget).sum())


Choose = Callable[[Candidates, int, Generator | None], Tensor]


@dataclass(frozen=True)
class Rule:
    """A rule, and what has to be known to use it.

    Attributes:
        choose: ``(candidates, budget, generator) -> [M] bool``, the rows that are kept.
        reads: Entries of the batch that it looks at beside :data:`ALWAYS_READ` and the advantage. ``PCMSampler``,
            ``PCMSampleUnit`` and the exchange between processes bring them.
        by_phase: It weighs phases, so that a batch of one phase gets a warning.
        budget: ``"trajectory"``: at most B chunks of each trajectory, weighted as a mean over trajectories of what they
            kept. ``"batch"``: at most ``sum_i min(B, N_i)`` of the batch, each with the weight that it has in full
            GRPO. ``"none"``: B does not count.
    """

    choose: Choose
    reads: tuple[NestedKey, ...] = ()
    by_phase: bool = False
    budget: str = "trajectory"

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise ValueError(f"a rule's budget must be one of {', '.join(BUDGETS)}, got {self.budget!r}")

    def input(self, rows: TensorDictBase, signal: Tensor) -> TensorDictBase:
        """The part of a step's rows that this rule chooses from.

        A budget for the batch counts all trajectories, and gives nothing to those without a signal. Drawn for each
        trajectory, chunks come from those with a signal only: others would cost a backward pass that adds nothing.

        Args:
            rows: ``[M]`` rows of all groups.
            signal: ``[M]`` bool, rows of groups with both outcomes.
        """
        return rows if self.budget == "batch" else rows[signal]


def pcm(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    """B chunks of each trajectory, drawn with the phases' keep probabilities as weights (algorithm 1).

    Padding rows, where they are candidates, weigh the floor probability.
    """
    phase, probs = candidates.batch.get(PHASE), candidates.keep.probs.to(candidates.executed.device)
    weight = probs.index_select(0, phase.clamp_min(0)).masked_fill_(phase < 0, candidates.keep.floor)
    return candidates.draw(weight, budget, generator)


def random(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    """B chunks of each trajectory, drawn uniformly."""
    uniform = torch.ones(len(candidates.executed), dtype=torch.float64, device=candidates.executed.device)
    return candidates.draw(uniform, budget, generator)


def top_phase(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    """B chunks of each trajectory, drawn uniformly among those of the phase with the largest keep probability.

    A trajectory without that phase keeps nothing; before any evidence all phases count.
    """
    phase, keep = candidates.batch.get(PHASE), candidates.keep
    within = torch.ones_like(candidates.allowed)
    if bool(keep.scored.any()):
        within = phase == int(torch.where(keep.scored, keep.probs, -1.0).argmax())
    uniform = torch.ones(len(phase), dtype=torch.float64, device=phase.device)
    return candidates.draw(uniform, budget, generator, allowed=within)


def top_advantage(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    """The chunks of the batch that weigh most in full GRPO's objective: the largest ``|A| * share``, without phases.

    Chunks without an advantage are never kept.
    """
    return candidates.largest(candidates.advantage.double().abs() * candidates.share, budget, generator)


def everything(candidates: Candidates, budget: int, generator: Generator | None) -> Tensor:
    """All candidates: full GRPO."""
    return candidates.allowed.clone()


RULES: dict[str, Rule] = {
    "pcm": Rule(pcm, by_phase=True),
    "random": Rule(random),
    "top-phase": Rule(top_phase, by_phase=True),
    "top-advantage": Rule(top_advantage, budget="batch"),
    "none": Rule(everything, budget="none"),
}


def find_rule(name: str) -> Rule:
    """The rule of that name.

    Args:
        name: A key of :data:`RULES`, or ``module:function`` of a function ``(candidates, budget, generator)`` or of a
            :class:`Rule`.

    Raises:
        ValueError: If there is none.
    """
    if name in RULES:
        return RULES[name]
    if not is_plugin(name):
        raise ValueError(
            f"unknown selection {name!r}; choose one of {', '.join(RULES)}, or name a rule of your own as "
            "module:function"
        )
    found = load_plugin(name)
    if isinstance(found, Rule):
        return found
    if callable(found) and not isinstance(found, type):
        return Rule(found)
    raise ValueError(f"selection {name} is {found!r}; expected a function (candidates, budget, generator) or a Rule")
