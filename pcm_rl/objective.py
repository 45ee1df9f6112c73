"""The clipped GRPO objective on chunks of actions (equations 2 and 11), without a policy."""

from __future__ import annotations

import torch
from torch import Tensor

from pcm_rl.inputs import mask, number_per_row

RATIOS = ("token", "step", "chunk")  # what has one importance ratio


def clipped_objective(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    executed: Tensor,
    weight: Tensor | None = None,
    *,
    clip_epsilon: tuple[float, float] = (0.2, 0.4),
    ratio: str = "token",
) -> Tensor:
    """Objective of every row, to be maximised (equation 11).

    Per executed action token ``min(rho * A, clip(rho, 1 - eps_low, 1 + eps_high) * A)`` with
    ``rho = exp(log_prob - old_log_prob)``; the mean over the row's executed tokens, times the row's weight. With the
    weights of :func:`pcm_rl.select_chunks` the mean over rows is the mean over trajectories of the mean over their kept
    tokens.

    A token is a number of the action: a bin, or for a flow policy one dimension of one step.

    Args:
        log_prob: ``[M, L, D]`` under the policy that is trained; the gradient goes through it.
        old_log_prob: ``[M, L, D]`` under the policy that acted, recorded at sampling; no gradient.
        advantage: ``[M]`` or ``[M, 1]``. One number a token is refused: the method gives credit to chunks.
        executed: ``[M, L]`` bool, False for steps that were never executed. What the log-probs hold there, also NaN,
            reaches neither the value nor the gradient.
        weight: ``[M]`` or ``[M, 1]``; None means 1.
        clip_epsilon: ``(eps_low, eps_high)``.
        ratio: What has one ``rho``: ``token``, as the paper does it; ``step``, the product over the D dimensions of a
            step; or ``chunk``, the product over all executed tokens of the row. The mean is over those.

    Returns:
        ``[M]``; 0 for a row without an executed step.

    Raises:
        ValueError: If shapes do not fit, ``executed`` is not bool, or ``ratio`` is another word.
    """
    check_tokens(log_prob, old_log_prob, executed)
    advantage = number_per_row("advantage", advantage, len(log_prob)).view(-1, 1, 1)
    moved, counted = joint(log_ratio(log_prob, old_log_prob, executed), executed, ratio)
    rho = moved.exp()
    clipped = rho.clamp(1.0 - clip_epsilon[0], 1.0 + clip_epsilon[1])
    return token_mean(torch.minimum(rho * advantage, clipped * advantage), counted, weight)


def kl_penalty(log_prob: Tensor, ref_log_prob: Tensor, executed: Tensor, weight: Tensor | None = None) -> Tensor:
    """Distance of every row from a reference policy, to be minimised: the mean of ``exp(d) - d - 1``.

    Args:
        log_prob: ``[M, L, D]`` under the policy that is trained.
        ref_log_prob: ``[M, L, D]`` under the reference, of the same tokens; ``d = ref_log_prob - log_prob``.
        executed: ``[M, L]`` bool.
        weight: ``[M]``; None means 1.

    Returns:
        ``[M]``, not negative.
    """
    check_tokens(log_prob, ref_log_prob, executed)
    gap = torch.where(executed.unsqueeze(-1), ref_log_prob.detach() - log_prob, 0.0)
    return token_mean(gap.exp() - gap - 1.0, executed, weight)


def log_ratio(log_prob: Tensor, old_log_prob: Tensor, executed: Tensor) -> Tensor:
    """``log rho`` of every token, ``[M, L, D]``; 0 at steps that were never executed.

    Those leave before the exponential, so that nothing they hold reaches a gradient.
    """
    return torch.where(executed.unsqueeze(-1), log_prob - old_log_prob.detach(), 0.0)


