"""What counts as success: one rule for training, evaluation and the recording of demonstrations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from pcm_rl.support.plugins import is_plugin, load_callable

Success = str | Callable[[gymnasium.Env, dict[str, Any]], bool]

SUCCESS_KEYS = ("success", "is_success")  # of an environment's info, the first one that it has
POSITIVE_REWARD = "positive_reward"
_LOOKS_LIKE_SUCCESS = (
    "succe", "solved", "goal_achieved", "goal_reached", "reached_goal", "goal_met", "completed", "task_complete",
)  # fmt: skip


class MissingSuccess(KeyError):
    """An environment's info lacks the key that tells success."""


class SuccessRule:
    """Whether a step was a success.

    Args:
        success: Key of the environment's info, `callable(env, info) -> bool`, or the name of such a callable as
            `module:function`. `"positive_reward"` means a reward above 0, whether or not the environment goes on. None
            means the first of `SUCCESS_KEYS` that the info has, else termination with a positive reward; what looks
            like another way to tell success is named once.

    Raises:
        ValueError: `module:function` names nothing that can be called.
    """

    def __init__(self, success: Success | None = None) -> None:
        if isinstance(success, str) and is_plugin(success):
            success = load_callable(success)
        self.success = success
        self._seen: tuple[str, ...] | None = None  # keys of the last info that was looked through
        self._warned = False

    def __call__(
        self, env: gymnasium.Env, info: dict[str, Any], terminated: bool, reward: float, where: str = "this step"
    ) -> bool:
        """Whether the step that gave `info`, `terminated` and `reward` was a success; `where` is for errors.

        Raises:
            MissingSuccess: `success` names a key that the info lacks.
            ValueError: The value is not binary, or a reward that tells success is not a number.
        """
        if self.success == POSITIVE_REWARD:
            return _positive(reward, where)
        if callable(self.success):
            return _binary(self.success(env, info), "the success function's answer", where)
        key = next((name for name in SUCCESS_KEYS if name in info), None) if self.success is None else self.success
        if key is None:
            if not self._warned:
                self._warn_of_unread(info, terminated, reward)
            return terminated and _positive(reward, where)
        if key not in info:
            raise MissingSuccess(f"success={key!r} is not in the environment's info at {where}; it has {sorted(info)}")
        return _binary(info[key], f"info[{key!r}]", where)

    def _warn_of_unread(self, info: Mapping[str, Any], terminated: bool, reward: float) -> None:
        """Warns once of what looks like success and is not read."""
        keys = tuple(info)
        name = None if keys == self._seen else next((key for key in keys if _looks_like_success(key, info[key])), None)
        self._seen = keys
        if name is not None:
            what, remedy = f"info has {name!r}, which", name
        elif reward > 0.0 and not terminated:
            what, remedy = f"a step paid {reward:g} and the environment goes on, which", POSITIVE_REWARD
        else:
            return
        self._warned = True
        warnings.warn(
            f"{what} may tell success and is not read: a termination with a positive reward counts. Give "
            f"success={remedy!r} (env.success={remedy}) to read it",
            RuntimeWarning,
            stacklevel=4,
        )


def _looks_like_success(key: str, value: Any) -> bool:
    return any(part in str(key).lower() for part in _LOOKS_LIKE_SUCCESS) and _number(value) in (0.0, 1.0)


def _positive(reward: float, where: str) -> bool:
    if math.isnan(reward):
        raise ValueError(f"the reward is {reward} at {where}, and success is read off it; expected a number")
    return reward > 0.0


def _number(value: Any) -> float:
    """A number of one entry, of whatever library; NaN for anything else, a text too."""
    if isinstance(value, str | bytes):
        return math.nan
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _binary(value: Any, what: str, where: str) -> bool:
    number = _number(value)
    if number not in (0.0, 1.0):
        raise ValueError(f"{what} is {value!r} at {where}; success must be True or False, 1 or 0")
    return bool(number)
