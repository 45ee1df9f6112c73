"""Where successes and failures part: the proxy C_c (equation 5), and the true V_c (equation 4) to compare it with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pcm_rl.episodes import number_ids
from pcm_rl.inputs import binary, ids, mask, whole_number

_PIECE = 4096  # rows


def action_divergence(
    actions: Tensor,
    phase: Tensor,
    success: Tensor,
    group: Tensor,
    *,
    num_phases: int = 5,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Success-failure action variance of every phase (equation 5).

    ``C_c = || E[a | r=1, phase=c] - E[a | r=0, phase=c] ||_2`` with ``a`` the executed chunk flattened to ``L * D``:
    the norm, not its square. It is computed in each group that has both outcomes and has the phase in both, then
    averaged over those groups (pooling groups would mix differences between tasks into C; our reading). Steps never
    executed are left out of both means.

    Args:
        actions: Actions sent to the environment, ``[M, L, D]`` (M chunks), any float dtype.
        phase: Phase of each chunk, ``[M]`` or ``[M, 1]``, any integer type; a negative phase takes no part.
        success: Outcome of each chunk's trajectory, ``[M]`` or ``[M, 1]`` binary.
        group: Group of each chunk's trajectory, ``[M]`` or ``[M, 1]``, any integer type.
        num_phases: K, at least 1.
        valid: True where a step was executed, ``[M, L]`` bool; None means all were.

    Returns:
        ``score [K]`` float64, nan for a phase without evidence; ``count_success [K]`` and ``count_failure [K]`` int64,
        the chunks behind it.

    Raises:
        ValueError: If shapes do not fit, ``success`` is not binary, a phase is ``>= num_phases``, or an executed action
            is not finite.
    """
    num_phases = whole_number("num_phases", num_phases)
    if actions.ndim != 3 or not actions.is_floating_point():
        raise ValueError(f"actions must be float [M, L, D], got {actions.dtype} {tuple(actions.shape)}")
    chunks, length, _ = actions.shape
    phase, won = ids("phase", phase, chunks), binary("success", success, chunks)
    group_number = number_ids(ids("group", group, chunks))
    if valid is None:
        valid = torch.ones(chunks, length, dtype=torch.bool, device=actions.device)
    steps = mask("valid", valid, (chunks, length)).sum(-1)
    return divergence_of(actions, phase, won, group_number, valid, steps, num_phases)


def divergence_of(
    actions: Tensor, phase: Tensor, won: Tensor, group: Tensor, valid: Tensor, steps: Tensor, num_phases: int
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`action_divergence` of columns that are known to fit: ``won`` bool, groups numbered from 0.

    ``steps [M]`` counts the executed steps of each row.
    """
    chunks, length, dimensions = actions.shape
    _check_phases(phase, num_phases)
    groups = int(group.max()) + 1 if chunks else 0
    # one cell per (group, phase, outcome); rows that take no part go to one more, which is thrown away
    cells = groups * num_phases * 2
    part = (phase >= 0) & (steps > 0)
    cell = ((group * num_phases + phase) * 2 + won).masked_fill_(~part, cells)
    cut = (steps < length).nonzero().squeeze(-1)  # few rows have padded steps: an episode's last one
    total = _sums(actions, valid, cut, cell, cells + 1)[:cells]
    count = torch.bincount(cell, minlength=cells + 1)[:cells]
    padded = total.new_zeros(cells + 1, length).index_add_(0, cell[cut], (~valid[cut]).double())[:cells]
    taken = (count.unsqueeze(-1) - padded).view(groups, num_phases, 2, length, 1)
    if total.numel() and not all(math.isfinite(end) for end in total.aminmax()):
        raise ValueError("actions hold NaN or infinity in executed steps")

    mean = total.view(groups, num_phases, 2, length, dimensions) / taken.clamp_min(1)
    # an action entry that nobody executed on one side says nothing
    both = (taken > 0).all(2)
    distance = (mean[:, :, 1] - mean[:, :, 0]).masked_fill_(~both, 0.0).flatten(2).norm(dim=-1)
    evidence = both.flatten(2).any(-1)
    score = distance.masked_fill_(~evidence, 0.0).sum(0) / evidence.sum(0)  # 0 / 0 = nan: no evidence
    counted = (count.view(groups, num_phases, 2) * evidence.unsqueeze(-1)).sum(0)
    return score, counted[:, 1], counted[:, 0]


def gradient_variance(gradient: Tensor, phase: Tensor, *, num_phases: int = 5) -> Tensor:
    """Trace of the per-phase gradient variance (equation 4), from one gradient a chunk.

    ``V_c = Var(A_i grad log pi(a_ik | s_ik) | phase = c)``, the sum over parameters. It costs one backward pass a chunk
    and is meant for studies of how well C ranks phases, not for training.

    Args:
        gradient: ``[M, P]``, ``A_i`` times the gradient of the chunk's log-prob (all parameters or a projection).
        phase: ``[M]`` or ``[M, 1]``, any integer type; negative phases take no part.
        num_phases: K, at least 1.

    Returns:
        ``[K]`` float64, nan for a phase with fewer than two chunks.

    Raises:
        ValueError: If shapes do not fit or a phase is ``>= num_phases``.
    """
    num_phases = whole_number("num_phases", num_phases)
    if gradient.ndim != 2:
        raise ValueError(f"expected gradient [M, P], got {tuple(gradient.shape)}")
    phase = ids("phase", phase, len(gradient))
    _check_phases(phase, num_phases)
    out = torch.full((num_phases,), torch.nan, dtype=torch.float64, device=gradient.device)
    for c in range(num_phases):
        rows = gradient[phase == c].double()
        if len(rows) >= 2:
            out[c] = rows.var(0, unbiased=True).sum()
    return out


def _sums(actions: Tensor, valid: Tensor, cut: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Sum of the executed actions of the rows in each cell, ``[cells, L * D]`` float64.

    In pieces, whose float64 copies stay in the processor's cache. The rows ``cut`` have steps that were not executed.
    """
    total = torch.zeros(cells, actions[0].numel() if len(actions) else 0, dtype=torch.float64, device=actions.device)
    ends = torch.searchsorted(cut, torch.arange(0, len(actions) + _PIECE, _PIECE, device=cut.device)).tolist()
    for number, first in enumerate(range(0, len(actions), _PIECE)):
        executed = actions[first : first + _PIECE].to(torch.float64, copy=True)
        if ends[number] < ends[number + 1]:
            rows = cut[ends[number] : ends[number + 1]]
            executed[rows - first] = executed[rows - first].masked_fill_(~valid[rows].unsqueeze(-1), 0.0)
        total.index_add_(0, cell[first : first + _PIECE], executed.flatten(1))
    return total


def _check_phases(phase: Tensor, num_phases: int) -> None:
    if len(phase) and int(phase.max()) >= num_phases:
        raise ValueError(f"phase must be below num_phases={num_phases}, got {int(phase.max())}")