def joint(log_ratio: Tensor, executed: Tensor, ratio: str) -> tuple[Tensor, Tensor]:
    """Log ratios of what has one ratio: of independent tokens the sum.

    Args:
        log_ratio: ``[M, L, D]``, 0 at steps that were never executed.
        executed: ``[M, L]`` bool.
        ratio: ``token``, ``step`` or ``chunk``.

    Returns:
        The sums, and which of them count: ``[M, L, D]`` and ``[M, L]``; for a step ``[M, L, 1]`` and ``[M, L]``; for a
        chunk ``[M, 1, 1]`` and ``[M, 1]``.

    Raises:
        ValueError: For another word.
    """
    if ratio == "token":
        return log_ratio, executed
    if ratio == "step":
        return log_ratio.sum(2, keepdim=True), executed
    if ratio == "chunk":
        return log_ratio.sum((1, 2), keepdim=True), executed.any(1, keepdim=True)
    raise ValueError(f"unknown ratio {ratio!r}; choose one of {', '.join(RATIOS)}")


def token_mean(value: Tensor, executed: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the executed tokens of every row, times its weight.

    Args:
        value: ``[M, L, D]``.
        executed: ``[M, L]`` bool.
        weight: ``[M]`` or ``[M, 1]``; None means 1.

    Returns:
        ``[M]``; 0 for a row without an executed step.
    """
    counted = executed.unsqueeze(-1).expand_as(value)
    total = torch.where(counted, value, 0.0).sum((1, 2))
    if weight is not None:
        total = number_per_row("weight", weight, len(total)) * total
    return total / counted.sum((1, 2)).clamp_min(1)


@torch.no_grad()
def ratio_diagnostics(
    log_prob: Tensor,
    old_log_prob: Tensor,
    executed: Tensor,
    *,
    clip_epsilon: tuple[float, float] = (0.2, 0.4),
    ratio: str = "token",
) -> dict[str, Tensor]:
    """How far the policy has moved from the one that acted, over the executed tokens (steps, chunks) of all rows.

    Returns:
        Scalars ``clip_fraction``, ``kl_approx`` (the mean of ``rho - 1 - log rho``, not negative), ``mean_ratio`` and
        ``max_ratio``. Without an executed token 0, 0, 0 and 1.
    """
    moved, counted = joint(log_ratio(log_prob, old_log_prob, executed), executed, ratio)
    rho = moved.exp()
    largest = rho.masked_fill(~counted.unsqueeze(-1), 0.0).max() if rho.numel() else rho.new_zeros(())
    clipped = rho.clamp(1.0 - clip_epsilon[0], 1.0 + clip_epsilon[1])
    return {
        "clip_fraction": mean_over_executed(clipped != rho, counted, rho.dtype),
        "kl_approx": mean_over_executed(rho - 1.0 - moved, counted),
        "mean_ratio": mean_over_executed(rho, counted),
        "max_ratio": largest.where(counted.any(), 1.0),
    }


def mean_over_executed(value: Tensor, executed: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Mean of ``value [M, L, D]`` over the executed tokens of all rows; 0 where there is none."""
    counted = executed.unsqueeze(-1).expand_as(value)
    return torch.where(counted, value.to(dtype or value.dtype), 0.0).sum() / counted.sum().clamp_min(1)


def check_tokens(log_prob: Tensor, other: Tensor, executed: Tensor, name: str = "executed") -> None:
    """Raise ``ValueError`` unless both log-probs are ``[M, L, D]`` and ``executed``, so named, is bool ``[M, L]``."""
    if log_prob.ndim != 3 or other.shape != log_prob.shape or executed.shape != log_prob.shape[:2]:
        raise ValueError(
            f"expected tokens and log_probs [M, L, D] and is_pad [M, L], got {tuple(log_prob.shape)}, "
            f"{tuple(other.shape)} and {tuple(executed.shape)}; a policy that sums them records one number a chunk: "
            'give it log_probs_mode="token"'
        )
    mask(name, executed, log_prob.shape[:2])
