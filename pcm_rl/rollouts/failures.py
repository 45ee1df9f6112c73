"""Environments that fail while they play: the episode is played again, its group is left out, or the run stops."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from pcm_rl.envs.messages import portable_type
from pcm_rl.envs.success import MissingSuccess
from pcm_rl.rollouts.rows import Policy

REFUSED = (MissingSuccess,)  # the configuration does not fit the environment: another try ends alike
PROGRAMMING = (TypeError, AttributeError, NameError, NotImplementedError, ImportError)

NOT_FINITE = "its observation or reward is not finite"
NOTHING_LEFT = "no episode is left, every group was given up; "


class Failures:
    """The failures of one collection, and what follows from each.

    Args:
        max_tries: Failures of one episode, at least 1, until its group is dropped.
        may_drop_all: Go on where every group is dropped: other processes may have some.

    Attributes:
        dropped_groups: Groups that are left out.
        completed: Whether an episode has come to its end, so that environments work in principle.
    """

    def __init__(self, max_tries: int, *, may_drop_all: bool = False) -> None:
        self.dropped_groups: set[int] = set()
        self.completed = False
        self._max_tries, self._may_drop_all = max_tries, may_drop_all
        self._tries = Counter[tuple[int, ...]]()
        self._last: tuple[str, Exception | None] = ("", None)

    def add(
        self, episodes: Sequence[int], init_states: Sequence[int], group: int, failed: tuple[str, str, Exception | None]
    ) -> None:
        """Count a failure of an episode; its group is dropped if the episode has failed too often.

        Args:
            episodes: The episode; several where it cannot be told which of them failed.
            init_states: Where each started.
            group: The episode's group.
            failed: Which worker or environment; what happened, in one line; and what the environment raised, None where
                its process died or hung.

        Raises:
            Exception: Of the type of what was raised, which is its cause: the environment does not work at all, or has
                an error of programming, which would drop group after group.

        Warns:
            RuntimeWarning: The episode is played again, or its group is dropped.
        """
        where, reason, error = failed
        one = len(episodes) == 1
        key = tuple(episodes) if one else ()
        self._tries[key] += 1
        tries = self._tries[key]
        plural, verb = ("", "is") if one else ("s", "are")
        start = f"the episode{plural} from initial state{plural} {_listed(init_states)}"
        times = f"{tries} times, the last time because of: {reason}"
        self._last = f"{where}: {start} failed {times}", error
        if isinstance(error, REFUSED):
            raise error
        if tries < self._max_tries:
            warnings.warn(f"{where}: {start} failed and {verb} played again: {reason}", RuntimeWarning, stacklevel=4)
            return
        if not one or isinstance(error, PROGRAMMING):
            self.stop()
        if group not in self.dropped_groups:
            self.dropped_groups.add(group)
            text = f"group {group} is left out: {start} failed {times} ({where})"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        if len(self.dropped_groups) >= self._max_tries and not self.completed:
            self.stop()

    def nothing_left(self) -> TensorDict:
        """No rows, after every group was dropped.

        Raises:
            Exception: As :meth:`add`, unless all may be dropped.
        """
        return TensorDict({}, batch_size=[0]) if self._may_drop_all else self.stop(NOTHING_LEFT)

    def stop(self, why: str = "") -> NoReturn:
        """Raise the last failure."""
        text, error = self._last
        kind = RuntimeError if error is None else portable_type(error)
        raise kind(f"{why}{text}") from error


def _listed(init_states: Sequence[int]) -> str:
    return ", ".join(map(str, init_states[:8])) + (", ..." if len(init_states) > 8 else "")


def not_finite(policy: Policy, observation: Mapping[NestedKey, Tensor]) -> list[int]:
    """Which of n observations have a number that is not finite.

    Args:
        policy: Only its ``in_keys`` are looked at, if it has any.
        observation: Keys of the schema ``[n, ...]``.
    """
    read = set(getattr(policy, "in_keys", observation))
    floats = [value for key, value in observation.items() if key in read and value.is_floating_point()]
    wrong = [~torch.isfinite(value).view(len(value), -1).all(1) for value in floats]
    return torch.stack(wrong).any(0).nonzero().flatten().tolist() if wrong else []
