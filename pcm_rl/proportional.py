"""Drawing rows with unequal probabilities that are known exactly, for one budget over a whole batch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def proportional_probabilities(score: Tensor, budget: float) -> Tensor:
    """Inclusion probabilities ``pi = min(1, c * score)`` with the c at which they sum to the budget.

    These are the probabilities that minimise the variance ``sum score^2 (1 / pi - 1)`` of a sum of uncorrelated
    contributions of size ``score``. c is exact: rows are sorted, and the largest are taken for certain until the rest
    of the budget leaves nobody above 1. Rows of score 0 get probability only when all others are certain.

    Args:
        score: ``[M]`` non-negative, any scale.
        budget: Rows in expectation, non-negative; more than M means M.

    Returns:
        ``[M]`` float64 in [0, 1], summing to ``min(budget, M)``.

    Raises:
        ValueError: If a score is negative, NaN or infinite, or the budget is negative.
    """
    if score.ndim != 1 or not bool((torch.isfinite(score) & (score >= 0)).all()):
        raise ValueError(
            f"score must be [M], finite and not negative, got shape {tuple(score.shape)} with "
            f"{int((~(torch.isfinite(score) & (score >= 0))).sum())} entries that are not"
        )
    if not budget >= 0:
        raise ValueError(f"budget must not be negative, got {budget}")
    value = score.double()
    positive = value > 0
    number = int(positive.sum())
    if budget >= number:  # everybody with a score is certain; what is left over falls evenly on the others
        rest = min(1.0, (budget - number) / max(len(value) - number, 1))
        return torch.where(positive, torch.ones_like(value), torch.full_like(value, rest))
    ordered = value.sort(descending=True).values
    certain = torch.arange(number, device=value.device)
    tail = ordered[:number].flip(0).cumsum(0).flip(0)  # sum of the scores from each rank on
    left = budget - certain
    # with k rows certain, c = (budget - k) / tail_k; the first k at which the next row stays at most 1 is the answer
    fits = (left * ordered[:number] <= tail) & (left >= 0)
    k = int(fits.long().argmax())
    return (value * (left[k] / tail[k])).clamp_max(1.0)


def systematic_draw(probability: Tensor, *, start: float | None = None, generator: Generator | None = None) -> Tensor:
    """Draw rows with the given inclusion probabilities at even distances along their order.

    The probabilities are laid end to end on a line; the marks ``start, start + 1, ...`` pick the rows they fall on.
    Over a uniform start the inclusion probabilities are exact. The number of rows is their sum (rounded down or up
    where that is no integer), and likewise for every stretch of neighbours: a trajectory, or a part of one, gets its
    share in every draw. Some pairs of rows are never drawn together, so the variance has no unbiased estimate.

    Args:
        probability: ``[M]`` in [0, 1].
        start: The first mark, in [0, 1); None draws it.
        generator: Source of randomness; it draws on its own device.

    Returns:
        ``[M]`` bool.

    Raises:
        ValueError: If a probability is outside [0, 1], or the start outside [0, 1).
    """
    if probability.ndim != 1 or not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError(f"inclusion probabilities must be [M] in [0, 1], got shape {tuple(probability.shape)}")
    if start is None:
        source = generator.device if generator is not None else probability.device
        start = float(torch.rand((), dtype=torch.float64, generator=generator, device=source))
    if not 0.0 <= start < 1.0:
        raise ValueError(f"start must lie in [0, 1), got {start}")
    end = probability.double().cumsum(0)
    if len(end) and abs(float(end[-1]) - round(float(end[-1]))) < 1e-6:
        end = end.clamp_max(round(float(end[-1])))  # rounding must not make a whole number one row more or less
        end[-1] = end[-1].round()
    marks = end.floor() + (start < end - end.floor())  # before each row's end; end - start would round
    return marks.diff(prepend=marks.new_zeros(1)) > 0
