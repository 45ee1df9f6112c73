"""Initial states: none is used for both training and evaluation; a saved cursor continues the sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcm_rl.config import Config, ConfigError


class InitialStates:
    """Splits each task's initial states and gives those for training in order.

    A finite set (LIBERO's 50) is permuted by the seed; the first ``held_out`` are for evaluation, the others for
    training, reshuffled in each epoch. Where the number is unlimited, states ``0 .. held_out - 1`` are for evaluation,
    and training counts upwards from there (offset by the seed), each state once.

    With several tasks, state ``s`` of task ``t`` has the number ``t * total + s`` (see ``MultiTaskEnv``), every task
    holds out the same ``s``, and the tasks take turns.

    Args:
        total: Number of initial states of each task, None for unlimited.
        held_out: States of each task kept for evaluation.
        seed: Seed of the split and of the order.
        tasks: T.

    Raises:
        ValueError: If no training state would be left, or several tasks have unlimited states.
    """

    def __init__(self, total: int | None, held_out: int, seed: int = 0, tasks: int = 1) -> None:
        if total is not None and not 1 <= held_out < total:
            raise ValueError(f"cannot hold out {held_out} of {total} initial states; at least 1 must stay for training")
        if total is None and tasks > 1:
            raise ValueError(f"{tasks} tasks need a number of initial states a task, got None")
        self.total, self.held_out, self.seed, self.tasks = total, held_out, seed, tasks
        self.dealt = 0
        self._first = held_out + seed * 1_000_000  # of the training states, where they are unlimited
        if total is not None:
            order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
            self._evaluation, self._train = order[:held_out].sort().values, order[held_out:].sort().values

    @classmethod
    def of(cls, config: Config) -> InitialStates:
        """The split of a configuration."""
        return cls(config.env.num_states, config.env.eval_states, config.seed, config.env.num_tasks)

    @property
    def evaluation(self) -> Tensor:
        """``[held_out * T]`` int64; the first T are one state of each task, and so on."""
        if self.total is None:
            return torch.arange(self.held_out)
        return (self._evaluation.unsqueeze(1) + self.total * torch.arange(self.tasks)).flatten()

    def training(self, task: int = 0) -> Tensor | None:
        """The training states of a task, None where they are unlimited."""
        return None if self.total is None else self._train + self.total * task

    def task_of(self, states: Tensor) -> Tensor:
        """Task of each state, int64 of the same shape."""
        return torch.zeros_like(states) if self.total is None else states // self.total

    def deal(self, number: int) -> Tensor:
        """Next ``number`` training states, ``[number]`` int64."""
        turns = range(self.dealt, self.dealt + number)
        self.dealt += number
        if self.total is None:
            return self._first + torch.tensor(turns)
        orders: dict[tuple[int, int], Tensor] = {}
        states = []
        for turn in turns:
            position, task = divmod(turn, self.tasks)
            epoch, place = divmod(position, len(self._train))
            if (task, epoch) not in orders:
                orders[task, epoch] = self._epoch_order(epoch, task)
            states.append(orders[task, epoch][place] + task * self.total)
        return torch.stack(states)

    def _epoch_order(self, epoch: int, task: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed + 7919 * task) * 100_003 + epoch + 1)
        return self._train[torch.randperm(len(self._train), generator=generator)]

    def describe(self) -> dict[str, str]:
        """The states (of each task) for training and for evaluation, for the report."""
        if self.total is None:
            return {"train": f"unlimited, from {self._first} on", "evaluation": f"0-{self.held_out - 1}"}
        return {"train": _join(self._train), "evaluation": _join(self._evaluation)}

    def check_start(self, policy_held_out: str | None) -> None:
        """Refuse a policy that may have been trained on this split's evaluation states.

        Args:
            policy_held_out: The evaluation states of the run that made the policy, as :meth:`describe` gives them; None
                where they are unknown.

        Raises:
            ConfigError: If an evaluation state of this split was a training state of that run.
        """
        if policy_held_out is None:
            return
        evaluation = self.evaluation if self.total is None else self._evaluation
        trained_on = sorted(set(evaluation.tolist()) - _parse(policy_held_out))
        if trained_on:
            more = f" and {len(trained_on) - 5} more" if len(trained_on) > 5 else ""
            raise ConfigError(
                f"the policy may have been trained on initial states {trained_on[:5]}{more}, which seed {self.seed} "
                f"holds out for evaluation with eval_states={self.held_out}; use the seed and eval_states it was made "
                "with"
            )

    def check_policy(self, origin: dict[str, str], env_id: str) -> None:
        """:meth:`check_start` with the metadata of a policy's file; a policy of another environment passes.

        Args:
            origin: The file's metadata.
            env_id: The environment of these states.

        Raises:
            ConfigError: As :meth:`check_start`.
        """
        if origin.get("env") == env_id:
            self.check_start(origin.get("held_out"))

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
