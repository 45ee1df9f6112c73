"""SimpleVLA-RL: of the trajectories of its ``DataProto`` only the chunks that were executed, in its own objective.

Its actor sends each of the ``T`` slots of a trajectory forward and backward, also those after ``finish_step``. Before
``update_actor``::

    rows = LabelPhases(closed=...)(simplevla_rows(data))
    tensors = simplevla_batch(choose_rows(rows, sampler), slots=8)
    data = DataProto.from_dict(tensors=tensors, meta_info=data.meta_info)

Only ``data.batch`` and ``data.non_tensor_batch`` are looked at, so verl need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl.algos.shares import SHARE, one_advantage, tensor_of
from pcm_rl.episodes import ADVANTAGE, CHUNK, CHUNK_ID, EPISODE, GROUP, IS_PAD, LOG_PROBS, SUCCESS, TOKENS, WEIGHT
from pcm_rl.inputs import binary, entry, ids, number_per_row, whole_number

_TOKEN_COLUMNS = ("old_log_probs", "advantages", "returns", "ref_log_prob")  # [I, T * L * D]


def simplevla_rows(
    data: Any, *, action_dim: int = 7, actions: Tensor | None = None, groups: Tensor | None = None
) -> TensorDict:
    """Executed chunks of SimpleVLA-RL's batch, with each one's share in its objective.

    ``I`` trajectories of ``T`` slots (64), ``L`` steps of a chunk (8), ``D`` dimensions (7). Its objective is the mean
    over trajectories of the mean over their executed tokens, as ours is.

    Args:
        data: verl's ``DataProto``, or another object with a mapping ``.batch``, or that mapping: ``responses``
            ``[I, T, L * D]`` int64, ``finish_step [I]`` int64 (environment steps), ``complete [I]`` bool, and where
            they are there ``old_log_probs`` and ``advantages`` ``[I, T * L * D]``, ``input_ids``, ``attention_mask``,
            ``pixel_values``, ``proprio`` ``[I, T, ...]``.
        action_dim: D, ``action_token_len``.
        actions: ``[I, T, L, D]`` float, what the environments got. None compares token ids: bins of equal size, which
            count down in OpenVLA's vocabulary.
        groups: ``[I]`` integer. None takes ``data.non_tensor_batch["uid"]``.

    Returns:
        ``[M]`` rows, trajectory after trajectory: the batch's entries ``[I, T, ...]``, those of the schema without
        ``"phase"``, and ``"objective_share" [M]`` float64.

    Raises:
        KeyError: An entry is missing.
        ValueError: Shapes do not fit, or a chunk has several advantages.
    """
    batch = getattr(data, "batch", data)
    responses = tensor_of(batch, "responses")
    if responses.ndim != 3 or responses.shape[2] % whole_number("action_dim", action_dim):
        raise ValueError(f"responses must be [I, T, L * {action_dim}], got {tuple(responses.shape)}")
    count, slots, tokens = responses.shape
    shape = (count, slots, tokens // action_dim, action_dim)
    chunk = responses if actions is None else actions
    if chunk.numel() != responses.numel():
        raise ValueError(f"actions must be [I, T, L, D] = {list(shape)}, got {tuple(chunk.shape)}")
    won = binary("complete", tensor_of(batch, "complete"), count)
    group = _groups(data, count) if groups is None else ids("groups", groups, count)
    ends = _ends(batch, count, slots * shape[2])
    executed = (torch.arange(slots * shape[2], device=ends.device) < ends.unsqueeze(-1)).view(shape[:3])
    trajectory, slot = executed.any(-1).nonzero(as_tuple=True)
    mask = executed[trajectory, slot]
    rows = TensorDict(_entries(batch, responses.shape, trajectory, slot), batch_size=[len(slot)])
    ours = {
        IS_PAD: ~mask,
        SHARE: mask.sum(-1).double() / ends[trajectory] / count,
        SUCCESS: won[trajectory],
        EPISODE: trajectory,
        GROUP: group.to(trajectory.device)[trajectory],
        CHUNK_ID: slot,
        CHUNK: chunk.reshape(shape)[trajectory, slot].float(),
        TOKENS: rows.get("responses").view(-1, *shape[2:]),
    }
    if "old_log_probs" in rows.keys():
        ours[LOG_PROBS] = rows.get("old_log_probs").view(-1, *shape[2:])
    if "advantages" in rows.keys():
        ours[ADVANTAGE] = one_advantage(rows.get("advantages"), mask.repeat_interleave(action_dim, -1))
    for key, value in ours.items():
        rows.set(key, value)
    return rows


def simplevla_batch(rows: TensorDictBase, *, slots: int, multiple_of: int = 1) -> dict[str, Tensor]:
    """Kept rows as a batch that SimpleVLA-RL's own ``update_policy`` takes: ``P`` trajectories of ``slots`` chunks.

    Its loss has no weight for a chunk. A clipped objective is proportional to its advantage, so the weights are in
    ``advantages``, which are 0 at tokens that do not count: all ``slots`` are executed for it.

    Args:
        rows: ``[R]`` of :func:`~pcm_rl.algos.shares.choose_rows`, with log-probs and ``"advantage"``, which may be
            others than the batch had, such as a critic's.
        slots: Chunks of a trajectory, a multiple of ``traj_mini_batch_size``.
        multiple_of: ``P`` is a multiple of it: ``ppo_mini_batch_size`` times optimiser steps.

    Returns:
        ``responses [P, slots, L * D]`` and what else the rows hold of the batch, ``finish_step [P]``, ``old_log_probs``
        and ``advantages [P, slots * L * D]``.

    Raises:
        KeyError: The rows have no weight, advantage or log-probs.
        ValueError: There are no rows.
    """
    count = len(rows)
    if not count:
        raise ValueError("there are no rows to train on: skip this step")
    slots, multiple = whole_number("slots", slots), whole_number("multiple_of", multiple_of)
    packed = -(-count // (slots * multiple)) * multiple
    source = torch.cat([torch.arange(count), torch.zeros(packed * slots - count, dtype=torch.int64)]).to(rows.device)
    counted = ~entry(rows, IS_PAD)
    length, dims = entry(rows, LOG_PROBS).shape[1:]
    # its mean has slots * L * D tokens a trajectory and P trajectories; ours the row's executed tokens and R rows
    factor = number_per_row(WEIGHT, entry(rows, WEIGHT), count) / count / counted.sum(-1).clamp_min(1) / dims
    factor = (factor * (packed * slots * length * dims)).view(-1, 1, 1) * counted.unsqueeze(-1)
    advantages = number_per_row(ADVANTAGE, entry(rows, ADVANTAGE), count).view(-1, 1, 1)
    scaled = torch.where(factor > 0, advantages * factor, 0.0).expand(-1, -1, dims)[source]
    scaled[count:] = 0.0
    kept = rows.select(*(key for key in rows.keys() if _of_theirs(rows, key)))[source]
    out = {key: value.reshape(packed, slots, *value.shape[1:]) for key, value in kept.items()}
    old = entry(rows, LOG_PROBS)[source].reshape(packed, -1)
    finish = torch.full((packed,), slots * length, device=rows.device)
    return out | {"finish_step": finish, "old_log_probs": old, "advantages": scaled.reshape(packed, -1).to(old.dtype)}


def _of_theirs(rows: TensorDictBase, key: str) -> bool:
    """Whether it is an entry ``[I, T, ...]`` of the batch that the rows came from."""
    ours = (IS_PAD, SHARE, SUCCESS, EPISODE, GROUP, CHUNK_ID, ADVANTAGE, WEIGHT, "phase", "vla_action")
    return key not in (*ours, *_TOKEN_COLUMNS)


def _entries(batch: Mapping[str, Any], shape: torch.Size, trajectory: Tensor, slot: Tensor) -> dict[str, Tensor]:
    """Tensors ``[I, T, ...]`` and columns of tokens ``[I, T * L * D]`` at the rows that were executed."""
    out = {}
    for key, value in batch.items():
        if key in _TOKEN_COLUMNS:
            value = value.reshape(shape)
        if isinstance(value, Tensor) and value.shape[:2] == shape[:2]:
            out[key] = value[trajectory, slot]
    return out


def _ends(batch: Mapping[str, Any], count: int, longest: int) -> Tensor:
    """Executed steps of each trajectory, ``[I]`` int64."""
    ends = ids("finish_step", tensor_of(batch, "finish_step"), count)
    if bool(((ends < 1) | (ends > longest)).any()):
        raise ValueError(f"finish_step must be in 1..{longest}, got {int(ends.min())} to {int(ends.max())}")
    return ends


def _groups(data: Any, count: int) -> Tensor:
    uid = getattr(data, "non_tensor_batch", {}).get("uid")
    if uid is None or len(uid) != count:
        raise KeyError(f"expected non_tensor_batch['uid'] with {count} entries, one a trajectory: give groups=")
    return torch.from_numpy(np.unique(np.asarray(uid, dtype=str), return_inverse=True)[1].reshape(-1))
