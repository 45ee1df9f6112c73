"""Packed rows -> gradient steps."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Generator, Tensor
from torch.optim import Optimizer

from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.packing import micro_batches, row_tokens
from pcm_rl.episodes import EPISODE
from pcm_rl.processes.ranks import ALONE, Ranks


def grpo_update(
    loss: ChunkGRPOLoss,
    optimizer: Optimizer,
    batch: TensorDictBase,
    *,
    minibatches: int = 4,
    epochs: int = 1,
    micro_rows: int | None = None,
    micro_tokens: int | None = None,
    grad_clip: float = 2.0,
    generator: Generator | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Take ``epochs * minibatches`` optimiser steps on ``batch``, its rows packed across trajectories.

    Rows of all trajectories are shuffled and cut into minibatches of equal size, each minibatch into micro-batches
    whose gradients are accumulated: memory depends on ``micro_rows`` or ``micro_tokens``, the gradient does not.
    Several processes make the same minibatches, and each takes its share of the rows of each: the gradient does not
    depend on that either.

    Args:
        loss: Its ``reduction`` must be ``"mean"``.
        optimizer: Over the loss's parameters.
        batch: ``[R]`` rows with advantage and weight, on any device; each micro-batch is moved to the parameters'.
        minibatches: Optimiser steps per pass; fewer if there are fewer rows.
        epochs: Passes over the batch.
        micro_rows: Rows in one forward and backward; None takes a whole minibatch.
        micro_tokens: Tokens in one forward and backward, instead of rows; for a policy with ``row_tokens(batch)``.
        grad_clip: Largest gradient norm.
        generator: Shuffles the rows; on several processes in the same state.
        ranks: The processes that share the work, each with the same ``batch`` and parameters.

    Returns:
        Means over the steps of ``loss``, ``grad_norm`` (before clipping) and the loss's diagnostics; ``max_ratio`` is
        the maximum. Empty for an empty batch.

    Raises:
        FloatingPointError: If a gradient is not finite; the parameters do not change and the error names the episode.
    """
    if not len(batch):
        return {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    tokens = None if micro_tokens is None else row_tokens(loss.actor_network, batch)
    steps = (~batch.get(loss.tensor_keys.is_pad)).sum(-1).double().cpu()
    history: list[dict[str, float]] = []
    for _ in range(epochs):
        order = torch.randperm(len(batch), generator=generator)
        for rows in order.tensor_split(min(minibatches, len(batch))):
            optimizer.zero_grad(set_to_none=True)
            pieces = micro_batches(ranks.share(rows), micro_rows=micro_rows, tokens=tokens, budget=micro_tokens)
            metrics = _accumulate(loss, batch, pieces, len(rows), steps / steps[rows].sum().clamp_min(1), device)
            ranks.sum_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
            if not bool(torch.isfinite(norm)):
                optimizer.zero_grad(set_to_none=True)
                raise FloatingPointError(_blame(loss, batch[rows], device))
            optimizer.step()
            history.append({key: float(value) for key, value in metrics.items()} | {"grad_norm": float(norm)})
    history = [_combined(parts) for parts in zip(*ranks.gather_json(history), strict=True)]
    means = {key: sum(step[key] for step in history) / len(history) for key in history[0]}
    return means | {"max_ratio": max(step["max_ratio"] for step in history)}


def _accumulate(
    loss: ChunkGRPOLoss, batch: TensorDictBase, pieces: list[Tensor], num_rows: int, steps: Tensor, device: torch.device
) -> dict[str, Tensor]:
    """Add the rows of ``pieces`` to the gradient of a mean over ``num_rows`` rows; their part of the metrics.

    The objective is a mean over rows; its diagnostics are means over executed tokens, of which each row has the share
    ``steps [R]``.
    """
    total: dict[str, Tensor] = {}
    for micro in pieces:
        share = len(micro) / num_rows
        out = loss(batch[micro].to(device))
        objective = sum(value for key, value in out.items() if key.startswith("loss_"))
        (objective * share).backward()
        out["loss"] = objective
        for key, value in out.items():
            value = value.detach()
            if key == "max_ratio":
                total[key] = torch.maximum(total.get(key, value), value)
            elif not key.startswith("loss_"):
                total[key] = total.get(key, 0.0) + (share if key == "loss" else float(steps[micro].sum())) * value
    return total


def _combined(parts: tuple[dict[str, float], ...]) -> dict[str, float]:
    """Metrics of a minibatch from those of all processes; a process without rows has the gradient norm only."""
    keys = max(parts, key=len)
    values_of = {key: [part[key] for part in parts if key in part] for key in keys}
    return {key: max(values) if key in ("max_ratio", "grad_norm") else sum(values) for key, values in values_of.items()}


@torch.no_grad()
def _blame(loss: ChunkGRPOLoss, batch: TensorDictBase, device: torch.device) -> str:
    for row in batch.split(1):
        if not bool(torch.isfinite(loss(row.to(device))["loss_objective"])):
            return f"the loss is not finite at episode {int(row[EPISODE])}: check its log-probs and advantage"
    return "the gradient is not finite although every row's loss is: lower the learning rate or the clip thresholds"
