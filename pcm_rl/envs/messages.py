"""What an environment in a process of its own answers, and how it comes to its answer."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

_MISUSE = (ValueError, TypeError, LookupError, gymnasium.error.Error)


class Placed(NamedTuple):
    """A process is there, on this machine, and begins to build its environment."""

    machine: str


class Built(NamedTuple):
    """The environment is there."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    horizon: int | None


class Done(NamedTuple):
    """A command was executed, and its observation can be read."""

    ticket: int
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Raised(NamedTuple):
    """A command, or building, ended in an exception."""

    ticket: int
    kind: type[Exception]
    text: str
    misuse: bool  # the caller's fault, and the environment can still be used
    trace: str = ""

    @property
    def reason(self) -> str:
        """One line."""
        return f"{self.kind.__name__}: {self.text}" if self.trace else self.text

    def exception(self, prefix: str = "") -> Exception:
        """The exception again, with the worker's traceback as its cause."""
        error = self.kind(prefix + self.text)
        if self.trace:
            error.__cause__ = RuntimeError(f"in the worker:\n{self.trace}")
        return error


Message = Placed | Built | Done | Raised


def execute(env: gymnasium.Env[Any, Any], ticket: int, method: str, argument: Any) -> tuple[Any, Done]:
    """Executes a command.

    Args:
        env: The environment.
        ticket: Number of the command.
        method: `"reset"` or `"step"`.
        argument: Keyword arguments of a reset, or a chunk.

    Returns:
        The observation, and the answer without it.
    """
    if method == "reset":
        (observation, info), reward, terminated, truncated = env.reset(**argument), 0.0, False, False
    else:
        observation, reward, terminated, truncated, info = env.step(argument)  # type: ignore[assignment]
    return observation, Done(ticket, float(reward), bool(terminated), bool(truncated), info)


def raised(ticket: int, error: Exception) -> Raised:
    """What is answered in place of an exception."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # a KeyError quotes itself
    # Linear algebra of a simulation that has diverged; NumPy makes it a ValueError.
    misuse = isinstance(error, _MISUSE) and not isinstance(error, np.linalg.LinAlgError)
    return Raised(ticket, portable_type(error), text, misuse, traceback.format_exc())


def portable_type(error: Exception) -> type[Exception]:
    """The nearest class of `error` that another process can import, and that can be made from a message."""
    for kind in type(error).__mro__:
        if kind.__module__ == "__mp_main__":  # the parent's script, under a name that exists in workers only
            continue
        with contextlib.suppress(Exception):
            pickle.dumps(kind)
            kind("")
            return kind
    return RuntimeError
