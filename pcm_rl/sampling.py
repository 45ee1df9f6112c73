"""Fixed-budget sampling of chunks without replacement (equation 10)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pcm_rl.inputs import mask, weights, whole_number

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
        ValueError: If ``budget`` is no whole number of at least 1, a weight is negative, NaN or infinite, ``valid`` is
            not bool, or shapes do not fit.
    """
    budget = whole_number("budget", budget, unit="chunk per trajectory")
    weight = weights(weight)
    valid = torch.ones_like(weight, dtype=torch.bool) if valid is None else mask("valid", valid, weight.shape)
    return first_of_race(log_weights(weight, valid), budget, generator) & valid


def log_weights(weight: Tensor, valid: Tensor) -> Tensor:
    """What :func:`first_of_race` draws by, float64: logarithms of weights, the smallest of all where not ``valid``."""
    return weight.double().log().clamp_min_(_LOG_OF_ZERO).masked_fill_(~valid, -torch.inf)


def first_of_race(log_weight: Tensor, budget: int, generator: Generator | None) -> Tensor:
    """``[..., N]`` bool, ``min(budget, N)`` True a row; some of them no candidates where there are fewer of these."""
    source = generator.device if generator is not None else log_weight.device
    race = torch.empty(log_weight.shape, dtype=torch.float64, device=source).exponential_(generator=generator)
    score = log_weight - race.to(log_weight.device).log_()
    top = score.topk(min(budget, score.shape[-1]), dim=-1, sorted=False).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, top, True)
