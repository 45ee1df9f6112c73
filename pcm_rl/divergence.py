"""Where successes and failures part: the proxy C_c (equation 5), and the true V_c (equation 4) to compare it with."""

from __future__ import annotations

import torch
from torch import Tensor

from pcm_rl.advantage import as_binary, check_ids


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
        phase: Phase of each chunk, ``[M]`` int64; a negative phase takes no part.
        success: Outcome of each chunk's trajectory, ``[M]`` binary.
        group: Group of each chunk's trajectory, ``[M]`` int64.
        num_phases: K.
        valid: True where a step was executed, ``[M, L]`` bool; None means all were.

    Returns:
        ``score [K]`` float64, nan for a phase without evidence; ``count_success [K]`` and ``count_failure [K]`` int64,
        the chunks behind it.

    Raises:
        ValueError: If shapes do not fit, ``success`` is not binary, a phase is ``>= num_phases``, or an executed action
            is not finite.
    """
    chunks, length = _check_chunks(actions, phase, num_phases)
    won = as_binary(success)
    check_ids("phase", phase, won)
    check_ids("group", group, won)
    if valid is None:
        valid = torch.ones(chunks, length, dtype=torch.bool, device=actions.device)
    if valid.shape != (chunks, length) or valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool [{chunks}, {length}], got {valid.dtype} {tuple(valid.shape)}")

    dimensions = actions.shape[2]
    executed = actions.to(torch.float64, copy=True)
    cut = (~valid).any(-1).nonzero().squeeze(-1)  # few rows have padded steps: an episode's last one
    executed[cut] = executed[cut].masked_fill(~valid[cut].unsqueeze(-1), 0.0)
    executed = executed.flatten(1)
    part = (phase >= 0) & valid.any(-1)
    _, group_index = torch.unique(group, return_inverse=True)
    groups = int(group_index.max()) + 1 if chunks else 0
    # one cell per (group, phase, outcome); rows that take no part go to one more, which is thrown away
    cells = groups * num_phases * 2
    cell = torch.where(part, (group_index * num_phases + phase) * 2 + won.long(), cells)
    total = executed.new_zeros(cells + 1, length * dimensions).index_add_(0, cell, executed)[:cells]
    steps = executed.new_zeros(cells + 1, length).index_add_(0, cell, valid.double())[:cells]
    count = torch.bincount(cell, minlength=cells + 1)[:cells]
    if not bool(torch.isfinite(total).all()):
        raise ValueError("actions hold NaN or infinity in executed steps")

    mean = total.view(groups, num_phases, 2, length, dimensions)
    steps = steps.view(groups, num_phases, 2, length, 1)
    mean = mean / steps.clamp_min(1)
    # an action entry that nobody executed on one side says nothing
    both = (steps > 0).all(2)
    distance = torch.where(both, mean[:, :, 1] - mean[:, :, 0], 0.0).flatten(2).norm(dim=-1)
    count = count.view(groups, num_phases, 2)
    evidence = both.flatten(2).any(-1)
    score = torch.where(evidence, distance, 0.0).sum(0) / evidence.sum(0)  # 0 / 0 = nan: no evidence
    counted = (count * evidence.unsqueeze(-1)).sum(0).long()
    return score, counted[:, 1], counted[:, 0]


def gradient_variance(gradient: Tensor, phase: Tensor, *, num_phases: int = 5) -> Tensor:
    """Trace of the per-phase gradient variance (equation 4), from one gradient a chunk.

    ``V_c = Var(A_i grad log pi(a_ik | s_ik) | phase = c)``, the sum over parameters. It costs one backward pass a chunk
    and is meant for studies of how well C ranks phases, not for training.

    Args:
        gradient: ``[M, P]``, ``A_i`` times the gradient of the chunk's log-prob (all parameters or a projection).
        phase: ``[M]`` int64; negative phases take no part.
        num_phases: K.

    Returns:
        ``[K]`` float64, nan for a phase with fewer than two chunks.

    Raises:
        ValueError: If shapes do not fit or a phase is ``>= num_phases``.
    """
    if gradient.ndim != 2 or phase.shape != gradient.shape[:1]:
        raise ValueError(
            f"expected gradient [M, P] and phase [M], got {tuple(gradient.shape)} and {tuple(phase.shape)}"
        )
    if phase.numel() and int(phase.max()) >= num_phases:
        raise ValueError(f"phase must be below num_phases={num_phases}, got {int(phase.max())}")
    out = torch.full((num_phases,), torch.nan, dtype=torch.float64, device=gradient.device)
    for c in range(num_phases):
        rows = gradient[phase == c].double()
        if len(rows) >= 2:
            out[c] = rows.var(0, unbiased=True).sum()
    return out


def _check_chunks(actions: Tensor, phase: Tensor, num_phases: int) -> tuple[int, int]:
    if actions.ndim != 3 or not actions.is_floating_point():
        raise ValueError(f"actions must be float [M, L, D], got {actions.dtype} {tuple(actions.shape)}")
    if phase.shape != actions.shape[:1]:
        raise ValueError(f"phase must have shape [{actions.shape[0]}], got {tuple(phase.shape)}")
    if num_phases < 1:
        raise ValueError(f"num_phases must be at least 1, got {num_phases}")
    if phase.numel() and int(phase.max()) >= num_phases:
        raise ValueError(f"phase must be below num_phases={num_phases}, got {int(phase.max())}")
    return actions.shape[0], actions.shape[1]
