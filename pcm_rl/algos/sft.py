"""Supervised start: behaviour cloning of action tokens."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Generator, Tensor
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.episodes import CHUNK, IS_PAD, STATE


def token_cross_entropy(policy: VLAWrapperBase, rows: TensorDictBase) -> Tensor:
    """Mean negative log-likelihood of the demonstrated tokens over executed steps, a scalar in nats.

    Args:
        policy: Token policy with an ``action_tokenizer``.
        rows: ``[M]`` with the state, the demonstrated chunk ``[M, L, D]`` and its padding.
    """
    tokens = policy.action_tokenizer.encode(rows.get(CHUNK))
    log_prob = policy.get_dist(rows.select(STATE)).log_prob(tokens)
    executed = (~rows.get(IS_PAD)).unsqueeze(-1).expand_as(log_prob)
    return -log_prob[executed].mean()


def supervise(
    policy: VLAWrapperBase,
    demos: TensorDictBase,
    *,
    steps: int = 900,
    batch_size: int = 256,
    lr: float = 1e-3,
    generator: Generator | None = None,
) -> list[float]:
    """Fit ``policy`` to demonstrations with Adam on uniformly drawn rows.

    Args:
        policy: Changed in place.
        demos: ``[M]`` rows, see :func:`token_cross_entropy`.
        steps: Gradient steps; 0 leaves the policy as it is.
        batch_size: Rows a step.
        lr: Learning rate.
        generator: Draws the rows.

    Returns:
        The loss of every step, in nats a token.

    Raises:
        ValueError: If the demonstrations' chunks do not fit the policy.
    """
    expected = (policy.chunk_size, policy.action_dim)
    if tuple(demos.get(CHUNK).shape[1:]) != expected:
        raise ValueError(f"the demonstrations have chunks {tuple(demos.get(CHUNK).shape[1:])}, the policy {expected}")
    device = next(policy.parameters()).device
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(demos), (batch_size,), generator=generator)
        loss = token_cross_entropy(policy, demos[rows].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
