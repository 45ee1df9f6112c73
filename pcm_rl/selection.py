"""One call that decides which chunks go through the backward pass, and with what weight."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Generator, Tensor

from pcm_rl.allocation import KeepProbabilities
from pcm_rl.divergence import divergence_of
from pcm_rl.episodes import (
    ADVANTAGE,
    CHUNK,
    EPISODE,
    GROUP,
    IS_PAD,
    PHASE,
    SUCCESS,
    EpisodeIndex,
    check_batch,
    check_order,
    numbered,
    shares_of_steps,
    trajectory_shares,
)
from pcm_rl.inputs import whole_number
from pcm_rl.phases import PhaseWarning
from pcm_rl.rules import ALWAYS_READ, RULES, Candidates, Rule, find_rule

SELECTIONS = tuple(RULES)
PADDINGS = ("drop", "keep")


@dataclass(frozen=True)
class Selection:
    """The kept rows, and what led to them.

    Attributes:
        index: Rows of the batch that are kept, ``[R]`` int64, ascending.
        weight: Weight of each kept row, ``[R]`` float32 with mean 1. The loss ``mean over rows of weight * (mean over
            the row's executed tokens)`` is then the mean over trajectories of the mean over their kept tokens. Under a
            rule with a budget for the batch the mean is not 1: the loss is the kept rows' part of the whole batch's.
        full: Rows that full GRPO would take of this batch: the executed ones; under a budget for the batch, whose rows
            are those of all groups, only those of trajectories with a signal.
        probs: Keep probability of each phase that was sampled with, ``[K]`` float64.
        score: C of this batch (equation 5), ``[K]`` float64, nan without evidence.
        candidates: Chunks a trajectory that could have been kept, by phase, ``[K]`` float64.
        kept: Chunks a trajectory that were kept, by phase, ``[K]`` float64 (the paper's figure 6).
    """

    index: Tensor
    weight: Tensor
    full: int
    probs: Tensor
    score: Tensor
    candidates: Tensor
    kept: Tensor


def select_chunks(
    batch: TensorDictBase,
    keep: KeepProbabilities,
    *,
    budget: int = 12,
    selection: str = "pcm",
    padding: str = "drop",
    generator: Generator | None = None,
) -> Selection:
    """Score the phases, refresh the keep probabilities, choose chunks by a rule (algorithm 1).

    Args:
        batch: ``[M]`` rows in the schema, one row a chunk: actions ``("vla_action", "chunk") [M, L, D]``,
            ``"action_is_pad" [M, L]``, ``"phase"`` (-1 for a chunk never executed), ``"success"``, ``"group_id"`` and
            ``"episode_id"`` ``[M]``, ``"advantage"`` if there is one (otherwise a rule that asks for it gets equation
            1), and what the rule reads. Complete groups only: a trajectory missing from its group would bias C. With
            ``"chunk_id"``, the chunks of an episode must be in their order. Observations are not read.
        keep: The keep probabilities; its buffers take this batch's score.
        budget: B, chunks a trajectory, at least 1.
        selection: A name in :data:`pcm_rl.rules.RULES`, or ``module:function`` of a rule of one's own.
        padding: ``"drop"`` (exact and free): chunks never executed are no candidates. ``"keep"`` is the paper's
            baseline: they are candidates too, weigh the floor probability, and cost compute for a zero loss.
        generator: Source of randomness.

    Returns:
        A :class:`Selection`. ``index`` is empty for an empty batch.

    Raises:
        KeyError: For a missing entry.
        ValueError: For an unknown option, a budget below 1, shapes that do not fit, a non-binary success, an advantage
            that is not finite, a success or group that changes within an episode, or a rule that keeps what it may not.

    Warns:
        PhaseWarning: If a rule that weighs phases gets a batch in which all chunks have one phase.
    """
    rule = check_options(budget, selection, padding)
    given, batch = batch, _columns(batch, rule)
    valid, phase = ~batch.get(IS_PAD), batch.get(PHASE)
    rows = EpisodeIndex(batch.get(EPISODE))
    check_order(given, rows)
    won = _of_episodes(SUCCESS, batch.get(SUCCESS), rows)
    number, groups = numbered(_of_episodes(GROUP, batch.get(GROUP), rows))
    side = torch.add(number, won, alpha=groups).index_select(0, rows.row)
    steps = valid.sum(-1)
    executed = steps > 0
    score, count, _ = divergence_of(batch.get(CHUNK), phase, side, groups, valid, steps, executed, keep.num_phases)
    probs = keep.update(score)

    counts = count.sum((0, 1))
    if rule.by_phase:
        _warn_if_one_phase(counts.tolist(), len(phase))
    allowed = executed if padding == "drop" else torch.ones_like(executed)
    candidates = Candidates(batch, rows, executed, allowed, keep)
    kept = rule.choose(candidates, budget, generator)
    index, trajectory = _checked_index(kept, candidates, rule, budget, selection)
    trajectories = max(rows.shape[0], 1)
    return Selection(
        index=index,
        weight=_row_weights(candidates, index, trajectory, steps, rule),
        full=int((candidates.signal & executed if rule.budget == "batch" else executed).count_nonzero()),
        probs=probs,
        score=score.cpu(),
        candidates=counts.double().cpu() / trajectories,
        kept=_phase_counts(phase.index_select(0, index), keep.num_phases).double().cpu() / trajectories,
    )


def check_options(budget: int, selection: str, padding: str) -> Rule:
    """The rule that ``selection`` names; ``ValueError`` for a budget below 1 or an unknown selection or padding."""
    rule = find_rule(selection)
    if padding not in PADDINGS:
        raise ValueError(f"unknown padding {padding!r}; choose one of {', '.join(PADDINGS)}")
    whole_number("budget", budget, unit="chunk per trajectory")
    return rule


def trajectory_weights(episode: Tensor, valid: Tensor) -> Tensor:
    """Row weights that turn a mean over rows into a mean over trajectories of the mean over their tokens.

    ``w = R / I * tokens(row) / tokens(trajectory)`` for R rows of I trajectories. They are fixed before the batch is
    split, so the row-weighted mean of the minibatch losses is the same for every split.

    Args:
        episode: Trajectory of each row, ``[R]`` int64.
        valid: ``[R, L]`` bool, executed steps.

    Returns:
        ``[R]`` float32 with mean 1. A trajectory without executed steps gets 0 and is not counted.
    """
    return (trajectory_shares(episode, valid) * len(episode)).float()


def _columns(batch: TensorDictBase, rule: Rule) -> TensorDictBase:
    """What the rule gets: the light entries, columns as the schema has them."""
    given = (ADVANTAGE,) if ADVANTAGE in batch.keys() else ()
    keys = (*ALWAYS_READ, *rule.reads, *given)
    columns = check_batch(batch, keys)
    light = batch.select(*keys)
    for key, column in columns.items():
        if column is not light.get(key):
            light.set(key, column)
    return light


def _row_weights(candidates: Candidates, index: Tensor, trajectory: Tensor, steps: Tensor, rule: Rule) -> Tensor:
    """Weights of the kept rows: of a mean over what is kept, or their part of the whole batch's mean."""
    if rule.budget == "batch":
        share = candidates.share[index]
    else:
        share = shares_of_steps(trajectory, candidates.episodes.shape[0], steps.index_select(0, index))
    return (share * len(index)).float()


def _checked_index(kept: Tensor, candidates: Candidates, rule: Rule, budget: int, name: str) -> tuple[Tensor, Tensor]:
    """Rows that the rule keeps, ``[R]``, and the trajectory of each.

    What it must not give is refused before anything is trained on it.
    """
    rows = candidates.executed
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != rows.shape:
        what = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
        raise ValueError(f"the rule {name} must return bool {tuple(rows.shape)}, one entry a row, got {what}")
    if not torch.equal(kept & candidates.allowed, kept):
        raise ValueError(f"the rule {name} keeps rows that are no candidates; take them from candidates.allowed")
    index = kept.nonzero().squeeze(-1)
    trajectory = candidates.episodes.row.index_select(0, index)
    if rule.budget == "trajectory" and len(index):
        most = int(torch.bincount(trajectory).max())
        if most > budget:
            raise ValueError(f"the rule {name} keeps {most} chunks of a trajectory, more than the budget of {budget}")
    if rule.budget == "batch" and len(index) > candidates.affordable(budget):
        raise ValueError(
            f"the rule {name} keeps {len(index)} chunks, more than the {candidates.affordable(budget)} that a "
            f"budget of {budget} a trajectory allows"
        )
    return index, trajectory


def _phase_counts(phase: Tensor, num_phases: int) -> Tensor:
    """Chunks of each phase, ``[K]``; negative phases are left out."""
    return torch.bincount(phase.clamp_min(-1) + 1, minlength=num_phases + 1)[1:]


def _of_episodes(name: str, value: Tensor, rows: EpisodeIndex) -> Tensor:
    """Value of each episode, ``[I]``, of ``value [M]``, which must not change within one."""
    first = value.index_select(0, rows.first)
    expected = first.index_select(0, rows.row)
    if not torch.equal(value, expected):
        raise ValueError(
            f"{name} changes within an episode, at row {int((value != expected).nonzero()[0])}; rows must carry the id "
            "of their own episode"
        )
    return first


def _warn_if_one_phase(counts: list[int], rows: int) -> None:
    # a handful of rows may well be one phase; a batch should not be
    if rows >= 32 and sum(count > 0 for count in counts) == 1:
        warnings.warn(
            f"all {max(counts)} chunks are in phase {counts.index(max(counts))}: weighting by phase is uniform "
            "sampling here. Check gripper_index and close_above, or give a labeller that fits this task.",
            PhaseWarning,
            stacklevel=3,
        )
