"""Forecast of a run's cost from one batch: seconds per step, possible gain of chunk selection, and memory."""

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
ADAM = 3  # floats per trained parameter: gradient and two moments


def time_lines(costs: Sequence[UpdateCost], rollout_s: float, config: Config) -> list[str]:
    """Seconds of a step and of a run, and the possible gain in a step.

    Args:
        costs: Of the update, the run's method and ``full-valid`` among them.
        rollout_s: Seconds to collect a step's trajectories.
        config: The run.
    """
    cost_of = {cost.method: cost for cost in costs}
    selected, full = cost_of[config.method], cost_of["full-valid"]
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
    """Memory of the weights and their training, and the largest micro-batch.

    Args:
        policy: A row goes forward and backward through it, with its blocks recomputed, then without.
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
        bytes_per_row = row_bytes(policy, rows)
        max_rows = int(ROOM * free / max(bytes_per_row, 1))
        tokens = f", update.micro_tokens={max_rows * _tokens(policy, rows)}" if isinstance(policy, CountsTokens) else ""
        how = "blocks computed again in the backward pass" if recompute else "everything kept"
        lines.append(
            f"  {how}: {bytes_per_row / 2**20:.1f} MiB a chunk, so at most update.micro_rows={max_rows}{tokens}"
        )
    return lines


def _tokens(policy: VLAWrapperBase, rows: TensorDictBase) -> int:
    return int(policy.row_tokens(rows).max())


def _bytes(module: nn.Module) -> int:
    tensors: list[torch.Tensor] = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors)
