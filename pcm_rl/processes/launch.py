"""Connect the processes that ``torchrun`` has started, and refuse work that cannot be split between them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from pcm_rl.config import Config, ConfigError
from pcm_rl.processes.meeting import launched, meeting_point
from pcm_rl.processes.ranks import ALONE, Ranks

# For a process that hangs; longer than any wait for a process that rolls out, records demonstrations or writes. If a
# process ends, the others notice it at once, since its connections close.
TIMEOUT = timedelta(hours=1)
EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"  # read by MuJoCo and robosuite


@contextlib.contextmanager
def joined(config: Config, timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """Connect to the other processes that ``torchrun`` has started; without it there is one process.

    CPU tensors are sent by gloo, GPU tensors by NCCL. The GPU of this process is the current one from then on, and
    simulators that render with EGL use it too. A process group that the caller has made is used and stays. After an
    error the group is not destroyed, since other processes may wait in it: this process should end.

    Args:
        config: The run.
        timeout: How long a process waits for another one in an exchange before it gives up with an error.

    Raises:
        ConfigError: If the work cannot be split between the processes, or there is no GPU for this process.
    """
    size = dist.get_world_size() if dist.is_initialized() else launched()
    check_split(config, size)
    device = torch.device(config.device)
    on_gpu = device.type == "cuda"
    if size == 1 or dist.is_initialized():
        if device.index is not None and on_gpu:
            _take_gpu(device.index, f"device={config.device}")
        yield Ranks(dist.get_rank(), size) if size > 1 else ALONE
        return
    if on_gpu:
        local = int(os.environ["LOCAL_RANK"])
        _take_gpu(local, f"process {local} of this machine")
    rank = int(os.environ["RANK"])
    store = PrefixStore("group", meeting_point())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    ranks = Ranks(rank, size)
    yield ranks
    ranks.gather_json(None)  # no process ends while another one still works
    dist.destroy_process_group()


def check_split(config: Config, size: int) -> None:
    """Refuse a configuration that cannot be split between ``size`` processes.

    Raises:
        ConfigError: If a process would be left without a group or an episode, or all would use one GPU.
    """
    numbers = {"groups": config.groups, "eval_episodes": config.eval_episodes}
    if config.sft.target is not None:
        numbers["sft.check_episodes"] = config.sft.check_episodes
    for key, number in numbers.items():
        if number < size:
            raise ConfigError(f"{key}={number} cannot be split between {size} processes; give at least {key}={size}")
    if size > 1 and torch.device(config.device).index is not None:
        raise ConfigError(f"device={config.device} is one GPU for all {size} processes; give device=cuda")


def egl_line(ranks: Ranks) -> str | None:
    """Where the simulators of each process draw, as far as a process names its device; None if none does, or no EGL."""
    devices = ranks.gather_json(os.environ.get(EGL_DEVICE))
    if not any(devices) or os.environ.get("MUJOCO_GL", "egl") != "egl":
        return None
    named = ", ".join("any" if device is None else device for device in devices)
    return f"EGL devices of the simulators, by process: {named} ({EGL_DEVICE})"


def _take_gpu(index: int, who: str) -> None:
    """Make a GPU the current one, whose memory, waits and random state are meant where none is named."""
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"{who} finds {torch.cuda.device_count()} GPUs; start as many processes as there are GPUs "
            "(torchrun --nproc-per-node), or give device=cpu"
        )
    torch.cuda.set_device(index)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    physical = visible[index] if index < len(visible) and visible[index].isdigit() else str(index)
    os.environ.setdefault(EGL_DEVICE, physical)  # EGL counts the machine's cards
