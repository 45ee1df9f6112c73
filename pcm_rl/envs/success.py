"""What counts as success: one rule for training, evaluation and the recording of demonstrations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from pcm_rl.support.plugins import is_plugin, load_callable

Success = str | Callable[[gymnasium.Env, dict[str, Any]], bool]

SUCCESS_KEYS = ("success", "is_success")  # of an environment's info, the first one that it has
_LOOKS_LIKE_SUCCESS = ("succe", "solved")


class MissingSuccess(KeyError):
    """An environment's info lacks the key that tells success."""


class SuccessRule:
    """Whether a step was a success.

    Args:
        success: Key of the environment's info, `callable(env, info) -> bool`, or the name of such a callable as
            `module:function`. None means the first of `SUCCESS_KEYS` that the info has, else termination with a
            positive reward.

    Raises:
        ValueError: `module:function` names nothing that can be called.
    """

    def __init__(self, success: Success | None = None) -> None:
        if isinstance(success, str) and is_plugin(success):
            success = load_callable(success)
        self.success = success
        self._warned = False

    def __call__(
        self, env: gymnasium.Env, info: dict[str, Any], terminated: bool, reward: float, where: str = "this step"
    ) -> bool:
        """Whether the step that gave `info`, `terminated` and `reward` was a success; `where` is for errors.

        Raises:
            MissingSuccess: `success` names a key that the info lacks.
            ValueError: The value is not binary.
        """
        if callable(self.success):
            return _binary(self.success(env, info), "the success function's answer", where)
        key = next((name for name in SUCCESS_KEYS if name in info), None) if self.success is None else self.success
        if key is None:
            self._warn_of_unread(info)
            return terminated and reward > 0.0
        if key not in info:
            raise MissingSuccess(f"success={key!r} is not in the environment's info at {where}; it has {sorted(info)}")
        return _binary(info[key], f"info[{key!r}]", where)

    def _warn_of_unread(self, info: Mapping[str, Any]) -> None:
        """Warns once of entries that look like success and are not read."""
        if self._warned:
            return
        self._warned = True
        names = [name for name in info if any(part in str(name).lower() for part in _LOOKS_LIKE_SUCCESS)]
        if names:
            warnings.warn(
                f"info has {', '.join(map(repr, names))}, which may tell success and is not read: a termination with "
                f"a positive reward counts. Give success={names[0]!r} (env.success={names[0]}) to read it",
                RuntimeWarning,
                stacklevel=4,
            )


def _binary(value: Any, what: str, where: str) -> bool:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number not in (0.0, 1.0):
        raise ValueError(f"{what} is {value!r} at {where}; success must be True or False, 1 or 0")
    return bool(number)
