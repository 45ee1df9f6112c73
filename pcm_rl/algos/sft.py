"""Supervised start: behaviour cloning of action tokens, or what a policy of numbers learns by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Generator, Tensor
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.episodes import CHUNK, IS_PAD, check_batch
from pcm_rl.inputs import entry, mask, positive_number, whole_number


def token_cross_entropy(policy: VLAWrapperBase, rows: TensorDictBase) -> Tensor:
    """Mean negative log-likelihood of the demonstrated tokens over executed steps, a scalar in nats.

    Args:
        policy: Token policy with an ``action_tokenizer``.
        rows: ``[M]`` with the policy's inputs, the demonstrated chunk ``[M, L, D]`` and its padding ``[M, L]`` bool.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If the padding is not bool, or no step was executed.
    """
    chunk, executed = _executed(rows)
    # what stands in steps that were never executed, such as NaN, is no action
    tokens = policy.action_tokenizer.encode(chunk.masked_fill(~executed.unsqueeze(-1), 0.0))
    log_prob = policy.get_dist(rows.select(*policy.in_keys)).log_prob(tokens)
    return -log_prob[executed.unsqueeze(-1).expand_as(log_prob)].mean()


def _executed(rows: TensorDictBase) -> tuple[Tensor, Tensor]:
    """The chunk ``[M, L, D]`` of demonstrations and their executed steps ``[M, L]``, of which there must be one."""
    chunk = entry(rows, CHUNK)
    executed = ~mask(IS_PAD, entry(rows, IS_PAD), chunk.shape[:2])
    if not bool(executed.any()):
        raise ValueError("expected demonstrations with executed steps, got none: action_is_pad is True everywhere")
    return chunk, executed


def imitation_loss(policy: VLAWrapperBase, rows: TensorDictBase, generator: Generator | None = None) -> Tensor:
    """The policy's own loss where it draws numbers (``imitation_loss``), else :func:`token_cross_entropy`; a scalar.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If the padding is not bool, or no step was executed.
    """
    if hasattr(policy, "drawn_key"):
        _executed(rows)
        loss: Tensor = policy.imitation_loss(rows, generator)
        return loss
    return token_cross_entropy(policy, rows)


def supervise(
    policy: VLAWrapperBase,
    demos: TensorDictBase,
    *,
    steps: int = 900,
    batch_size: int = 256,
    lr: float = 1e-3,
    generator: Generator | None = None,
    stop: Callable[[], bool] | None = None,
    stop_every: int = 200,
) -> list[float]:
    """Fit ``policy`` to demonstrations with Adam on uniformly drawn rows.

    Args:
        policy: Changed in place.
        demos: ``[M]`` rows, see :func:`imitation_loss`.
        steps: Gradient steps; with 0 the policy does not change.
        batch_size: Rows per step.
        lr: Learning rate.
        generator: Draws the rows, and what the policy's loss needs at random.
        stop: Called after every ``stop_every`` steps; True ends the fit.
        stop_every: See ``stop``.

    Returns:
        The loss of every executed step; of tokens in nats a token.

    Raises:
        ValueError: If the demonstrations' chunks do not fit the policy, there are none, or an option is out of range.
    """
    steps, lr = whole_number("steps", steps, least=0), positive_number("lr", lr)
    batch_size, stop_every = whole_number("batch_size", batch_size), whole_number("stop_every", stop_every)
    check_batch(demos, (CHUNK, IS_PAD))
    if steps and not len(demos):
        raise ValueError("expected demonstrations, got no rows")
    expected = (policy.chunk_size, policy.action_dim)
    if tuple(demos.get(CHUNK).shape[1:]) != expected:
        raise ValueError(f"the demonstrations have chunks {tuple(demos.get(CHUNK).shape[1:])}, the policy {expected}")
    demos = demos.select(*policy.in_keys, CHUNK, IS_PAD)
    device = next(policy.parameters()).device
    optimizer = torch.optim.Adam([parameter for parameter in policy.parameters() if parameter.requires_grad], lr=lr)
    source = "cpu" if generator is None else generator.device  # and not the default device
    losses = []
    for step in range(1, steps + 1):
        rows = torch.randint(len(demos), (batch_size,), generator=generator, device=source)
        loss = imitation_loss(policy, demos[rows].to(device), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if stop is not None and step % stop_every == 0 and step < steps and stop():
            break
    return losses
