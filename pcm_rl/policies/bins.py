"""Bins of actions and the environment's action box: what they have to cover, and whether they do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torchrl.data.vla.tokenizers import ActionTokenizerBase

OUTSIDE = (
    0.1  # share of a dimension's width that actions may reach beyond it: quantiles of a dataset are no exact bounds
)
LITTLE = 0.2  # a policy that uses less of every dimension is taken for one in other units


def action_range(space: spaces.Box) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """Lowest and highest action of a box: what the bins of a policy have to cover, or -1 and 1 to a network.

    Args:
        space: ``Box [L, D]`` of chunks, in the environment's own units.

    Returns:
        -1.0 and 1.0 where the box is [-1, 1] in every dimension, else two tensors ``[L, D]`` float32.

    Raises:
        ValueError: A dimension is unbounded or has no width.
    """
    low, high = (torch.from_numpy(np.asarray(bound, dtype=np.float32)) for bound in (space.low, space.high))
    width = high - low
    unfit = ~(torch.isfinite(width) & (width > 0))
    if bool(unfit.any()):
        where = tuple(int(i) for i in unfit.nonzero()[0])
        raise ValueError(
            f"expected bounded actions, and dimension {where[-1]} of the environment's is in [{low[where]:g}, "
            f"{high[where]:g}]; give the part to use with env.wrappers=[{{name: pcm_rl.envs:ActionBounds, "
            "kwargs: {low: -1.0, high: 1.0}}], and leave out ClipAction, which takes bounds away"
        )
    if bool((low == -1.0).all() and (high == 1.0).all()):
        return -1.0, 1.0
    return low, high


def check_reach(tokenizer: Any, space: spaces.Box) -> None:
    """Compare the actions that tokens can mean with the environment's box; unknown kinds of tokenizers pass.

    Args:
        tokenizer: ``action_tokenizer`` of a policy.
        space: ``Box [L, D]``.

    Raises:
        ValueError: Actions reach far outside of the box.

    Warns:
        RuntimeWarning: They use little of every dimension.
    """
    if not isinstance(tokenizer, ActionTokenizerBase) or not np.isfinite(np.subtract(space.high, space.low)).all():
        return
    ends = torch.tensor([0, tokenizer.vocab_size - 1]).view(2, 1, 1).expand(2, *space.shape)
    device = next((buffer.device for buffer in tokenizer.buffers()), ends.device)
    reached = tokenizer.decode(ends.to(device)).double().cpu().numpy()
    least, most = reached.min(0), reached.max(0)
    width = np.subtract(space.high, space.low, dtype=np.float64).clip(1e-12)
    outside = np.maximum(space.low - least, most - space.high) / width
    _, d = np.unravel_index(outside.argmax(), outside.shape)
    got = f"its tokens mean actions from {least[0, d]:.4g} to {most[0, d]:.4g} in dimension {d}"
    expected = f"the environment takes {space.low[0, d]:.4g} to {space.high[0, d]:.4g}"
    if outside.max() > OUTSIDE:
        raise ValueError(
            f"{got}, {expected}; choose bins that cover the box (pcm_rl.policies.action_range), or bring the box to "
            "the policy's units (env.wrappers: gymnasium.wrappers:RescaleAction)"
        )
    if ((most - least) / width).max() < LITTLE:
        warnings.warn(
            f"{got}, {expected}: the policy uses little of the environment's actions; are they in the same units? "
            "gymnasium.wrappers:RescaleAction in env.wrappers brings the box to the policy's",
            RuntimeWarning,
            stacklevel=2,
        )
