"""Where successes and failures part: the proxy C_c (equation 5), and the true V_c (equation 4) to compare it with."""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from pcm_rl.episodes import numbered
from pcm_rl.inputs import binary, ids, mask, whole_number

_PIECE = 4096  # rows, about


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
    number, groups = numbered(ids("group", group, chunks))
    if valid is None:
        valid = torch.ones(chunks, length, dtype=torch.bool, device=actions.device)
    steps = mask("valid", valid, (chunks, length)).sum(-1)
    side = torch.add(number, won, alpha=groups)
    score, count, evidence = divergence_of(actions, phase, side, groups, valid, steps, steps > 0, num_phases)
    counted = (count * evidence).sum(1)
    return score, counted[1], counted[0]


def divergence_of(
    actions: Tensor,
    phase: Tensor,
    side: Tensor,
    groups: int,
    valid: Tensor,
    steps: Tensor,
    executed: Tensor,
    num_phases: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """C of columns that are known to fit.

    Args:
        actions: As for :func:`action_divergence`, with ``phase [M]`` int64, ``valid`` and ``num_phases``.
        phase: As above.
        side: Group of each row, numbered from 0, ``[M]``; after a success ``groups`` more.
        groups: G.
        valid: As above.
        steps: Executed steps of each row, ``[M]``.
        executed: ``steps > 0``.
        num_phases: As above.

    Returns:
        ``score [K]`` float64; ``count [2, G, K]`` int64, the executed chunks of failures and successes; ``evidence
        [G, K]`` bool, the groups in which a phase can be compared.
    """
    _, length, dimensions = actions.shape
    _check_phases(phase, num_phases)
    # one cell per (outcome, group, phase); rows that take no part go to one more, which is thrown away
    cells = 2 * groups * num_phases
    cell = torch.where(executed & (phase >= 0), torch.add(phase, side, alpha=num_phases), cells)
    cut = (steps < length).nonzero().squeeze(-1)  # few rows have padded steps: an episode's last one
    total = _sums(actions, valid, cut, cell, cells + 1)[:cells]
    count = torch.bincount(cell, minlength=cells + 1)
    taken = count.double().unsqueeze(-1)
    if len(cut):
        padded = (~valid.index_select(0, cut)).double()
        taken = taken.repeat(1, length).index_add_(0, cell.index_select(0, cut), padded, alpha=-1)
    taken = taken[:cells].view(2, groups * num_phases, taken.shape[-1])
    if total.numel() and not all(math.isfinite(end) for end in total.aminmax()):
        raise ValueError("actions hold NaN or infinity in executed steps")

    mean = total.view(2, groups * num_phases, length, dimensions) / taken.unsqueeze(-1)
    # an action entry that nobody executed on one side, whose mean is 0 / 0 = nan, says nothing
    apart = (mean[1] - mean[0]).nan_to_num_(0.0, torch.inf, -torch.inf)
    distance = torch.linalg.vector_norm(apart.flatten(1), dim=-1).view(groups, num_phases)
    evidence = (taken > 0).all(0).any(-1).view(groups, num_phases)
    score = distance.sum(0) / evidence.sum(0)  # 0 / 0 = nan: no evidence
    return score, count[:cells].view(2, groups, num_phases), evidence


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
    chunks, length, dimensions = actions.shape
    total = torch.zeros(cells, length * dimensions, dtype=torch.float64, device=actions.device)
    numbers, start = cut.tolist(), 0
    size = max(1, math.ceil(chunks / max(1, round(chunks / _PIECE))))
    for first in range(0, chunks, size):
        executed = actions[first : first + size].to(torch.float64, copy=True)
        end = bisect_left(numbers, first + size, start)
        if end > start:
            rows = cut[start:end]
            padded = ~valid.index_select(0, rows).unsqueeze(-1)
            rows = rows - first
            executed.index_copy_(0, rows, executed.index_select(0, rows).masked_fill_(padded, 0.0))
        total.index_add_(0, cell[first : first + size], executed.flatten(1))
        start = end
    return total


def _check_phases(phase: Tensor, num_phases: int) -> None:
    if len(phase) and int(phase.max()) >= num_phases:
        raise ValueError(f"phase must be below num_phases={num_phases}, got {int(phase.max())}")
