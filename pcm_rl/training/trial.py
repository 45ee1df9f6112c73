"""Whether a policy can go on: finite weights, and finite log-probs on rows at hand. What fails is never saved."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.policies.family import dist_keys, drawn_key, log_probs_of

ROWS = 4  # a forward pass of a large policy takes a second


def rows_at_hand(policy: VLAWrapperBase, rows: TensorDictBase) -> TensorDictBase:
    """A few of ``rows [M]``, evenly spaced, with what the policy reads and what it drew; a copy."""
    index = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round().long()
    return rows.select(*dist_keys(policy), drawn_key(policy), strict=False)[index].clone()


@torch.no_grad()
def check_sane(
    step: int,
    policy: VLAWrapperBase,
    optimizer: Optimizer,
    critic: nn.Module | None,
    rows: TensorDictBase | None,
) -> None:
    """Try what a step has made before it can replace anything that was saved.

    Args:
        step: For the message.
        policy: Its trained parameters must be finite, its buffers no nan, and its log-probs of ``rows`` finite.
        optimizer: Its state must be finite.
        critic: Its weights must be finite.
        rows: Of :func:`rows_at_hand`; None where nothing was played yet.

    Raises:
        FloatingPointError: Something is not finite; the message names it.
    """
    modules = {"the policy": policy} if critic is None else {"the policy": policy, "the critic": critic}
    for owner, module in modules.items():
        for name, value in module.named_parameters():
            if value.requires_grad:
                _check_finite(step, f"{name} of {owner}", value)
        for name, value in module.named_buffers():  # a mask may hold infinities
            _check_finite(step, f"{name} of {owner}", torch.where(torch.isinf(value), 0, value))
    for entry in optimizer.state.values():
        for name, value in entry.items():
            _check_finite(step, f"{name} of the optimiser", torch.as_tensor(value))
    if rows is not None:
        rows = rows.to(next(policy.parameters()).device)
        log_prob = log_probs_of(policy, rows)
        _check_finite(step, "a log-prob of the policy", log_prob)


def _check_finite(step: int, what: str, value: Tensor) -> None:
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise FloatingPointError(
            f"training has diverged: after step {step} {what} is not finite. It was not saved, and the last checkpoint "
            "is as it was: continue from it with a lower learning rate or a lower weight decay"
        )
