"""Seconds of decisions and of updates, worked out from a card and a network, or measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from pcm_rl.config.checks import ConfigError, at_least
from pcm_rl.plan.figures import Card, Network


@dataclass(frozen=True)
class Costs:
    """What the policy takes, in seconds. In a plan, what is not given follows from card and network, or from a run.

    Attributes:
        decision_call_s: A call for a decision, beside its rows.
        decision_row_s: Each of its rows.
        decision_least_s: A call takes at least this, beside :attr:`decision_call_s`.
        update_row_s: A chunk forward and backward.
        update_call_s: Least seconds of a micro-batch.
        update_step_s: An optimiser step, beside its micro-batches.
        micro_rows: Chunks of a micro-batch.
        recomputes: Blocks are computed again in the backward pass.
    """

    SECTION: ClassVar[str] = "costs."

    decision_call_s: float = 0.0
    decision_row_s: float = 0.0
    decision_least_s: float = 0.0
    update_row_s: float = 0.0
    update_call_s: float = 0.0
    update_step_s: float = 0.0
    micro_rows: int = 16
    recomputes: bool = False

    def __post_init__(self) -> None:
        at_least(0.0, self, "decision_call_s", "decision_row_s", "decision_least_s")
        at_least(0.0, self, "update_row_s", "update_call_s", "update_step_s")
        at_least(1, self, "micro_rows")

    def faster(self, *, decisions: float = 1.0, update: float = 1.0) -> Costs:
        """Decisions and the update take that much less time."""
        return replace(
            self,
            decision_call_s=self.decision_call_s / decisions,
            decision_row_s=self.decision_row_s / decisions,
            decision_least_s=self.decision_least_s / decisions,
            update_row_s=self.update_row_s / update,
            update_call_s=self.update_call_s / update,
            update_step_s=self.update_step_s / update,
        )

    def decision_s(self, rows: int) -> float:
        """A decision for ``rows`` episodes at once."""
        return self.decision_call_s + max(rows * self.decision_row_s, self.decision_least_s)

    def update_s(self, rows: int, *, minibatches: int, epochs: int = 1, cards: int = 1) -> float:
        """An update on ``rows`` chunks, split evenly into minibatches, and each of them evenly among the cards.

        The card with the most chunks of a minibatch counts. No row at all takes no time.

        Args:
            rows: Chunks of all cards.
            minibatches: Optimiser steps of an epoch.
            epochs: Passes.
            cards: That share them.
        """
        least, more = divmod(rows, minibatches)
        larger, smaller = (self._step_s(math.ceil(number / cards)) for number in (least + 1, least))
        return epochs * (more * larger + (minibatches - more) * smaller)

    def _step_s(self, rows: int) -> float:
        """An optimiser step on ``rows`` chunks of one card; one without any row is not made."""
        if rows == 0:
            return 0.0
        full, rest = divmod(rows, self.micro_rows)
        return self.update_step_s + full * self._micro_s(self.micro_rows) + (self._micro_s(rest) if rest else 0.0)

    def _micro_s(self, rows: int) -> float:
        return max(rows * self.update_row_s, self.update_call_s)


def costs_of(card: Card, network: Network, *, recompute: bool | None = None) -> Costs:
    """Seconds by counted operations, the card's peak and the share of it that was reached.

    A call reads all weights at least once (an update twice): that takes as long as the bandwidth says. Everything is
    kept where a whole micro-batch of it fits, otherwise blocks are computed again, as ``policy.checkpointing=auto``
    does. A micro-batch that does not fit either way is made smaller.

    Args:
        card: The card.
        network: The policy.
        recompute: Whether blocks are computed again; None decides by the memory.

    Raises:
        ConfigError: Not even one chunk fits into the card.
    """
    room = card.memory_gb - network.weights_gb - network.training_gb
    recomputes = network.micro_rows * network.kept_gb > room if recompute is None else recompute
    chunk_gb = network.recomputed_gb if recomputes else network.kept_gb
    rows = min(network.micro_rows, int(room / chunk_gb))
    if rows < 1:
        needed = network.weights_gb + network.training_gb + chunk_gb
        raise ConfigError(
            f"card.memory_gb={card.memory_gb:g}: weights, training and one chunk need {needed:.3g} GB; take a larger "
            "card, policy.checkpointing=auto, or policy.openvla.quantize=nf4"
        )
    tflop = network.recomputed_tflop if recomputes else network.update_tflop
    read_s = network.weights_gb / card.bandwidth_gb
    return Costs(
        decision_call_s=card.decision_call_s,
        decision_row_s=network.decision_tflop / (card.peak_tflops * card.decision_share),
        decision_least_s=read_s,
        update_row_s=tflop / (card.peak_tflops * card.update_share),
        update_call_s=max(card.update_call_s, 2 * read_s),
        update_step_s=card.update_step_s,
        micro_rows=rows,
        recomputes=recomputes,
    )
