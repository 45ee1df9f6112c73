"""Choosing chunks with one budget for the whole batch, by how much each weighs in the objective."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pcm_rl.advantage import group_advantage
from pcm_rl.episodes import EpisodeIndex
from pcm_rl.proportional import proportional_probabilities, systematic_draw

BATCHWIDE = ("top-advantage", "weighted")


def advantage_score(success: Tensor, group: Tensor, rows: EpisodeIndex, weight: Tensor) -> Tensor:
    """``|A_i| * weight``: the factor on a row's mean token gradient in the objective, up to one common factor.

    A trajectory's weight is shared among its chunks, so a chunk of a short success weighs several times what one of a
    failure that ran to the horizon does. Rows of groups with one outcome only, and rows without an executed step,
    score 0: they add nothing to the policy gradient. A is worked out from the outcomes, whatever advantage the batch
    carries.

    Args:
        success: ``[M]`` binary, constant within an episode.
        group: ``[M]`` int64, constant within an episode.
        rows: Which rows are one episode.
        weight: ``[M]`` weights of full GRPO (:func:`pcm_rl.selection.trajectory_weights`).

    Returns:
        ``[M]`` float64.
    """
    number = rows.shape[0]
    outcome, groups = success.new_zeros(number), group.new_zeros(number)
    outcome[rows.row], groups[rows.row] = success, group
    return group_advantage(outcome, groups).double().abs()[rows.row] * weight.double()


def choose_batchwide(
    selection: str,
    score: Tensor,
    candidate: Tensor,
    rows: EpisodeIndex,
    budget: int,
    generator: Generator | None,
) -> tuple[Tensor, Tensor]:
    """Spend on the whole batch what ``budget`` chunks a trajectory would cost.

    Args:
        selection: ``"top-advantage"`` keeps the rows with the largest scores, ties (all full chunks of a trajectory
            have one score) broken at random; ``"weighted"`` draws with ``pi = min(1, c * score)``, systematically
            along the rows.
        score: ``[M]`` non-negative.
        candidate: ``[M]`` bool.
        rows: Which rows are one episode.
        budget: B. Exactly ``sum_i min(B, candidates of i)`` rows are kept, as many as B a trajectory.
        generator: Source of randomness; it draws on its own device.

    Returns:
        What is kept, ``[M]`` bool, and what to divide its weight by, ``[M]`` float64: the inclusion probability under
        ``"weighted"``, else 1.
    """
    total = int(torch.bincount(rows.row[candidate]).clamp_max(budget).sum())
    index = candidate.nonzero().squeeze(-1)
    kept, divisor = torch.zeros_like(candidate), torch.ones_like(score)
    if selection == "weighted":
        probability = proportional_probabilities(score[index], total)
        kept[index] = systematic_draw(probability, generator=generator)
        divisor[index] = probability
    else:
        source = generator.device if generator is not None else score.device
        index = index[torch.randperm(len(index), generator=generator, device=source).to(score.device)]
        order = score[index].sort(descending=True, stable=True).indices
        kept[index[order[:total]]] = True
    return kept, divisor
