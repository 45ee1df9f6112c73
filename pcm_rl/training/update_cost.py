"""The cost of an update: seconds, rows and activation memory of each method on the same batch."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos.sampler import PCMSampler
from pcm_rl.config import METHODS, Config, Method
from pcm_rl.episodes import CHUNK_ID, EPISODE, GROUP, pad_episodes
from pcm_rl.training.grpo import make_loss, make_optimizer, update_policy
from pcm_rl.training.memory import ActivationMeter, row_bytes

COPIES = 3  # of the rows of an update: padded, chosen, and in a minibatch
BASELINES = ("full-valid", "full-padded")


@dataclass(frozen=True)
class UpdateCost:
    """Cost of one update.

    Attributes:
        method: Its name.
        rows: Chunk rows that went forward and backward.
        select_s: Median seconds of the selection.
        update_s: Median seconds of the update (all minibatches of one pass).
        activation_bytes: Largest memory of one backward pass (saved tensors without parameters; on CUDA the peak above
            the memory allocated before).
    """

    method: str
    rows: int
    select_s: float
    update_s: float
    activation_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def compared_methods(config: Config) -> dict[str, Method]:
    """The method of a configuration first, also without a name, then the baselines: full GRPO."""
    method = Method(config.selection.name, config.selection.padding, config.advantage.name)
    return {config.method: method} | {name: METHODS[name] for name in BASELINES}


def profile_update(
    policy: VLAWrapperBase,
    batch: TensorDictBase,
    config: Config,
    *,
    methods: Mapping[str, Method] | None = None,
    repeats: int = 3,
    seconds: float = 60.0,
    probs: Tensor | None = None,
    room: int | None = None,
) -> list[UpdateCost]:
    """Measure the update of several methods; each update is undone afterwards.

    Args:
        policy: The policy; not changed in the end.
        batch: ``[M]`` rows of complete groups with phases and advantages, no padding rows.
        config: Its ``selection``, ``update`` and ``env.slots`` are used.
        methods: Name -> selection and padding; None takes :func:`compared_methods`. Advantages are those of ``batch``.
        repeats: Timed repetitions after one warm-up; interleaved between the methods, so that drift affects all of
            them.
        seconds: No repetition begins after this time. Where updates take minutes, as with a 7B model, only the warm-up
            runs, and its time is returned. So one group is trained on before: the first update of a process waits for
            kernels and memory, which would count for the first method alone.
        probs: Keep probabilities to sample with, ``[K]``; None starts fresh.
        room: Bytes that the updates may take. A method that pads takes more rows than a run that trims: all methods are
            measured on the first groups, as many as fit with all their padding, at least one. None takes all.

    Returns:
        A cost for each method, in their order.
    """
    methods = compared_methods(config) if methods is None else methods
    longest = int(batch.get(CHUNK_ID).max()) + 1  # an episode may have become longer than the slots
    slots = max(config.env.slots, longest)
    batch = batch if room is None else _affordable(policy, batch, config, slots, room)
    padded = pad_episodes(batch, slots)
    trials: dict[str, list[tuple[int, float, float, int]]] = {name: [] for name in methods}
    first = batch.get(GROUP) == batch.get(GROUP)[0]
    _trial(policy, batch[first], config, next(iter(methods.values())), probs, count_bytes=False)
    started = time.perf_counter()
    for repeat in range(repeats + 1):
        if repeat and time.perf_counter() - started > seconds:
            break
        for name, method in methods.items():
            rows = padded if method.padding == "keep" else batch
            trials[name].append(_trial(policy, rows, config, method, probs, count_bytes=repeat == 0))
    costs = []
    for name, runs in trials.items():
        timed = runs[1:] or runs
        select_s, update_s = (statistics.median(run[i] for run in timed) for i in (1, 2))
        costs.append(UpdateCost(name, runs[0][0], select_s, update_s, runs[0][3]))
    return costs


def _affordable(policy: VLAWrapperBase, batch: TensorDictBase, config: Config, slots: int, room: int) -> TensorDictBase:
    """The first whole groups of ``batch [M]`` whose padded update takes at most ``room`` bytes."""
    device = next(policy.parameters()).device
    micro_rows = config.update.micro_rows or math.inf if config.update.micro_tokens is None else 0
    kept = COPIES * batch.bytes() / len(batch)  # of each row; on a GPU the activations are not in this memory
    activations = 0 if device.type == "cuda" else row_bytes(policy, batch)
    group = batch.get(GROUP)
    numbers = group.unique_consecutive().tolist()
    for count in range(len(numbers), 1, -1):
        part = torch.isin(group, torch.tensor(numbers[:count]))
        rows = int(batch.get(EPISODE)[part].unique().numel()) * slots
        if rows * kept + min(rows / config.update.minibatches, micro_rows) * activations <= room:
            return batch if count == len(numbers) else batch[part]
    return batch[group == numbers[0]]


def _trial(
    policy: VLAWrapperBase,
    batch: TensorDictBase,
    config: Config,
    method: Method,
    probs: Tensor | None,
    *,
    count_bytes: bool,
) -> tuple[int, float, float, int]:
    sampler = PCMSampler(
        config.selection.budget, selection=method.selection, padding=method.padding, floor=config.selection.floor
    )
    if probs is not None:
        sampler.keep.load_state_dict({"probs": probs.tolist(), "buffer": [], "scored": [True] * len(probs)})
    start = time.perf_counter()
    kept = sampler(batch)
    select_s = time.perf_counter() - start

    loss, optimizer = make_loss(policy, config.update), make_optimizer(policy, config.update)
    with _restored(policy), ActivationMeter(policy, enabled=count_bytes) as meter:
        _wait(policy)
        start = time.perf_counter()
        update_policy(loss, optimizer, kept, config.update, torch.Generator().manual_seed(0))
        _wait(policy)
        update_s = time.perf_counter() - start
    return len(kept), select_s, update_s, meter.peak


@contextlib.contextmanager
def _restored(policy: VLAWrapperBase) -> Iterator[None]:
    """Restore the trainable parameters afterwards; only they are copied, not a frozen 7B model."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None


def _wait(module: nn.Module) -> None:
    if (device := next(module.parameters()).device).type == "cuda":
        torch.cuda.synchronize(device)
