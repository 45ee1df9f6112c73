"""The memory that a backward pass needs, and whether it fits."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.config import Config
from pcm_rl.policies.family import log_probs_of
from pcm_rl.support.room import free_memory

ROOM = 0.8  # share of the free memory that activations may take: allocators leave gaps


class ActivationMeter:
    """Counts the bytes that autograd keeps for a backward pass: saved tensors, each storage once, no parameters.

    A pass ends when its saved tensors are read; ``peak`` is that of the largest pass. On CUDA it is the allocator's
    peak above the memory allocated before.

    Args:
        module: Its parameters and buffers are not counted.
        enabled: False measures nothing and costs nothing.
    """

    def __init__(self, module: nn.Module, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.peak = 0
        self._parameters = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self._device = next(module.parameters()).device
        self._alive: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._alive[storage.data_ptr()] = storage.nbytes()
            self.peak = max(self.peak, sum(self._alive.values()))
        return tensor

    def _unpack(self, tensor: Tensor) -> Tensor:
        self._alive.clear()
        return tensor

    def __enter__(self) -> ActivationMeter:
        if self.enabled and self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif self.enabled:
            self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled and self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device) - self._before
        elif self.enabled:
            self._hooks.__exit__(*error)


def wants_checkpointing(policy: VLAWrapperBase, rows: TensorDictBase, config: Config) -> tuple[bool, str]:
    """Whether the blocks of ``policy`` should be computed again in the backward pass instead of kept.

    With ``policy.checkpointing=auto`` one row goes forward and backward; its memory is multiplied by the rows of a
    micro-batch.

    Args:
        policy: Without checkpointing; it has no gradients afterwards.
        rows: ``[M]`` recorded rows, at least one.
        config: The run.

    Returns:
        The answer, and the reason as text.
    """
    setting = config.policy.checkpointing
    if setting != "auto":
        return setting == "always", f"policy.checkpointing={setting}"
    bytes_per_row, number = row_bytes(policy, rows), micro_batch_rows(policy, rows, config)
    need, free = bytes_per_row * number, available_bytes(next(policy.parameters()).device)
    reason = (
        f"a micro-batch of {number} rows keeps {need / 2**30:.2f} GiB ({bytes_per_row / 2**20:.1f} MiB a row), "
        f"{free / 2**30:.1f} GiB are free"
    )
    return need > ROOM * free, reason


def row_bytes(policy: VLAWrapperBase, rows: TensorDictBase) -> int:
    """Bytes that the backward pass of one row keeps; the policy has no gradients afterwards."""
    row = rows[:1].to(next(policy.parameters()).device)
    for _ in range(2):  # the second time the gradients, which all rows share, have their memory
        with ActivationMeter(policy) as meter:
            log_probs_of(policy, row).sum().backward()
    policy.zero_grad(set_to_none=True)
    return meter.peak


def micro_batch_rows(policy: VLAWrapperBase, rows: TensorDictBase, config: Config) -> int:
    """Most rows of a micro-batch, with prompts as short as the shortest of ``rows``."""
    update = config.update
    if update.micro_rows is not None:
        return update.micro_rows
    if update.micro_tokens is not None:
        return update.micro_tokens // int(policy.row_tokens(rows).min())
    limited = config.selection.rule.budget != "none"
    chunks = config.selection.budget if limited else config.env.slots
    return -(-config.groups * config.group_size * chunks // update.minibatches)


def memory_had(least: int = 2**30) -> int:
    """Bytes that this process has had at its peak and does not have now, or ``least`` if that is more."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return least
    now = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return max(least, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - now)


def available_bytes(device: torch.device) -> int:
    """Memory that is free on a device, with what the allocator or the system holds in reserve and gives back."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    return free_memory()
