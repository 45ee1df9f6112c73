"""RLinf: of the batch of its embodied actor only the rows that count, with weights that keep its objective.

Its actor sends all ``T x B`` decisions forward and backward, also those whose loss mask is 0. Between
``compute_advantages_and_returns`` and ``run_training``::

    rows = LabelPhases(closed=...)(rlinf_rows(self.rollout_batch, group_size=8, max_episode_steps=512))
    self.rollout_batch = rlinf_batch(choose_rows(rows, sampler), max_episode_steps=512, multiple_of=512)

Everything here needs torch alone. The layout is that of rlinf 0.3.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl.algos.shares import SHARE, one_advantage, tensor_of
from pcm_rl.episodes import (
    ADVANTAGE,
    CHUNK,
    CHUNK_ID,
    EPISODE,
    GROUP,
    IS_PAD,
    LOG_PROBS,
    PHASE,
    SUCCESS,
    TOKENS,
    WEIGHT,
)
from pcm_rl.inputs import binary, entry, ids, number_per_row, whole_number

LOGPROB_TYPES = ("token_level", "action_level", "chunk_level")
_ENDS = ("dones", "terminations", "truncations")  # [T + 1, B, L]: of the state before each step, and the last one
_OURS = (ADVANTAGE, CHUNK_ID, EPISODE, GROUP, IS_PAD, PHASE, SUCCESS, SHARE, WEIGHT, "vla_action")


def rlinf_rows(
    batch: Mapping[str, Any],
    *,
    group_size: int,
    max_episode_steps: int | None,
    action_dim: int = 7,
    logprob_type: str = "token_level",
    actions: Tensor | None = None,
    success: Tensor | None = None,
    micro_batches: Tensor | None = None,
) -> TensorDict:
    """Rows that count of RLinf's ``rollout_batch``, with each one's share in its objective.

    ``T`` chunk steps, ``B`` environments (an episode each, ``group_size`` neighbours a group), ``L`` steps of a chunk,
    ``D`` dimensions. Its objective is one of two, and so are the shares:

    - With ``loss_mask_sum`` and ``max_episode_steps``: the mean over all ``T x B x L x D`` entries of
      ``mask * loss * max_episode_steps / loss_mask_sum``.
    - Else the mean over the counted tokens of each micro-batch, and the mean over micro-batches. Its constant factor
      (the mask is summed before it is spread over ``D``) is kept.

    Args:
        batch: ``prev_logprobs [T, B, L * D]``, ``loss_mask [T, B, L]`` or ``[T, B, 1]`` bool (without it all count),
            ``loss_mask_sum`` and ``advantages`` of the same shape, if present; ``dones`` and ``terminations``
            ``[T + 1, B, L]``; ``forward_inputs`` and whatever else is a tensor ``[T, B, ...]``.
        group_size: ``algorithm.group_size``.
        max_episode_steps: ``env.train.max_episode_steps``.
        action_dim: D, ``actor.model.action_dim``.
        logprob_type: ``algorithm.logprob_type``.
        actions: ``[T, B, L, D]`` float, what the environments got. None takes ``batch["actions"]`` if it has these
            numbers, else ``forward_inputs["action_tokens"]``: equal bins are compared as well as actions, but they may
            count down, which a labeller has to know.
        success: ``[B]`` bool. None takes an episode that terminated for a success.
        micro_batches: Number of the micro-batch of each decision, ``[T * B]``, for the second objective; None takes all
            decisions for one.

    Returns:
        ``[M]`` rows, episode after episode: the batch's entries without ``dones``, ``terminations`` and
        ``truncations``, those of the schema without ``"phase"``, and ``"objective_share" [M]`` float64. A step that the
        mask leaves out is ``"action_is_pad"``; a mask of one entry a chunk leaves out whole chunks only.

    Raises:
        KeyError: An entry is missing.
        ValueError: Shapes do not fit, an environment was reset within the batch, a chunk has several advantages, or the
            success is not to be known.
    """
    old = tensor_of(batch, "prev_logprobs")
    steps, envs = old.shape[:2]
    if old[0, 0].numel() % whole_number("action_dim", action_dim):
        raise ValueError(f"prev_logprobs {tuple(old.shape)} are no multiple of action_dim={action_dim}")
    if envs % whole_number("group_size", group_size):
        raise ValueError(f"{envs} environments are no multiple of group_size={group_size}")
    length = old[0, 0].numel() // action_dim
    counted = _loss_mask(batch, steps, envs, length)
    _refuse_reset(batch, counted)
    share = _shares(batch, counted, length * action_dim, action_dim, max_episode_steps, logprob_type, micro_batches)
    won = _success(batch, counted) if success is None else binary("success", success, envs)
    env, step = counted.any(-1).T.nonzero(as_tuple=True)
    rows = TensorDict(_entries(batch, steps, step, env), batch_size=[len(step)])
    mask = counted[step, env]
    chunk = _actions(batch, actions, (steps, envs, length, action_dim))[step, env]
    ours = {
        IS_PAD: ~mask.expand(-1, length),
        SHARE: share[step, env],
        SUCCESS: won[env],
        EPISODE: env,
        GROUP: env // group_size,
        CHUNK_ID: counted.any(-1).cumsum(0)[step, env] - 1,
        CHUNK: chunk if chunk.is_floating_point() else chunk.float(),
        LOG_PROBS: old[step, env].reshape(-1, length, action_dim),
    }
    if (tokens := _tokens(batch)) is not None:
        ours[TOKENS] = tokens[step, env].reshape(-1, length, action_dim)
    if batch.get("advantages") is not None:
        given = tensor_of(batch, "advantages")[step, env].flatten(1)
        ours[ADVANTAGE] = one_advantage(given, mask.any(-1, True) if given.shape[1] == 1 else mask.expand_as(given))
    for key, value in ours.items():
        rows.set(key, value)
    return rows


def rlinf_batch(
    rows: TensorDictBase, *, max_episode_steps: int, multiple_of: int = 1, at_least: int = 0
) -> dict[str, Any]:
    """Kept rows as a batch that RLinf's own ``run_training`` takes: ``N`` chunk steps of one environment.

    Its loss divides each row by ``loss_mask_sum / max_episode_steps``, so ``loss_mask_sum`` holds the weights, and its
    code stays as it is: policy loss and value loss are weighted alike. ``advantages`` are those of ``"advantage"``,
    such as a critic's that were written into the rows. Rows that fill up have a loss mask of 0. Set
    ``actor.global_batch_size`` to ``N`` times the ranks over the optimiser steps that you want.

    Args:
        rows: ``[R]`` of :func:`~pcm_rl.algos.shares.choose_rows`.
        max_episode_steps: ``env.train.max_episode_steps``.
        multiple_of: ``N`` is a multiple of it: micro-batch size times optimiser steps.
        at_least: ``N`` is at least that: the largest ``R`` of all ranks, which must make the same micro-batches.

    Returns:
        A nested dictionary of ``[N, 1, ...]``; ``prev_values`` is ``[N + 1, 1, ...]``, as RLinf has it.

    Raises:
        KeyError: The rows have no weight.
        ValueError: There are no rows.
    """
    count = len(rows)
    if not count:
        raise ValueError("there are no rows to train on: skip this step")
    multiple = whole_number("multiple_of", multiple_of)
    total = -(-max(count, whole_number("at_least", at_least, least=0)) // multiple) * multiple
    source = torch.cat([torch.arange(count), torch.zeros(total - count, dtype=torch.int64)]).to(rows.device)
    weight = number_per_row(WEIGHT, entry(rows, WEIGHT), count)[source] * (total / count)
    out: dict[str, Any] = rows.exclude(*_OURS)[source].unsqueeze(1).to_dict()
    mask = out.get("loss_mask", torch.ones(total, 1, 1, dtype=torch.bool, device=rows.device)).clone()
    mask[count:] = False
    fraction = mask.flatten(1).float().mean(-1)
    # a row of weight 0 counts no more than one that fills up
    mask &= (weight > 0).view(-1, 1, 1)
    divisor = torch.where(fraction * weight > 0, max_episode_steps * fraction / weight, 1.0)
    out |= {"loss_mask": mask, "loss_mask_sum": divisor.view(-1, 1, 1).expand_as(mask)}
    if ADVANTAGE in rows.keys():  # also one that was written since
        given = out.get("advantages", mask.float())
        column = number_per_row(ADVANTAGE, entry(rows, ADVANTAGE), count)[source].to(given.dtype)
        out["advantages"] = column.view(-1, 1, 1).expand_as(given)
    if "prev_values" in out:
        out["prev_values"] = torch.cat([out["prev_values"], out["prev_values"][-1:]])
    return out


def _loss_mask(batch: Mapping[str, Any], steps: int, envs: int, length: int) -> Tensor:
    """``[T, B, L]`` or ``[T, B, 1]`` bool."""
    if batch.get("loss_mask") is None:
        return torch.ones(steps, envs, 1, dtype=torch.bool, device=tensor_of(batch, "prev_logprobs").device)
    found = tensor_of(batch, "loss_mask")
    if found.dtype != torch.bool or found.shape[:2] != (steps, envs) or found.shape[2:] not in ((1,), (length,)):
        raise ValueError(
            f"loss_mask must be bool [{steps}, {envs}, {length}] or [{steps}, {envs}, 1], got {found.dtype} "
            f"{tuple(found.shape)}"
        )
    return found


def _refuse_reset(batch: Mapping[str, Any], counted: Tensor) -> None:
    """An environment is one episode: none may count a decision after its end."""
    done = tensor_of(batch, "dones")[1:].flatten(2).any(-1)
    late = counted.any(-1)[1:] & (done.cumsum(0)[:-1] > 0)
    if bool(late.any()):
        step, env = late.nonzero()[0].tolist()
        raise ValueError(
            f"environment {env} was done before chunk step {step + 1}, which counts: expected one episode an "
            "environment, set env.train.auto_reset: False"
        )


def _shares(
    batch: Mapping[str, Any],
    counted: Tensor,
    tokens: int,
    action_dim: int,
    max_steps: int | None,
    logprob_type: str,
    micro_batches: Tensor | None,
) -> Tensor:
    """Share of each decision in the objective, ``[T, B]`` float64."""
    if logprob_type not in LOGPROB_TYPES:
        raise ValueError(f"logprob_type must be one of {', '.join(LOGPROB_TYPES)}, got {logprob_type!r}")
    if logprob_type == "chunk_level" and counted.shape[-1] > 1:
        raise ValueError("logprob_type chunk_level needs one loss mask a chunk: reward_type: chunk_level")
    fraction = counted.double().mean(-1)  # of the row's entries, the mean over which RLinf takes
    rows = fraction.numel()
    if batch.get("loss_mask_sum") is not None and max_steps is not None:
        executed = tensor_of(batch, "loss_mask_sum").double()[..., 0]
        return torch.where(fraction > 0, fraction * max_steps / executed / rows, 0.0)
    if batch.get("loss_mask") is None:
        return fraction / rows
    micro = torch.zeros(rows, dtype=torch.int64) if micro_batches is None else ids("micro_batches", micro_batches, rows)
    number, place = micro.to(fraction.device).unique(return_inverse=True)
    entries = counted.sum(-1).double().flatten()
    total = entries.new_zeros(len(number)).index_add_(0, place, entries)
    values = {"token_level": tokens, "action_level": tokens // action_dim, "chunk_level": 1}[logprob_type]
    return fraction * values / (total[place].clamp_min(1.0) * len(number)).view_as(fraction)


def _success(batch: Mapping[str, Any], counted: Tensor) -> Tensor:
    """Environments that terminated at a chunk step that counts, ``[B]``."""
    ended = tensor_of(batch, "terminations")[1:].bool().flatten(2).any(-1)
    won = (ended & counted.any(-1)).any(0)
    paid = batch.get("rewards")
    if not bool(won.any()) and isinstance(paid, Tensor) and bool((paid * counted != 0).any()):
        raise ValueError("no episode terminated, but some have rewards: give success=, [B] bool")
    return won


def _tokens(batch: Mapping[str, Any]) -> Tensor | None:
    found = (batch.get("forward_inputs") or {}).get("action_tokens")
    return found if isinstance(found, Tensor) else None


def _actions(batch: Mapping[str, Any], given: Tensor | None, shape: tuple[int, int, int, int]) -> Tensor:
    found = given if given is not None else batch.get("actions")
    if given is None and not (isinstance(found, Tensor) and found.numel() == torch.Size(shape).numel()):
        found = _tokens(batch)
    if found is None or found.numel() != torch.Size(shape).numel():
        got = "nothing" if found is None else tuple(found.shape)
        raise ValueError(f"expected actions [T, B, L, D] = {list(shape)}, got {got}: give actions=")
    return found.reshape(shape)


def _entries(batch: Mapping[str, Any], steps: int, step: Tensor, env: Tensor) -> dict[str, Any]:
    """Tensors ``[T, B, ...]`` and ``[T + 1, B, ...]`` at the rows that count, in any depth."""
    out: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Mapping):
            out[key] = _entries(value, steps, step, env)
        elif isinstance(value, Tensor) and key not in _ENDS:
            if value.shape[0] not in (steps, steps + 1):
                raise ValueError(f"{key} must be [{steps}, B, ...], got {tuple(value.shape)}")
            out[key] = value[step, env]
    return out
