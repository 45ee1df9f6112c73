"""Initial states: training and evaluation never share one, and a saved cursor continues the same sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcm_rl.config import ConfigError


class InitialStates:
    """Splits an environment's initial states and deals out those for training.

    A finite set (LIBERO's 50) is permuted by the seed; the first ``held_out`` are for evaluation, the rest are dealt
    epoch by epoch, each epoch reshuffled. Where there is no fixed number, states ``0 .. held_out - 1`` are for
    evaluation and training counts upwards from there (offset by the seed), never meeting one twice.

    Args:
        total: Number of initial states, None for unlimited.
        held_out: States kept for evaluation.
        seed: Seed of the split and of the order.

    Raises:
        ValueError: If nothing would be left to train on.
    """

    def __init__(self, total: int | None, held_out: int, seed: int = 0) -> None:
        if total is not None and not 1 <= held_out < total:
            raise ValueError(f"cannot hold out {held_out} of {total} initial states; at least 1 must stay for training")
        self.total, self.held_out, self.seed = total, held_out, seed
        self.dealt = 0
        self._first = held_out + seed * 1_000_000  # of the training states, where they are unlimited
        if total is not None:
            order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
            self._evaluation, self._train = order[:held_out].sort().values, order[held_out:].sort().values

    @property
    def evaluation(self) -> Tensor:
        """``[held_out]`` int64."""
        return torch.arange(self.held_out) if self.total is None else self._evaluation.clone()

    @property
    def training(self) -> Tensor | None:
        """The training states, None where they are unlimited."""
        return None if self.total is None else self._train.clone()

    def deal(self, number: int) -> Tensor:
        """Next ``number`` training states, ``[number]`` int64."""
        positions = torch.arange(self.dealt, self.dealt + number)
        self.dealt += number
        if self.total is None:
            return self._first + positions
        epoch, place = positions // len(self._train), positions % len(self._train)
        orders = {int(e): self._epoch_order(int(e)) for e in epoch.unique()}
        return torch.stack([orders[int(e)][p] for e, p in zip(epoch, place, strict=True)])

    def _epoch_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch + 1)
        return self._train[torch.randperm(len(self._train), generator=generator)]

    def describe(self) -> dict[str, str]:
        """Which states are used for what, for the report."""
        if self.total is None:
            return {"train": f"unlimited, from {self._first} on", "evaluation": f"0-{self.held_out - 1}"}
        return {"train": _join(self._train), "evaluation": _join(self._evaluation)}

    def check_start(self, policy_held_out: str | None) -> None:
        """Refuse to go on with a policy that may have seen this split's evaluation states.

        Args:
            policy_held_out: The evaluation states of the run that made the policy, as :meth:`describe` gives them; None
                where that is not known.

        Raises:
            ConfigError: If one of this split's evaluation states was none then.
        """
        if policy_held_out is None:
            return
        seen = sorted(set(self.evaluation.tolist()) - _parse(policy_held_out))
        if seen:
            more = f" and {len(seen) - 5} more" if len(seen) > 5 else ""
            raise ConfigError(
                f"the policy may have been trained on initial states {seen[:5]}{more}, which seed {self.seed} holds "
                f"out for evaluation with eval_states={self.held_out}; use the seed and eval_states it was made with"
            )

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""
        return {"dealt": self.dealt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the saved cursor."""
        self.dealt = int(state["dealt"])


def _join(states: Tensor) -> str:
    return " ".join(str(int(s)) for s in states)


def _parse(described: str) -> set[int]:
    """The evaluation states that :meth:`InitialStates.describe` wrote."""
    if "-" in described:
        first, last = described.split("-")
        return set(range(int(first), int(last) + 1))
    return {int(state) for state in described.split()}
