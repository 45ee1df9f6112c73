"""The figures that a plan starts from: a card, a network, simulators and episodes, checked when they are made.

Each default says whether it is published by the card's maker, measured, counted or estimated; ``docs/plan.md`` has the
files in ``benchmarks/results`` that they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Optional

from pcm_rl.config.checks import ConfigError, at_least, positive, within


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        peak_tflops: Peak of dense bfloat16, TFLOP/s (published).
        memory_gb: Its memory, GB (published).
        bandwidth_gb: Bandwidth of its memory, GB/s (published).
        update_share: Share of the peak in an update of large micro-batches, in (0, 1] (measured).
        decision_share: Share of the peak that one more row of a decision gets, in (0, 1] (measured).
        decision_call_s: Seconds of a call for a decision beside its rows, mostly Python (measured).
        update_call_s: Least seconds of one forward and backward, however few its rows (estimated: an update launches
            3.5 times the kernels of a decision, and a decision of one row takes 0.051 s).
        update_step_s: Seconds of an optimiser step beside its micro-batches (measured).
    """

    SECTION: ClassVar[str] = "card."

    peak_tflops: float = 989.0
    memory_gb: float = 141.0
    bandwidth_gb: float = 4800.0
    update_share: float = 0.39
    decision_share: float = 0.59
    decision_call_s: float = 0.034
    update_call_s: float = 0.2
    update_step_s: float = 0.018

    def __post_init__(self) -> None:
        positive(self, "peak_tflops", "memory_gb", "bandwidth_gb", "update_share", "decision_share")
        within(0.0, 1.0, self, "update_share", "decision_share")
        at_least(0.0, self, "decision_call_s", "update_call_s", "update_step_s")


CARDS_SHOWN = (1, 2, 4, 8, 16, 32, 64)
MEASURED = "h200"
CARDS: dict[str, Card] = {
    MEASURED: Card(),
    "h100": Card(memory_gb=80.0, bandwidth_gb=3350.0),
    "a100": Card(peak_tflops=312.0, memory_gb=80.0, bandwidth_gb=2039.0),
    "rtx4090": Card(peak_tflops=165.2, memory_gb=24.0, bandwidth_gb=1008.0),
}
"""Peak, memory and bandwidth as published. Shares and fixed seconds were measured on an H200 only; the others have its.
"""


@dataclass(frozen=True)
class Network:
    """A policy: operations and bytes of a chunk. The defaults are OpenVLA-OFT's 7B with LoRA and a prompt of 34 tokens.

    Attributes:
        decision_tflop: Operations of a decision, TFLOP (counted).
        update_tflop: Of a chunk forward and backward (counted).
        recomputed_tflop: The same with blocks computed again in the backward pass (counted).
        weights_gb: Weights, GB (computed).
        training_gb: Trained parameters' gradients and moments (computed).
        kept_gb: Activations of a chunk with everything kept (counted).
        recomputed_gb: With blocks computed again (counted).
        micro_rows: Chunks in one forward and backward, where they fit.
    """

    SECTION: ClassVar[str] = "network."

    decision_tflop: float = 4.93
    update_tflop: float = 10.0
    recomputed_tflop: float = 14.9
    weights_gb: float = 15.1
    training_gb: float = 1.8
    kept_gb: float = 1.91
    recomputed_gb: float = 0.213
    micro_rows: int = 16

    def __post_init__(self) -> None:
        positive(self, "decision_tflop", "update_tflop", "recomputed_tflop", "kept_gb", "recomputed_gb")
        at_least(0.0, self, "weights_gb", "training_gb")
        at_least(1, self, "micro_rows")


@dataclass(frozen=True)
class Simulators:
    """The environments of one card. The defaults are LIBERO with two cameras, rendered in software.

    Attributes:
        chunk_s: Seconds in which a simulator plays a chunk on a core of its own (measured).
        reset_s: Seconds of a reset (measured, without cameras).
        spread: Standard deviation of both, as a share of them (measured).
        workers: Environments of a card; each plays one episode at a time.
        cores: Environments that can be stepped at a time; where a simulator waits for its own renderer and not for a
            core, as many as workers.
        decisions: Rows of every decision, where fewer are filled up; null decides for all who wait.
        decision_wait: Seconds that the first waits until there are as many; 0 decides as soon as the card is free.
        in_step: Environments of one process: all that play are decided for together.
    """

    SECTION: ClassVar[str] = "simulators."

    chunk_s: float = 0.257
    reset_s: float = 0.16
    spread: float = 0.25
    workers: int = 16
    cores: int = 16
    decisions: Optional[int] = None  # noqa: UP045
    decision_wait: float = 0.0
    in_step: bool = False

    def __post_init__(self) -> None:
        at_least(0.0, self, "chunk_s", "reset_s", "decision_wait")
        within(0.0, 0.5, self, "spread")
        at_least(1, self, "workers", "cores")
        if self.decisions is not None:
            at_least(1, self, "decisions")
        if self.in_step and (self.decisions is not None or self.decision_wait):
            raise ConfigError(
                "simulators.decisions and decision_wait are for workers, and these environments are in step"
            )

    def faster(self, times: float) -> Simulators:
        """Resets and chunks take that much less time."""
        return replace(self, chunk_s=self.chunk_s / times, reset_s=self.reset_s / times)


@dataclass(frozen=True)
class Episodes:
    """How long episodes are. The defaults are LIBERO's with a horizon of 512 steps (assumed in all of our counts).

    Attributes:
        success_rate: Share of episodes that succeed.
        success_chunks: Mean chunks of those.
        failure_chunks: Mean chunks of the others.
        mixed: Share of groups with both outcomes; null takes that of independent episodes.
    """

    SECTION: ClassVar[str] = "episodes."

    success_rate: float = 0.5
    success_chunks: float = 18.0
    failure_chunks: float = 64.0
    mixed: Optional[float] = None  # noqa: UP045

    def __post_init__(self) -> None:
        within(0.0, 1.0, self, "success_rate")
        at_least(1.0, self, "success_chunks", "failure_chunks")
        if self.mixed is not None:
            within(0.0, 1.0, self, "mixed")

    def lengths(self, number: int) -> list[int]:
        """Chunks of ``number`` episodes, successes spread evenly among them, with these means as near as they can be.

        The running sums are rounded, not the lengths, so that a mean of 11.6 stays one.
        """
        lengths, sums, before = [], [0.0, 0.0], 0
        for i in range(1, number + 1):
            succeeded = int(i * self.success_rate + 0.5)
            kind, mean = (0, self.success_chunks) if succeeded > before else (1, self.failure_chunks)
            before = succeeded
            lengths.append(int(sums[kind] + mean + 0.5) - int(sums[kind] + 0.5))
            sums[kind] += mean
        return lengths

    def in_mixed_groups(self, group_size: int) -> tuple[float, Episodes]:
        """The share of groups with both outcomes, and the episodes in them.

        Of independent episodes all of a group succeed with probability p^G and fail with (1 - p)^G. With a share that
        is given, groups of one outcome are split in this proportion; the success rate within the others follows.
        """
        rate = self.success_rate
        all_succeed, all_fail = rate**group_size, (1.0 - rate) ** group_size
        share = 1.0 - all_succeed - all_fail if self.mixed is None else self.mixed
        if share <= 0.0:
            return 0.0, self
        of_one = all_succeed / (all_succeed + all_fail)
        within_them = (rate - (1.0 - share) * of_one) / share
        return share, replace(self, success_rate=min(max(within_them, 0.0), 1.0), mixed=None)
