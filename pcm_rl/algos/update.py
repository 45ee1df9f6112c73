"""Packed rows -> gradient steps."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Generator, Tensor
from torch.optim import Optimizer

from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.packing import micro_batches, row_tokens
from pcm_rl.algos.weights import over_the_batch
from pcm_rl.episodes import EPISODE, TRAJECTORIES
from pcm_rl.inputs import entry, mask, positive_number, whole_number
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
        batch: ``[R]`` rows with advantage and weight, on any device; each micro-batch is moved to the parameters'. Rows
            of several selections are weighted for one mean over the trajectories of all of them.
        minibatches: Optimiser steps per pass, at least 1; fewer if there are fewer rows.
        epochs: Passes over the batch, at least 1.
        micro_rows: Rows in one forward and backward; None takes a whole minibatch.
        micro_tokens: Tokens in one forward and backward, in place of ``micro_rows``; for a policy with
            ``row_tokens(batch)``.
        grad_clip: Largest gradient norm, above 0; ``math.inf`` does not clip.
        generator: Shuffles the rows; on several processes in the same state.
        ranks: The processes that share the work, each with the same ``batch`` and parameters.

    Returns:
        Means over the steps of ``loss``, ``grad_norm`` (before clipping) and the loss's diagnostics; ``max_ratio`` is
        the maximum, ``kl_acting`` is ``kl_approx`` before the first step. Empty for an empty batch.

    Raises:
        ValueError: For another reduction, an option out of range, or a mask that is not bool.
        KeyError: If an entry is missing.
        FloatingPointError: If a gradient is not finite; the parameters do not change and the error names the episode.
    """
    minibatches, epochs = whole_number("minibatches", minibatches), whole_number("epochs", epochs)
    grad_clip = positive_number("grad_clip", grad_clip, finite=False)
    _check_options(loss, micro_rows, micro_tokens)
    pad = entry(batch, loss.tensor_keys.is_pad)
    executed = ~mask(str(loss.tensor_keys.is_pad), pad, pad.shape[:2])
    if not len(batch):
        return {}
    # weighted once, for all of them: the loss would take the trajectories of a micro-batch for all there are
    batch = over_the_batch(batch, loss.tensor_keys.weight).exclude(TRAJECTORIES)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    tokens = None if micro_tokens is None else row_tokens(loss.actor_network, batch)
    steps = executed.sum(-1).double().cpu()
    source = "cpu" if generator is None else generator.device  # and not the default device
    history: list[dict[str, float]] = []
    for _ in range(epochs):
        order = torch.randperm(len(batch), generator=generator, device=source).cpu()
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
    most = max((step.pop("max_ratio") for step in history if "max_ratio" in step), default=1.0)
    ends = {"max_ratio": most, "kl_acting": history[0].get("kl_approx", 0.0)}
    return {key: sum(step[key] for step in history) / len(history) for key in history[0]} | ends


def _check_options(loss: ChunkGRPOLoss, micro_rows: int | None, micro_tokens: int | None) -> None:
    if loss.reduction != "mean":
        raise ValueError(
            f"expected a loss with reduction='mean', got {loss.reduction!r}: the gradient of a minibatch is put "
            "together from means over rows"
        )
    if micro_rows is not None and micro_tokens is not None:
        raise ValueError("micro_rows and micro_tokens both say how large a micro-batch is; give one of them")
    for name, value in (("micro_rows", micro_rows), ("micro_tokens", micro_tokens)):
        if value is not None:
            whole_number(name, value)


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
                if float(steps[micro].sum()) > 0.0:  # without an executed step there is no ratio
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
    for number, row in enumerate(batch.split(1)):
        if not bool(torch.isfinite(loss(row.to(device))["loss_objective"])):
            where = f"episode {int(row[EPISODE])}" if EPISODE in row.keys() else f"row {number} of a minibatch"
            return f"the loss is not finite at {where}: check its log-probs and advantage"
    return "the gradient is not finite although every row's loss is: lower the learning rate or the clip thresholds"
