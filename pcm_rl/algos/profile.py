"""What an update costs: seconds, rows and activation memory of each method on one and the same batch."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.algos.loss import ChunkGRPOLoss
from pcm_rl.algos.transforms import PCMSampler
from pcm_rl.algos.update import grpo_update
from pcm_rl.config import METHODS, Config
from pcm_rl.episodes import pad_episodes


@dataclass(frozen=True)
class UpdateCost:
    """Cost of one update.

    Attributes:
        method: A name in ``METHODS``.
        rows: Chunk rows that went forward and backward.
        select_s: Median seconds of the selection.
        update_s: Median seconds of the update (all minibatches of one pass).
        activation_bytes: Largest amount that one backward pass had to keep (saved tensors without parameters; on CUDA
            the peak above what was allocated before).
    """

    method: str
    rows: int
    select_s: float
    update_s: float
    activation_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def profile_update(
    policy: VLAWrapperBase,
    batch: TensorDictBase,
    config: Config,
    *,
    methods: tuple[str, ...] = ("pcm", "full-valid", "full-padded"),
    repeats: int = 3,
    probs: Tensor | None = None,
) -> list[UpdateCost]:
    """Measure the update of several methods, each on a copy of ``policy`` that is then thrown away.

    Args:
        policy: The policy; left as it is.
        batch: ``[M]`` rows of complete groups with phases and advantages, no padding rows.
        config: Its ``selection``, ``update`` and ``env.max_chunks`` are used.
        methods: Names in ``METHODS``.
        repeats: Timed repetitions after one warm-up; interleaved between the methods, so that drift hits all alike.
        probs: Keep probabilities to sample with, ``[K]``; None starts fresh.

    Raises:
        KeyError: If a method is unknown.
    """
    padded = pad_episodes(batch, config.env.max_chunks)
    trials: dict[str, list[tuple[int, float, float, int]]] = {name: [] for name in methods}
    for repeat in range(repeats + 1):
        for name in methods:
            source = padded if METHODS[name][1] == "keep" else batch
            trial = _trial(policy, source, config, name, probs, count_bytes=repeat == 0)
            trials[name].append(trial)
    costs = []
    for name, runs in trials.items():
        timed = runs[1:] or runs
        select_s, update_s = (statistics.median(run[i] for run in timed) for i in (1, 2))
        costs.append(UpdateCost(name, runs[0][0], select_s, update_s, runs[0][3]))
    return costs


def _trial(
    policy: VLAWrapperBase, batch: TensorDictBase, config: Config, name: str, probs: Tensor | None, *, count_bytes: bool
) -> tuple[int, float, float, int]:
    selection, padding = METHODS[name]
    sampler = PCMSampler(config.selection.budget, selection=selection, padding=padding, floor=config.selection.floor)
    if probs is not None:
        sampler.keep.load_state_dict({"probs": probs.tolist(), "buffer": [], "scored": [True] * len(probs)})
    start = time.perf_counter()
    kept = sampler(batch)
    select_s = time.perf_counter() - start

    learner = copy.deepcopy(policy)
    loss = make_loss(learner, config)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=config.update.lr, fused=True)
    with ActivationMeter(learner, enabled=count_bytes) as meter:
        _wait(learner)
        start = time.perf_counter()
        grpo_update(
            loss,
            optimizer,
            kept,
            minibatches=config.update.minibatches,
            micro_rows=config.update.micro_rows,
            generator=torch.Generator().manual_seed(0),
        )
        _wait(learner)
        update_s = time.perf_counter() - start
    return len(kept), select_s, update_s, meter.peak


def make_loss(policy: VLAWrapperBase, config: Config) -> ChunkGRPOLoss:
    """The loss that a configuration describes."""
    update = config.update
    return ChunkGRPOLoss(policy, clip_epsilon=(update.clip_low, update.clip_high), entropy_coeff=update.entropy_coeff)


class ActivationMeter:
    """Counts the bytes that autograd keeps for a backward pass: saved tensors, each storage once, without parameters.

    A pass is over when its saved tensors are read back; ``peak`` is the largest pass. On CUDA it is the allocator's
    peak above what was there before.

    Args:
        module: Its parameters and buffers are not counted.
        enabled: False makes it free.
    """

    def __init__(self, module: nn.Module, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.peak = 0
        self._own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self._cuda = next(module.parameters()).is_cuda
        self._alive: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._alive[storage.data_ptr()] = storage.nbytes()
            self.peak = max(self.peak, sum(self._alive.values()))
        return tensor

    def _unpack(self, tensor: Tensor) -> Tensor:
        self._alive.clear()
        return tensor

    def __enter__(self) -> ActivationMeter:
        if self.enabled and self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        elif self.enabled:
            self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled and self._cuda:
            self.peak = torch.cuda.max_memory_allocated() - self._before
        elif self.enabled:
            self._hooks.__exit__(*error)


def _wait(module: nn.Module) -> None:
    if next(module.parameters()).is_cuda:
        torch.cuda.synchronize()
