"""One call that decides which chunks go through the backward pass, and with what weight."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pcm_rl.advantage import as_binary, check_ids
from pcm_rl.allocation import KeepProbabilities
from pcm_rl.batchwide import has_signal, keep_largest, outcome_advantage
from pcm_rl.divergence import action_divergence
from pcm_rl.episodes import EpisodeIndex
from pcm_rl.phases import PhaseWarning
from pcm_rl.sampling import sample_chunks

SELECTIONS = ("pcm", "random", "top-phase", "top-advantage", "none")
PADDINGS = ("drop", "keep")


@dataclass(frozen=True)
class Selection:
    """The kept rows, and what led to them.

    Attributes:
        index: Rows of the batch that are kept, ``[R]`` int64, ascending.
        weight: Weight of each kept row, ``[R]`` float32 with mean 1. The loss ``mean over rows of weight * (mean over
            the row's executed tokens)`` is then the mean over trajectories of the mean over their kept tokens. Under
            ``"top-advantage"`` the mean is not 1: the loss is the kept rows' part of the whole batch's.
        probs: Keep probability of each phase that was sampled with, ``[K]`` float64.
        score: C of this batch (equation 5), ``[K]`` float64, nan without evidence.
        candidates: Chunks a trajectory that could have been kept, by phase, ``[K]`` float64.
        kept: Chunks a trajectory that were kept, by phase, ``[K]`` float64 (the paper's figure 6).
    """

    index: Tensor
    weight: Tensor
    probs: Tensor
    score: Tensor
    candidates: Tensor
    kept: Tensor


def select_chunks(
    actions: Tensor,
    phase: Tensor,
    success: Tensor,
    group: Tensor,
    episode: Tensor,
    keep: KeepProbabilities,
    *,
    valid: Tensor | None = None,
    advantage: Tensor | None = None,
    budget: int = 12,
    selection: str = "pcm",
    padding: str = "drop",
    generator: Generator | None = None,
) -> Selection:
    """Score the phases, refresh the keep probabilities, draw ``budget`` chunks a trajectory (algorithm 1).

    Args:
        actions: ``[M, L, D]`` actions sent to the environment, one row a chunk; complete groups only, since a
            trajectory missing from its group would bias C.
        phase: ``[M]`` int64; -1 for a chunk never executed.
        success: ``[M]`` binary, constant within an episode.
        group: ``[M]`` int64, constant within an episode.
        episode: ``[M]`` int64, the trajectory of each row.
        keep: The keep probabilities; its buffers take this batch's score.
        valid: ``[M, L]`` bool, True where a step was executed; None means all were.
        advantage: ``[M]``, the advantage that each chunk will have in the loss, which only ``"top-advantage"`` looks
            at; None works out equation 1 from the outcomes.
        budget: B, chunks a trajectory, at least 1; ``"none"`` does not use it.
        selection: ``"pcm"`` draws with the phases' keep probabilities as weights; ``"random"`` uniformly;
            ``"top-phase"`` uniformly among the chunks of the phase with the largest probability only (a trajectory
            without that phase keeps nothing; before any evidence all phases count); ``"none"`` keeps all, which is
            full GRPO. ``"top-advantage"`` spends ``sum_i min(budget, N_i)`` on the batch as a whole, without phases: on
            the chunks with the largest ``|A| / N_i``, with the weight they have in full GRPO. Chunks without an
            advantage are never kept, but trajectories of groups with one outcome have their part in the budget, so give
            it the whole batch.
        padding: ``"drop"`` (exact and free): chunks never executed are no candidates. ``"keep"`` is the paper's
            baseline: they are candidates too, weigh the floor probability, and cost compute for a zero loss.
        generator: Source of randomness.

    Returns:
        A :class:`Selection`. ``index`` is empty for an empty batch.

    Raises:
        ValueError: For an unknown option, a budget below 1, shapes that do not fit, a non-binary success, an advantage
            that is not finite, or a success or group that changes within an episode.

    Warns:
        PhaseWarning: If a phase-weighted selection gets a batch in which all chunks have one phase.
    """
    check_options(budget, selection, padding)
    if valid is None:
        valid = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device)
    success = as_binary(success)
    check_ids("episode", episode, success)
    check_ids("group", group, success)
    rows = EpisodeIndex(episode)
    _check_constant("success", success, rows)
    _check_constant("group", group, rows)
    score, _, _ = action_divergence(actions, phase, success, group, num_phases=keep.num_phases, valid=valid)
    probs = keep.update(score).to(actions.device)

    executed = valid.any(-1)
    candidate = executed if padding == "drop" else torch.ones_like(executed)
    if selection in ("pcm", "top-phase"):
        _warn_if_one_phase(phase[executed], len(success))
    kept, whole = candidate, None  # whole: shares of all rows in the mean, of which the kept ones have a part
    if selection == "top-advantage":
        advantage = outcome_advantage(success, group, rows) if advantage is None else _checked(advantage, success)
        whole = _trajectory_shares(episode, valid & has_signal(advantage, valid, rows).unsqueeze(-1))
        kept = keep_largest(advantage.double().abs() * whole, executed, rows, budget, generator)
    elif selection != "none":
        weight = torch.where(phase >= 0, probs[phase.clamp_min(0)], keep.floor)
        if selection == "random":
            weight = torch.ones_like(weight)
        elif selection == "top-phase":
            candidate = candidate & _in_top_phase(phase, keep)
        dense = rows.dense(weight, 0.0), rows.dense(candidate, False)
        kept = rows.flat(sample_chunks(dense[0], budget, valid=dense[1], generator=generator))
    index = kept.nonzero().squeeze(-1)
    return Selection(
        index=index,
        weight=_row_weights(rows.row, valid, index, whole),
        probs=probs.cpu(),
        score=score.cpu(),
        candidates=_per_trajectory(phase[executed], rows.shape[0], keep.num_phases),
        kept=_per_trajectory(phase[index], rows.shape[0], keep.num_phases),
    )


def check_options(budget: int, selection: str, padding: str) -> None:
    """Raise ``ValueError`` for a budget below 1 or an unknown selection or padding."""
    if selection not in SELECTIONS:
        raise ValueError(f"unknown selection {selection!r}; choose one of {', '.join(SELECTIONS)}")
    if padding not in PADDINGS:
        raise ValueError(f"unknown padding {padding!r}; choose one of {', '.join(PADDINGS)}")
    if budget < 1:
        raise ValueError(f"budget must be at least 1 chunk per trajectory, got {budget}")


def trajectory_weights(episode: Tensor, valid: Tensor) -> Tensor:
    """Row weights that turn a mean over rows into a mean over trajectories of the mean over their tokens.

    ``w = R / I * tokens(row) / tokens(trajectory)`` for R rows of I trajectories. They are fixed before the batch is
    split, so the row-weighted mean of the minibatch losses is the same for every split.

    Args:
        episode: ``[R]`` int64.
        valid: ``[R, L]`` bool.

    Returns:
        ``[R]`` float32 with mean 1; 0 for a row without an executed step.
    """
    return (_trajectory_shares(episode, valid) * len(episode)).float()


def _trajectory_shares(episode: Tensor, valid: Tensor) -> Tensor:
    """Share of every row in a mean over trajectories of the mean over their tokens, ``[R]`` float64, summing to 1."""
    if not episode.numel():
        return torch.zeros(0, dtype=torch.float64, device=episode.device)
    _, trajectory = torch.unique(episode, return_inverse=True)
    steps = valid.sum(-1).double()
    total = torch.zeros(int(trajectory.max()) + 1, dtype=torch.float64, device=steps.device)
    total.index_add_(0, trajectory, steps)
    number = (total > 0).sum()
    return steps / total[trajectory].clamp_min(1) / number.clamp_min(1)


def _row_weights(episode: Tensor, valid: Tensor, index: Tensor, whole: Tensor | None) -> Tensor:
    """Weights of the kept rows: of a mean over what is kept, or their part of a mean with shares ``whole [M]``."""
    if whole is None:
        return trajectory_weights(episode[index], valid[index])
    return (whole[index] * len(index)).float()


def _checked(advantage: Tensor, success: Tensor) -> Tensor:
    if advantage.shape != success.shape:
        raise ValueError(f"advantage must have shape {tuple(success.shape)}, got {tuple(advantage.shape)}")
    if not bool(torch.isfinite(advantage).all()):
        raise ValueError(f"advantage must be finite, got {advantage[~torch.isfinite(advantage)][0].item()}")
    return advantage


def _per_trajectory(phase: Tensor, trajectories: int, num_phases: int) -> Tensor:
    return torch.bincount(phase[phase >= 0], minlength=num_phases).double().cpu() / max(trajectories, 1)


def _in_top_phase(phase: Tensor, keep: KeepProbabilities) -> Tensor:
    """Rows of the phase with the largest probability among those that have a score."""
    if not bool(keep.scored.any()):
        return torch.ones_like(phase, dtype=torch.bool)
    return phase == int(torch.where(keep.scored, keep.probs, -1.0).argmax())


def _check_constant(name: str, value: Tensor, rows: EpisodeIndex) -> None:
    first = value.new_zeros(rows.shape[0])
    first[rows.row] = value
    changed = first[rows.row] != value
    if bool(changed.any()):
        raise ValueError(
            f"{name} changes within an episode, at row {int(changed.nonzero()[0])}; rows must carry the id "
            "of their own episode"
        )


def _warn_if_one_phase(phase: Tensor, rows: int) -> None:
    # a handful of rows may well be one phase; a batch should not be
    if rows >= 32 and phase.numel() and bool((phase == phase[0]).all()):
        warnings.warn(
            f"all {phase.numel()} chunks are in phase {int(phase[0])}: weighting by phase is uniform sampling here. "
            "Check gripper_index and close_above, or give a labeller that fits this task.",
            PhaseWarning,
            stacklevel=3,
        )
