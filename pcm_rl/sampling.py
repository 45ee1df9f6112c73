"""Fixed-budget sampling of chunks without replacement (equation 10)."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

# below log of the smallest positive float64 by more than any race can make up
_LOG_OF_ZERO = -2000.0


def sample_chunks(
    weight: Tensor, budget: int, *, valid: Tensor | None = None, generator: Generator | None = None
) -> Tensor:
    """Draw ``min(budget, number valid)`` chunks of every trajectory, Plackett-Luce (equation 10).

    Sequential sampling without replacement, each draw with probability proportional to the weights of those left. It
    is done as an exponential race (the ``budget`` smallest of ``E_k / w_k``), which has exactly that distribution.

    Args:
        weight: ``[..., N]`` non-negative, any scale a row. Zero-weight chunks are taken only, uniformly, when no other
            valid chunk is left.
        budget: B, at least 1.
        valid: ``[..., N]`` bool, False for chunks that are no candidates; None means all are.
        generator: Source of randomness; its draws are made on its own device, so a CPU generator gives the same
            chunks whatever the device of ``weight``.

    Returns:
        ``[..., N]`` bool with exactly ``min(budget, number valid)`` True a row.

    Raises:
        ValueError: If ``budget < 1``, a weight is negative, NaN or infinite, or shapes do not fit.
    """
    valid = _check(weight, budget, valid)
    log_weight = torch.where(weight > 0, weight.double().log(), _LOG_OF_ZERO)
    source = generator.device if generator is not None else weight.device
    race = torch.empty(weight.shape, dtype=torch.float64, device=source).exponential_(generator=generator)
    score = log_weight - race.to(weight.device).log()
    score = torch.where(valid, score, -torch.inf)
    top = score.topk(min(budget, weight.shape[-1]), dim=-1).indices
    return torch.zeros_like(valid).scatter_(-1, top, True) & valid


def inclusion_probabilities(weight: Tensor, budget: int) -> Tensor:
    """Probability that each chunk is among the ``budget`` drawn by :func:`sample_chunks`.

    For more than one draw this is *not* ``budget * w / sum(w)``. In the exponential race, chunk k arrives at time t
    with density ``w_k exp(-w_k t)`` and is kept if fewer than ``budget`` others came before; the count of those is
    Poisson-binomial. The integral over ``log t`` is done by the trapezoidal rule, to about 1e-12.

    Args:
        weight: ``[..., N]`` non-negative. Zero-weight chunks have probability 0 while enough others exist; with fewer
            positive weights than ``budget`` the remaining draws fall uniformly on them.
        budget: B, at least 1.

    Returns:
        ``[..., N]`` float64, each row summing to ``min(budget, N)``.

    Raises:
        ValueError: If ``budget < 1`` or a weight is negative, NaN or infinite.
    """
    _check(weight, budget, None)
    rows = weight.double().reshape(math.prod(weight.shape[:-1]), weight.shape[-1])
    out = torch.stack([_inclusion_row(row, budget) for row in rows]) if rows.numel() else rows.clone()
    return out.reshape(weight.shape)


def _inclusion_row(weight: Tensor, budget: int) -> Tensor:
    """``weight [N]`` -> ``[N]``."""
    positive = weight > 0
    number = int(positive.sum())
    out = torch.zeros_like(weight)
    if budget >= number:
        rest = weight.numel() - number
        out[positive] = 1.0
        out[~positive] = min(budget - number, rest) / max(rest, 1)
        return out
    w = weight[positive] / weight[positive].max()

    # The integrand in u = log t is a bump about 1 / sqrt(N) wide at its narrowest; four nodes in that width leave an
    # error near rounding. It is below 1e-17 outside of these limits: nobody has arrived before, everybody has after.
    step = min(0.2, 0.4 / math.sqrt(number))
    low, high = math.log(1e-17), math.log(40.0) - math.log(float(w.min()))
    u = torch.arange(low, high + step, step, dtype=torch.float64, device=weight.device)
    wt = u.exp().unsqueeze(-1) * w  # [Q, N]
    early = _count_below(-torch.expm1(-wt), budget)
    out[positive] = (wt * torch.exp(-wt) * early).sum(0) * step
    return out


def _count_below(arrived: Tensor, budget: int) -> Tensor:
    """P(fewer than ``budget`` of the *other* chunks arrived), for each chunk: ``arrived [Q, N]`` -> ``[Q, N]``."""
    nodes, count = arrived.shape
    others = ~torch.eye(count, dtype=torch.bool, device=arrived.device)
    below = arrived.new_zeros(nodes, count, budget)  # distribution of the count, truncated at budget - 1
    below[..., 0] = 1.0
    for k in range(count):
        p = torch.where(others[k], arrived[:, k : k + 1], 0.0).unsqueeze(-1)
        shifted = torch.nn.functional.pad(below, (1, 0))[..., :budget]
        below = below * (1 - p) + shifted * p
    return below.sum(-1)


def _check(weight: Tensor, budget: int, valid: Tensor | None) -> Tensor:
    if budget < 1:
        raise ValueError(f"budget must be at least 1 chunk per trajectory, got {budget}")
    if weight.ndim < 1:
        raise ValueError(f"weight must have shape [..., N], got {tuple(weight.shape)}")
    if valid is None:
        valid = torch.ones_like(weight, dtype=torch.bool)
    if valid.shape != weight.shape or valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool {tuple(weight.shape)}, got {valid.dtype} {tuple(valid.shape)}")
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError("weights must be finite and not negative")
    return valid
