"""What a run will cost, from one batch: seconds a step, what chunk selection can gain, and what fits into memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.config import Config
from pcm_rl.policies.family import CountsTokens, Recomputes
from pcm_rl.reports.numbers import duration
from pcm_rl.training.memory import ROOM, available_bytes, row_bytes
from pcm_rl.training.update_cost import UpdateCost

GIB = 2**30
ADAM = 3  # floats a trained parameter: gradient and two moments


def time_lines(costs: Sequence[UpdateCost], rollout_s: float, config: Config) -> list[str]:
    """Seconds of a step and of a run, and how much of a step there is to gain.

    Args:
        costs: Of the update, the run's method and ``full-valid`` among them.
        rollout_s: Seconds of collecting a step's trajectories.
        config: The run.
    """
    cost = {entry.method: entry for entry in costs}
    selected, full = cost[config.method], cost["full-valid"]
    step = rollout_s + selected.select_s + selected.update_s
    full_step = rollout_s + full.update_s
    trajectories, total = config.groups * config.group_size, duration(config.steps * step)
    return [
        f"a step of {trajectories} trajectories: rollout {rollout_s:.1f} s, selection {selected.select_s:.3f} s, "
        f"update {selected.update_s:.2f} s with {config.method} ({selected.rows} chunks), {full.update_s:.2f} s with "
        f"all {full.rows} executed ones",
        f"{config.steps} steps with {config.method}: {total}, evaluations apart; each is {full_step / step:.2f}x as "
        f"fast as with all chunks (an update that costs nothing: {full_step / rollout_s:.2f}x)",
    ]


def memory_lines(policy: VLAWrapperBase, rows: TensorDictBase) -> list[str]:
    """What the weights and their training take, and how large a micro-batch may be.

    Args:
        policy: The policy; a row goes forward and backward through it, recomputing its blocks and, in the end, not.
        rows: ``[M]`` recorded rows.
    """
    weights, trained = _bytes(policy), sum(p.numel() for p in policy.parameters() if p.requires_grad)
    free = available_bytes(next(policy.parameters()).device)
    lines = [
        f"memory: weights {weights / GIB:.2f} GiB, of which {trained / 1e6:.2f} M parameters are trained "
        f"({4 * ADAM * trained / GIB:.2f} GiB for gradients and AdamW); {free / GIB:.1f} GiB are free now"
    ]
    for recompute in (True, False) if isinstance(policy, Recomputes) else (False,):
        if isinstance(policy, Recomputes):
            policy.set_checkpointing(recompute)
        each = row_bytes(policy, rows)
        fitting = int(ROOM * free / max(each, 1))
        tokens = f", update.micro_tokens={fitting * _tokens(policy, rows)}" if isinstance(policy, CountsTokens) else ""
        how = "blocks computed again in the backward pass" if recompute else "everything kept"
        lines.append(f"  {how}: {each / 2**20:.1f} MiB a chunk, so at most update.micro_rows={fitting}{tokens}")
    return lines


def _tokens(policy: VLAWrapperBase, rows: TensorDictBase) -> int:
    return int(policy.row_tokens(rows).max())


def _bytes(module: nn.Module) -> int:
    tensors: list[torch.Tensor] = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors)
